"""Latents as posterior moments: their folder on disk, and the order in which training reads them.

Folder: `moments-00000.npy`, …, float16 (n, F, 2C, H, W), mean then standard deviation, unscaled, of every image and,
where F = 2, of its mirror image; `labels.npy` int64 (N,); `latents.json`. `write_latents` and `Latents` are its only
writer and reader.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gat.data.images import Images
from gat.data.shards import SHARD, Advance, write_shards
from gat.files import atomic_write
from gat.seeds import seed_of

Encoder = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # see gat.data.vae.encode


class _ImageBatches(Dataset[np.ndarray]):
    """Item i is images uint8 (b, H, W, 3), those of the i-th of the given ranges."""

    def __init__(self, images: Images, ranges: Iterable[range]) -> None:
        self.images, self.ranges = images, list(ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[self.ranges[index].start : self.ranges[index].stop]


def write_latents(
    images: Images,
    encode: Encoder,
    folder: Path,
    scaling_factor: float,
    mirror: bool,
    batch_size: int,
    workers: int = 0,
    shard: int = SHARD,
    progress: bool = True,
) -> None:
    """Encode every image, and its mirror image where asked, into a latents folder.

    All processes take part; what an interrupted call wrote stays.
    """
    flips = 2 if mirror else 1

    def write(path: Path, rows: range, advance: Advance) -> None:
        parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        loader = DataLoader(
            _ImageBatches(images, parts), batch_size=None, num_workers=workers, collate_fn=_identity_collate
        )
        with path.open("wb") as file:  # not through a memory map, which a full disk kills without an error
            for part, batch in zip(parts, loader, strict=True):
                both = (batch, np.ascontiguousarray(batch[:, :, ::-1]))[:flips]
                encoded = np.stack([torch.cat(encode(pixels), dim=1).half().cpu().numpy() for pixels in both], axis=1)
                if part.start == rows.start:
                    header = np.lib.format.header_data_from_array_1_0(encoded)
                    np.lib.format.write_array_header_1_0(file, header | {"shape": (len(rows), *encoded.shape[1:])})
                file.write(encoded.tobytes())
                advance(len(part))

    write_shards(folder, "moments", "npy", len(images), write, shard, progress)
    if PartialState().is_main_process:
        with atomic_write(folder / "labels.npy") as temporary:
            np.save(temporary, images.labels)
        digest = hashlib.blake2b(digest_size=16)
        for path in [*sorted(folder.glob("moments-*.npy")), folder / "labels.npy"]:
            with path.open("rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        info = {"scaling_factor": scaling_factor, "classes": images.classes, "digest": digest.hexdigest()}
        with atomic_write(folder / "latents.json") as temporary:
            temporary.write_text(json.dumps(info, indent=1) + "\n")
    PartialState().wait_for_everyone()


def _identity_collate(batch: Any) -> Any:
    return batch


class Latents:
    """A latents folder. Rows are read by position, which is faster than through a memory map.

    Attributes:
        labels: int64 (N,).
        classes: names by label.
        channels: C of a latent.
        size: side of a latent.
        flips: F, 2 with mirror images, else 1.
        scaling_factor: what makes the latents' standard deviation 1.
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
        """Moments float16 (B, 2C, H, W) of some samples (B,), of the image (flip 0) or its mirror image (1)."""
        moments = np.empty((len(index), 2 * self.channels, self.size, self.size), dtype=np.float16)
        shard, row = np.divmod(index, self._shard)
        positions = (self._start + (row * self.flips + flip) * moments[0].nbytes).tolist()
        files = [self._files[i] for i in shard.tolist()]
        if hasattr(os, "posix_fadvise"):  # asking the disk for all rows at once is three times as fast
            for file, position in zip(files, positions, strict=True):
                os.posix_fadvise(file.fileno(), position, moments[0].nbytes, os.POSIX_FADV_WILLNEED)
        for item, file, position in zip(moments, files, positions, strict=True):
            if os.preadv(file.fileno(), [item.data], position) != item.nbytes:
                raise OSError(
                    f"{file.name} is shorter than its header says; to write it again: dvc repro --force latents"
                )
        return moments


class Batch(NamedTuple):
    """The data of one step on one process."""

    moments: Tensor  # (b, 2C, H, W) float16
    labels: Tensor  # (b,) int64
    images: Tensor | None = None  # (b, H', W', 3) uint8, mirrored like the moments


class TrainingBatches(Dataset[Batch]):
    """This process's part of the batch of any step: item `step` is a `Batch`.

    The samples are a stream of random permutations of the data: none occurs twice in an epoch, whatever the batch size.
    The batch of a step does not depend on the steps before it; that is how a run resumes.

    Args:
        latents: where to read.
        batch_size: of all processes together.
        seed: of the order and of the choice of mirror images.
        rank, processes: this process's number, and how many there are.
        images: the images behind the latents, for a teacher; None: none are read.
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
        """Indices of the samples in the whole batch of a step, over all processes: int64 (batch_size,)."""
        count, parts = len(self.latents), []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, count)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = np.arange(count, dtype=np.uint32)
                np.random.default_rng(seed_of(self.seed, 0, epoch)).shuffle(self._order)
            parts.append(self._order[offset : offset + end - position])
            position += len(parts[-1])
        return np.concatenate(parts).astype(np.int64)

    def __getitem__(self, step: int) -> Batch:
        index = self.indices(step)
        flip = np.random.default_rng(seed_of(self.seed, 1, step)).integers(self.latents.flips, size=len(index))
        index, flip = index[self.local_slice], flip[self.local_slice]
        moments, labels = self.latents.moments(index, flip), self.latents.labels[index]
        images = None
        if self.images is not None:
            pixels = self.images[index]
            pixels[flip == 1] = pixels[flip == 1, :, ::-1]
            images = torch.from_numpy(pixels)
        return Batch(torch.from_numpy(moments), torch.from_numpy(labels), images)
