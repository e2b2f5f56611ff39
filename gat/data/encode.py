"""Encodes images and writes the latents folder that `gat.data.latents` reads."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gat.data.images import Images
from gat.data.shards import SHARD, Advance, write_shards
from gat.files import atomic_write, write_json
from gat.runtime import wait_for_everyone

Encoder = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # see gat.data.vae.encode


class _ImageBatches(Dataset[np.ndarray]):
    """Item i: the images of the i-th range, uint8 (b, H, W, 3)."""

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
    """Encode every image, and with `mirror` its mirror image, into a latents folder.

    All processes must call it. Files that an interrupted call has written are kept.
    """
    flips = 2 if mirror else 1

    def write(path: Path, rows: range, advance: Advance) -> None:
        parts = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        loader = DataLoader(
            _ImageBatches(images, parts), batch_size=None, num_workers=workers, collate_fn=_identity_collate
        )
        with path.open("wb") as file:  # not a memory map: on a full disk it kills the process without an error
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
        write_json(folder / "latents.json", info)
    wait_for_everyone()


def _identity_collate(batch: Any) -> Any:
    return batch
