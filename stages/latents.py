"""Encodes every image to posterior moments: data/images, data/vae -> data/latents.

python -m stages latents          (as many processes as Accelerate is configured for)

After an interruption it resumes after the last complete file.
"""

import hashlib

from gat.config import Params
from gat.data.encode import write_latents
from gat.data.images import Images
from gat.data.vae import encode, load_vae
from gat.runtime import exclusive, make_accelerator, publish
from stages import IMAGES, LATENTS, VAE, staging_dir


def main(params: Params) -> None:
    """Run the stage."""
    vae = load_vae(VAE, make_accelerator(params.compute).device)
    sources = [(path.name, path.stat().st_size) for path in sorted(IMAGES.iterdir())]
    weights = hashlib.blake2b(next(VAE.glob("*.safetensors")).read_bytes()).hexdigest()
    folder = staging_dir("latents", sources, params.data.mirror, weights)
    with exclusive(folder) as awaited:
        write_latents(
            Images(IMAGES),
            lambda batch: encode(vae, batch),
            folder,
            vae.config["scaling_factor"],
            params.data.mirror,
            params.compute.vae_batch,
            params.compute.workers,
        )
        publish(folder, LATENTS, keep=awaited())
