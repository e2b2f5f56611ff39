"""Samples for evaluation: sample i depends on the seed and i alone."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import tqdm

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


@torch.no_grad()
def sample_images(
    generator: Generator,
    vae: AutoencoderKL,
    seed: int,
    start: int,
    stop: int,
    truncation_psi: float = 0.0,
    guidance_scale: float = 1.0,
) -> np.ndarray:
    """Samples `start` to `stop` as uint8 images (n, H, W, 3)."""
    z, labels = sample_inputs(seed, start, stop, generator.config["classes"])
    device = generator.class_means.device
    latents = generator(z.to(device), labels.to(device), truncation_psi, guidance_scale)
    return decode(vae, latents).cpu().numpy()


def sample_features(
    images: Callable[[int, int], np.ndarray],
    extract: Callable[[np.ndarray], np.ndarray],
    count: int,
    batch_size: int,
    progress: bool = True,
) -> np.ndarray:
    """Features (count, d) of samples 0 to count, in order, made by all processes; every process gets them all.

    Args:
        images: function of (start, stop) to those samples, uint8 (n, H, W, 3).
        extract: function of images to features (n, d).
        count: how many samples.
        batch_size: how many at a time on each process.
        progress: show a bar.
    """
    state = PartialState()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    bar = tqdm(starts, desc="samples", unit="batch", disable=not (progress and state.is_main_process), leave=False)
    mine = [(start, extract(images(start, min(start + batch_size, count)))) for start in bar]
    return np.concatenate([features for _, features in sorted(gather_object(mine), key=lambda item: item[0])])


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 (N, H, W, 3) in rows of `columns`, as one uint8 (rows·H, columns·W, 3)."""
    rows = len(images) // columns
    height, width = images.shape[1:3]
    grid = images[: rows * columns].reshape(rows, columns, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
