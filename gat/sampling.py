"""Samples for evaluation, where sample i depends on the seed and i alone, and their features."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

from gat.metrics import Reference, evenly_spaced
from gat.networks import Z_DIM, Generator
from gat.seeds import generator_of
from gat.vae import decode

_BLOCK = 1024  # samples whose noise is drawn together


@lru_cache(maxsize=4)
def _noise_block(seed: int, block: int) -> Tensor:
    return torch.randn(_BLOCK, Z_DIM, generator=generator_of(seed, 3, block))


def sample_inputs(seed: int, start: int, stop: int, classes: int) -> tuple[Tensor, Tensor]:
    """Noise z (n, 64) and labels (n,) of samples `start` to `stop`; the labels go round the classes."""
    blocks = range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
    noise = torch.cat([_noise_block(seed, block) for block in blocks])
    offset = blocks.start * _BLOCK
    return noise[start - offset : stop - offset], torch.arange(start, stop) % classes


class Sampler:
    """Makes images of a generator: `sampler(start, stop)` are samples `start` to `stop`, uint8 (n, H, W, 3).

    Args:
        generator, vae: on one device.
        seed: of the noise.
        truncation_psi, guidance_scale: as in `Generator.style`.
        vae_batch: images that the VAE decodes at a time.

    Attributes:
        images_per_second: of this process, so far; 0 before the first.
    """

    def __init__(
        self,
        generator: Generator,
        vae: AutoencoderKL,
        seed: int,
        truncation_psi: float = 0.0,
        guidance_scale: float = 1.0,
        vae_batch: int = 64,
    ) -> None:
        self.generator, self.vae, self.seed, self.vae_batch = generator, vae, seed, vae_batch
        self.style = truncation_psi, guidance_scale
        self._made, self._seconds = 0, 0.0

    @property
    def images_per_second(self) -> float:
        return self._made / self._seconds if self._made else 0.0

    @torch.no_grad()
    def _make(self, z: Tensor, labels: Tensor) -> np.ndarray:
        begin, device = time.perf_counter(), self.generator.class_means.device
        latents = self.generator(z.to(device), labels.to(device), *self.style)
        images = decode(self.vae, latents, self.vae_batch).cpu().numpy()
        self._made, self._seconds = self._made + len(images), self._seconds + time.perf_counter() - begin
        return images

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return self._make(*sample_inputs(self.seed, start, stop, self.generator.config["classes"]))

    def of_classes(self, classes: int = 10, each: int = 10) -> np.ndarray:
        """The first samples of each of the first classes, as one picture with a row a class: uint8 (H, W, 3)."""
        count = self.generator.config["classes"]
        rows = [
            sample_inputs(self.seed, label + i * count, label + i * count + 1, count)
            for label in range(min(classes, count))
            for i in range(each)
        ]
        z, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
        return image_grid(self._make(z, labels), each)


MakeImages = Callable[[int, int], np.ndarray]  # (start, stop) -> those images, uint8 (n, H, W, 3)
Extract = Callable[[np.ndarray], np.ndarray]  # images -> features (n, d)


def _my_share(
    images: MakeImages, extract: Extract, count: int, batch_size: int, progress: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """This process's batches of features, each with the number of its first image."""
    state = PartialState()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    for start in tqdm(
        starts, desc="samples", unit="batch", disable=not (progress and state.is_main_process), leave=False
    ):
        yield start, extract(images(start, min(start + batch_size, count)))


def sample_features(
    images: MakeImages,
    extract: Extract,
    count: int,
    batch_size: int,
    progress: bool = True,
) -> np.ndarray:
    """Features (count, d) of samples 0 to count, in order, made by all processes; every process gets them all.

    Args:
        images: makes samples.
        extract: makes features of them.
        count: how many samples.
        batch_size: how many at a time on each process.
        progress: show a bar.
    """
    mine = list(_my_share(images, extract, count, batch_size, progress))
    return np.concatenate([features for _, features in sorted(gather_object(mine), key=lambda item: item[0])])


def reference_of(
    images: MakeImages,
    extract: Extract,
    count: int,
    batch_size: int,
    keep: int,
    labels: np.ndarray | None = None,
    progress: bool = True,
) -> Reference:
    """Statistics of the features of images 0 to count, and the features of `keep` of them, spread evenly.

    All processes take part, and every one gets it; memory does not grow with `count`. `labels` (count,) are the
    images' classes, where known; other arguments as in `sample_features`.
    """
    kept = evenly_spaced(count, keep)
    total, products, rows = np.zeros(1), np.zeros(1), []
    for start, features in _my_share(images, extract, count, batch_size, progress):
        exact = features.astype(np.float64)
        total, products = total + exact.sum(0), products + exact.T @ exact
        mine = kept[(kept >= start) & (kept < start + len(features))]
        rows.append((start, features[mine - start]))
    parts = gather_object([(total, products, rows)])
    mu = sum(total for total, _, _ in parts) / count
    sigma = (sum(products for _, products, _ in parts) - count * np.outer(mu, mu)) / (count - 1)
    all_rows = sorted((row for _, _, rows in parts for row in rows), key=lambda row: row[0])
    kept_labels = None if labels is None else np.asarray(labels[kept])
    return Reference(mu, sigma, np.concatenate([features for _, features in all_rows]), kept_labels)


def save_npz(images: MakeImages, path: Path, count: int, batch_size: int) -> None:
    """Samples 0 to count as an `.npz` like ADM's: `arr_0` uint8 (count, H, W, 3). All processes take part.

    The array goes through a file next to `path`, which all processes must see, never through memory as a whole.
    """
    state = PartialState()
    array = path.with_suffix(".unfinished.npy")
    shape = (count, *images(0, 1).shape[1:])
    if state.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(array, mode="w+", dtype=np.uint8, shape=shape).flush()
    state.wait_for_everyone()
    samples = np.lib.format.open_memmap(array, mode="r+")
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    for start in tqdm(starts, desc=path.name, unit="batch", disable=not state.is_main_process, leave=False):
        stop = min(start + batch_size, count)
        samples[start:stop] = images(start, stop)
    samples.flush()
    state.wait_for_everyone()
    if state.is_main_process:
        np.savez(path, np.load(array, mmap_mode="r"))
        array.unlink()


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 (N, H, W, 3) in rows of `columns`, as one uint8 (rows·H, columns·W, 3)."""
    rows = len(images) // columns
    height, width = images.shape[1:3]
    grid = images[: rows * columns].reshape(rows, columns, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
