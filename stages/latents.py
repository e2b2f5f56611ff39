"""Posterior moments of every image: data/images, data/vae -> data/latents.

python -m stages.latents
"""

from gat.config import Params
from stages import IMAGES, LATENTS, VAE, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    from diffusers import AutoencoderKL

    from gat.images import Images
    from gat.latents import write_latents
    from gat.vae import encode

    accelerator = make_accelerator()
    vae = AutoencoderKL.from_pretrained(VAE).to(accelerator.device).eval()
    write_latents(
        Images(IMAGES),
        lambda batch: encode(vae, batch),
        LATENTS,
        vae.config["scaling_factor"],
        params.data.mirror,
        batch_size=params.evaluate.batch_size,
    )


if __name__ == "__main__":
    run_stage(main)
