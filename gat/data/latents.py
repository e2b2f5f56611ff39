"""Reads latents, stored as posterior moments, in the order of training.

Folder: `moments-00000.npy`, …, float16 (n, F, 2C, H, W), unscaled mean, then standard deviation, of every image and, if
F = 2, of its mirror image; `labels.npy` int64 (N,); `latents.json`. Only `gat.data.encode.write_latents` writes it, and
only `Latents` reads it.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gat.data.images import Images
from gat.seeds import Purpose, seed_of


class Latents:
    """A latents folder. Rows are read by file position, which is faster than a memory map.

    Attributes:
        labels: int64 (N,).
        classes: names by label.
        channels: C of a latent.
        size: side of a latent.
        flips: F, 2 with mirror images, otherwise 1.
        scaling_factor: scales latents to a standard deviation of 1.
        digest: hash of the contents.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        info = json.loads((self.folder / "latents.json").read_text())
        paths = sorted(self.folder.glob("moments-*.npy"))
        first = np.load(paths[0], mmap_mode="r")
        self._files = [path.open("rb", buffering=0) for path in paths]
        self._shard, self._start = len(first), first.offset
        self.labels: np.ndarray = np.load(self.folder / "labels.npy", mmap_mode="r")
        self.classes: list[str] = info["classes"]
        self.flips: int = first.shape[1]
        self.channels: int = first.shape[2] // 2
        self.size: int = first.shape[-1]
        self.scaling_factor: float = info["scaling_factor"]
        self.digest: str = info["digest"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Latents, (self.folder,)  # pickles the path, not the arrays

    def __len__(self) -> int:
        return len(self.labels)

    def moments(self, index: np.ndarray, flip: np.ndarray) -> np.ndarray:
        """Moments float16 (B, 2C, H, W) of samples `index` (B,): of the image (`flip` 0) or its mirror image (1)."""
        moments = np.empty((len(index), 2 * self.channels, self.size, self.size), dtype=np.float16)
        shard, row = np.divmod(index, self._shard)
        positions = (self._start + (row * self.flips + flip) * moments[0].nbytes).tolist()
        files = [self._files[i] for i in shard.tolist()]
        if hasattr(os, "posix_fadvise"):  # announcing all rows of a batch to the disk is three times as fast
            for file, position in zip(files, positions, strict=True):
                os.posix_fadvise(file.fileno(), position, moments[0].nbytes, os.POSIX_FADV_WILLNEED)
        for item, file, position in zip(moments, files, positions, strict=True):
            if os.preadv(file.fileno(), [item.data], position) != item.nbytes:
                raise OSError(f"{file.name} is shorter than its header says; write it again: dvc repro --force latents")
        return moments


class Batch(NamedTuple):
    """The data of one step on one process."""

    moments: Tensor  # (b, 2C, H, W) float16
    labels: Tensor  # (b,) int64
    images: Tensor | None = None  # (b, H', W', 3) uint8, mirrored like the moments


class TrainingBatches(Dataset[Batch]):
    """This process's part of the batch of every training step: item `step` is a `Batch`.

    The samples are a stream of random permutations of the data: none occurs twice in an epoch, for any batch size. The
    batch of a step does not depend on earlier steps, so a resumed training continues with the same batches.

    Args:
        latents: the training data.
        batch_size: total over all processes.
        seed: of the order and of the choice of mirror images.
        rank, processes: index of this process, and number of processes.
        images: the images behind the latents, for a teacher; None: batches have no images.
    """

    def __init__(
        self,
        latents: Latents,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
        images: Images | None = None,
    ) -> None:
        self.latents, self.batch_size, self.seed, self.images = latents, batch_size, seed, images
        local_batch_size = batch_size // processes
        self.local_slice = slice(rank * local_batch_size, (rank + 1) * local_batch_size)
        self._epoch, self._order = -1, np.empty(0, dtype=np.uint32)

    def indices(self, step: int) -> np.ndarray:
        """Indices of the samples in the batch of a step, over all processes: int64 (batch_size,)."""
        count, parts = len(self.latents), []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, count)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = np.arange(count, dtype=np.uint32)
                np.random.default_rng(seed_of(self.seed, Purpose.ORDER, epoch)).shuffle(self._order)
            parts.append(self._order[offset : offset + end - position])
            position += len(parts[-1])
        return np.concatenate(parts).astype(np.int64)

    def __getitem__(self, step: int) -> Batch:
        index = self.indices(step)
        flip = np.random.default_rng(seed_of(self.seed, Purpose.MIRROR, step)).integers(
            self.latents.flips, size=len(index)
        )
        index, flip = index[self.local_slice], flip[self.local_slice]
        moments, labels = self.latents.moments(index, flip), self.latents.labels[index]
        images = None
        if self.images is not None:
            pixels = self.images[index]
            pixels[flip == 1] = pixels[flip == 1, :, ::-1]
            images = torch.from_numpy(pixels)
        return Batch(torch.from_numpy(moments), torch.from_numpy(labels), images)
