"""Posterior moments of every image: data/images, data/vae -> data/latents.

python -m stages.latents          (as many processes as Accelerate is configured for)

An interrupted run goes on from the last file that it finished.
"""

import hashlib

from gat.config import Params
from stages import IMAGES, LATENTS, VAE, make_accelerator, publish, run_stage, workplace


def main(params: Params) -> None:
    """Run the stage."""
    from gat.images import Images
    from gat.latents import write_latents
    from gat.vae import encode, load_vae

    vae = load_vae(VAE, make_accelerator(params.compute).device)
    sources = [(path.name, path.stat().st_size) for path in sorted(IMAGES.iterdir())]
    weights = hashlib.blake2b(next(VAE.glob("*.safetensors")).read_bytes()).hexdigest()
    folder = workplace("latents", sources, params.data.mirror, weights)
    write_latents(
        Images(IMAGES),
        lambda batch: encode(vae, batch),
        folder,
        vae.config["scaling_factor"],
        params.data.mirror,
        params.compute.vae_batch,
        params.compute.workers,
    )
    publish(folder, LATENTS)


if __name__ == "__main__":
    run_stage(main, distributed=True)
