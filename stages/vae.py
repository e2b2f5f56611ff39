"""Autoencoder, pretrained or trained on the images: data/images -> data/vae.

python -m stages vae
"""

from gat.config import Params
from gat.data.images import Images
from gat.data.pretrained_vae import fetch_vae
from gat.data.vae import downsampling_factor, load_vae, psnr, train_vae
from gat.files import atomic_write
from gat.runtime import make_accelerator
from stages import IMAGES, VAE


def main(params: Params) -> None:
    """Run the stage."""
    settings, device, images = params.vae, make_accelerator(params.compute).device, Images(IMAGES)
    with atomic_write(VAE) as folder:
        if settings.recipe is not None and settings.pretrained is None:
            train_vae(images, device=device, **settings.recipe.model_dump()).save_pretrained(folder)
        else:
            fetch_vae(str(settings.pretrained), folder)
        vae = load_vae(folder, device)
        params.check_latent_size(images.size / downsampling_factor(vae))  # before hours of encoding
    print(f"PSNR of reconstructions: {psnr(vae, images, params.compute.vae_batch):.1f} dB")
