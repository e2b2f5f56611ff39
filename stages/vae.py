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
    from gat.vae import psnr, train_vae

    accelerator = make_accelerator()
    images = Images(IMAGES)
    if settings.pretrained is not None:
        vae = AutoencoderKL.from_pretrained(settings.pretrained).to(accelerator.device)
    else:
        recipe = settings.model_dump(exclude={"pretrained"})
        vae = train_vae(images, device=accelerator.device, **recipe)
    print(f"reconstructions have a PSNR of {psnr(vae, images):.1f} dB")
    vae.save_pretrained(VAE)


if __name__ == "__main__":
    run_stage(main)
