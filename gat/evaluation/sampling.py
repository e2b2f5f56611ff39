"""Samples for evaluation: sample i depends only on the seed, on i, and on the class proportions."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from tqdm import tqdm

from gat.config import ParamsError
from gat.data.pixels import decode
from gat.evaluation.features import SampleFn
from gat.gan.networks import Z_DIM, Generator
from gat.runtime import wait_for_everyone
from gat.seeds import Purpose, generator_of

_BLOCK = 1024  # samples per draw of noise


@lru_cache(maxsize=4)
def _noise_block(seed: int, block: int) -> Tensor:
    return torch.randn(_BLOCK, Z_DIM, generator=generator_of(seed, Purpose.SAMPLES, block))


def seed_noise(seeds: Sequence[int]) -> Tensor:
    """Noise z (B, Z_DIM), row i as `GATPipeline` draws it with `generator=torch.Generator().manual_seed(seeds[i])`."""
    return randn_tensor((len(seeds), Z_DIM), generator=[torch.Generator().manual_seed(seed) for seed in seeds])


def label_cycle(class_counts: np.ndarray) -> Tensor:
    """Labels (sum of counts,) with these counts per class, evenly spread: 0, 1, 2, …, 0, 1, 2, … if all are equal."""
    places = [(np.arange(count) + 0.5) / count for count in class_counts]
    labels = np.repeat(np.arange(len(class_counts)), class_counts)
    return torch.from_numpy(labels[np.argsort(np.concatenate(places), kind="stable")])


def sample_inputs(seed: int, start: int, stop: int, cycle: Tensor) -> tuple[Tensor, Tensor]:
    """Noise z (n, Z_DIM) and labels (n,) of samples `start` to `stop`; labels repeat `cycle` (see `label_cycle`)."""
    blocks = range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
    noise = torch.cat([_noise_block(seed, block) for block in blocks])
    offset = blocks.start * _BLOCK
    return noise[start - offset : stop - offset], cycle[torch.arange(start, stop) % len(cycle)]


class Sampler:
    """Samples of a generator: `sampler(start, stop)` returns samples `start` to `stop`, uint8 (n, H, W, 3).

    Args:
        generator, vae: on the same device.
        seed: of the noise.
        truncation_psi, guidance_scale: as in `Generator.mapping`.
        vae_batch: images per batch of the VAE.
        class_counts: (classes,) proportions of the labels; None: each class equally often.

    Raises:
        ParamsError: the generator has another number of classes.
        FloatingPointError: on a call, if latents are not finite.

    Attributes:
        cycle: labels of the first samples; all further labels repeat them.
    """

    def __init__(
        self,
        generator: Generator,
        vae: AutoencoderKL,
        seed: int,
        truncation_psi: float = 0.0,
        guidance_scale: float = 1.0,
        vae_batch: int = 64,
        class_counts: np.ndarray | None = None,
    ) -> None:
        classes = generator.config["classes"]
        if class_counts is not None and len(class_counts) != classes:
            raise ParamsError(f"metrics.labels: the generator has {classes} classes, the images {len(class_counts)}")
        self.cycle = torch.arange(classes) if class_counts is None else label_cycle(class_counts)
        self.generator, self.vae, self.seed, self.vae_batch = generator, vae, seed, vae_batch
        self._options = truncation_psi, guidance_scale

    @torch.no_grad()
    def _sample(self, z: Tensor, labels: Tensor) -> np.ndarray:
        device = self.generator.w_avg.device
        latents = self.generator(z.to(device), labels.to(device), *self._options)
        if not torch.isfinite(latents).all():
            raise FloatingPointError("the generator's samples are not finite")
        return decode(self.vae, latents, self.vae_batch).cpu().numpy()

    def __call__(self, start: int, stop: int) -> np.ndarray:
        return self._sample(*sample_inputs(self.seed, start, stop, self.cycle))

    def class_examples(self, classes: int = 10, each: int = 10) -> np.ndarray:
        """Samples of the first classes, class by class: uint8 (N, H, W, 3).

        Image i of a class has the noise of pipeline seed i (`seed_noise`).
        """
        labels = torch.arange(min(classes, self.generator.config["classes"]))
        return self._sample(seed_noise(range(each)).repeat(len(labels), 1), labels.repeat_interleave(each))


def save_npz(images: SampleFn, path: Path, count: int, batch_size: int) -> None:
    """Write samples 0 to count as an `.npz` in ADM's format: `arr_0` uint8 (count, H, W, 3).

    All processes must call it, and `path` must be on a file system that they share. The samples are first written to a
    file next to it, and are never in memory all at once.
    """
    state = PartialState()
    array = path.with_suffix(".unfinished.npy")
    shape = (count, *images(0, 1).shape[1:])
    if state.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(array, mode="w+", dtype=np.uint8, shape=shape).flush()
    wait_for_everyone()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    offset = np.lib.format.open_memmap(array, mode="r").offset
    with array.open("r+b") as file:  # not a memory map: on a full disk it kills the process without an error
        for start in tqdm(starts, desc=path.name, unit="batch", disable=not state.is_main_process, leave=False):
            samples = images(start, min(start + batch_size, count))
            file.seek(offset + start * samples[0].nbytes)
            file.write(samples.tobytes())
    wait_for_everyone()
    if state.is_main_process:
        np.savez(path, np.load(array, mmap_mode="r"))
        array.unlink()
