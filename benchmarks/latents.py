"""Images to latents: images per second, and the share of the time that the VAE takes.

python benchmarks/latents.py [--vae FOLDER_OR_HUB_ID] [--images N] [--size PIXELS] [--workers N]

Without --vae one of Stable Diffusion's architecture with random weights, of --channels.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from sklearn.datasets import load_sample_images

from gat.data.crop import write_images
from gat.data.encode import write_latents
from gat.data.images import Images
from gat.data.sources import load_source
from gat.data.vae import encode, load_vae
from gat.runtime import make_accelerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae")
    parser.add_argument("--channels", type=int, nargs=4, default=[128, 256, 512, 512])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    arguments = parser.parse_args()
    device = make_accelerator().device
    rng = np.random.default_rng(0)
    photo = load_sample_images().images[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for i in range(arguments.images):
            top, left = rng.integers(0, 427 - 300), rng.integers(0, 640 - 300)
            Image.fromarray(photo[top : top + 300, left : left + 300]).save(folder / f"in/{i:05d}.jpg", quality=95)
        begin = time.perf_counter()
        source = load_source(str(folder / "in"), label_column=None)
        write_images(source, folder / "images", arguments.size, progress=False)
        cutting = time.perf_counter() - begin
        if arguments.vae is None:
            torch.manual_seed(0)
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=tuple(arguments.channels),
                layers_per_block=2,
                latent_channels=4,
                norm_num_groups=min(32, arguments.channels[0]),
            ).save_pretrained(folder / "vae")
        vae = load_vae(arguments.vae or folder / "vae", device)
        spent = 0.0

        def timed(batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal spent
            begin = time.perf_counter()
            moments = encode(vae, batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            spent += time.perf_counter() - begin
            return moments

        images = Images(folder / "images")
        begin = time.perf_counter()
        options = {"mirror": True, "batch_size": arguments.batch, "workers": arguments.workers, "progress": False}
        write_latents(images, timed, folder / "latents", 0.18215, **options)
        whole = time.perf_counter() - begin
        kept = sum(path.stat().st_size for path in (folder / "images").glob("*.arrow")) / len(images)
    print("| what | value |\n| --- | --- |")
    print(f"| images cut and encoded a second | {len(images) / cutting:.1f} |")
    print(f"| bytes an image | {kept:,.0f} |")
    print(f"| images and mirror images to latents a second | {2 * len(images) / whole:.2f} |")
    print(f"| share of the time spent in the VAE | {spent / whole:.3f} |")


if __name__ == "__main__":
    main()
