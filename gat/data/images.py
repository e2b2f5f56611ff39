"""Reads the folder of images that all training and evaluation uses.

Folder: `images-00000.arrow`, …, Arrow tables of `image` (encoded file) and `label` (int64), in the order of the source;
`images.json`: side, class names, the share of each class held out of all training (`holdout`), images that could not be
read (`skipped`), and other files left out (`left_out`).
Only `gat.data.crop.write_images` writes it, and only `Images` reads it.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Which of the images with these labels (N,) are held out: evenly spaced ones of each class, boolean (N,)."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(round(share * len(rows)), len(rows) - 1)
        chosen[rows[((np.arange(count) + 0.5) * len(rows) / max(count, 1)).astype(int)]] = True
    return chosen


class Images:
    """The images of a folder that `gat.data.crop.write_images` wrote: memory-mapped, decoded on access.

    Args:
        folder: the folder.
        held: the images that are held out, in place of those that are trained on.

    Attributes:
        labels: int64 (N,).
        classes: names by label.
        size: side in pixels.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | Path, held: bool = False) -> None:
        self.folder, self._held = Path(folder), held
        info = json.loads((self.folder / "images.json").read_text())
        self.classes: list[str] = info["classes"]
        self.size: int = info["size"]
        files = sorted(self.folder.glob("images-*.arrow"))
        table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files])
        self._encoded = table["image"]
        labels: np.ndarray = table["label"].to_numpy()
        self._rows = np.flatnonzero(held_out(labels, info["holdout"]) == held)
        self.labels = labels[self._rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return Images, (self.folder, self._held)  # pickles the path, not the images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Images by slice or integer array: uint8 (B, H, W, 3)."""
        rows = self._rows[index].tolist()
        pixels = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        for i, row in enumerate(rows):
            with Image.open(io.BytesIO(self._encoded[row].as_buffer())) as image:
                pixels[i] = np.asarray(image)
        return pixels

    def class_examples(self, classes: int = 10, each: int = 10) -> np.ndarray:
        """Evenly spaced images of each of the first classes, class by class: uint8 (N, H, W, 3).

        Classes with fewer than `each` images are skipped; if all have fewer, `each` becomes the largest class size.
        """
        rows = [np.flatnonzero(self.labels == label) for label in range(len(self.classes))]
        each = min(each, max(map(len, rows)))
        enough = [own for own in rows if len(own) >= each][:classes]
        return self[np.concatenate([own[np.linspace(0, len(own) - 1, each).astype(int)] for own in enough])]

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The images from `start` to `stop`, in order, in batches of `size`."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, size):
            yield self[first : min(first + size, stop)]
