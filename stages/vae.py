"""The autoencoder: fetched, or trained on data/images -> data/vae.

python -m stages.vae
"""

from gat.config import Params
from stages import IMAGES, VAE, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    settings = params.vae
    from diffusers import AutoencoderKL

    from gat.images import Images
    from gat.vae import factor, load_vae, psnr, train_vae

    device = make_accelerator(params.compute).device
    images = Images(IMAGES)
    if settings.recipe is not None and settings.pretrained is None:
        vae = train_vae(images, device=device, **settings.recipe.model_dump())
        vae.save_pretrained(VAE)
    else:
        AutoencoderKL.from_pretrained(settings.pretrained).save_pretrained(VAE)
    vae = load_vae(VAE, device)
    params.check_latent_size(images.size / factor(vae))  # now, not after hours of encoding
    print(f"reconstructions have a PSNR of {psnr(vae, images, params.compute.vae_batch):.1f} dB")


if __name__ == "__main__":
    run_stage(main)
