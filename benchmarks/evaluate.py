"""Samples to features in memory, against writing PNGs and calling clean-fid on the folder.

python benchmarks/evaluate.py PIPELINE EXTRACTOR [--samples N] [--batch N] [--vae-batch N] [--rounds N]
                                                 [--workers N] [--png-batch N]
(after dvc repro: runs/XL-2/seed-0/pipeline data/extractor)

Both paths in turn, since machines are noisy; medians over the rounds. clean-fid reads the folder with its own defaults,
unless told otherwise.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid as cleanfid
from PIL import Image

from gat.data.vae import load_vae
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import compute_features
from gat.evaluation.fid import Reference, fid
from gat.evaluation.sampling import Sampler
from gat.release.pipeline import GATPipeline
from gat.runtime import make_accelerator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("extractor", type=Path)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--vae-batch", type=int, default=256, help="compute.vae_batch (default: the study's, 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=12, help="of clean-fid (default: its own, 12)")
    parser.add_argument("--png-batch", type=int, default=32, help="of clean-fid (default: its own, 32)")
    arguments = parser.parse_args()
    device = make_accelerator().device
    pipeline, extractor = GATPipeline.from_pretrained(arguments.pipeline), Extractor(arguments.extractor, device)
    generator, vae = pipeline.generator.to(device), load_vae(arguments.pipeline / "vae", device)
    sampler = Sampler(generator, vae, seed=0, vae_batch=arguments.vae_batch)
    sampler(0, arguments.batch)  # warm
    reference = Reference.from_features(extractor(Sampler(generator, vae, seed=1)(0, 500)))

    def in_memory() -> np.ndarray:
        return compute_features(sampler, extractor, arguments.samples, arguments.batch, progress=False)

    def by_png_folder() -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            for start in range(0, arguments.samples, arguments.batch):
                images = sampler(start, min(start + arguments.batch, arguments.samples))
                for i, image in enumerate(images, start):
                    Image.fromarray(image).save(Path(folder) / f"{i:06d}.png")
            return cleanfid.get_folder_features(
                folder,
                extractor.model,
                num_workers=arguments.workers,
                batch_size=arguments.png_batch,
                device=torch.device(device),
                mode=extractor.mode,
                custom_fn_resize=extractor.resize,
                verbose=False,
            )

    seconds = []
    for _ in range(arguments.rounds):
        times = [time.perf_counter()]
        for start in range(0, arguments.samples, arguments.batch):
            sampler(start, min(start + arguments.batch, arguments.samples))
        times.append(time.perf_counter())
        features = in_memory()
        times.append(time.perf_counter())
        theirs_features = by_png_folder()
        seconds.append(np.diff([*times, time.perf_counter()]))
    sampling, ours, theirs = np.median(seconds, axis=0)
    first, second = fid(features, reference), fid(theirs_features, reference)
    print("| path | images/s | FID to a fixed reference |\n| --- | --- | --- |")
    print(f"| in memory | {arguments.samples / ours:,.0f} | {first:.6f} |")
    print(f"| PNG folder | {arguments.samples / theirs:,.0f} | {second:.6f} |")
    print(
        f"\nin memory {theirs / ours:.2f} times as fast; sampling alone: {arguments.samples / sampling:,.0f} images/s"
    )


if __name__ == "__main__":
    main()
