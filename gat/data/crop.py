"""Converts images to square RGB and writes the folder that `gat.data.images` reads."""

import io
import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from PIL import Image, ImageOps, UnidentifiedImageError

from gat.config import ParamsError
from gat.data.shards import SHARD, Advance, write_shards
from gat.data.sources import Source
from gat.files import write_json
from gat.runtime import cores, wait_for_everyone

ENCODINGS: dict[str, dict[str, Any]] = {
    "webp": {"format": "WEBP", "lossless": True, "quality": 0, "method": 1, "exact": True},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}
_CHUNK = 256  # images decoded at a time, and rows of a record batch


class BrokenImageError(ParamsError):
    """An image of the source cannot be read; the message names it and the params key that decides what happens."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to upright RGB: of 16-bit grayscale the upper byte, transparency as white.

    Raises:
        ValueError: the white level is unknown, because pixels are floats, have 32 bits, or have 16 bits of which the
            upper four are unused, as in images of 12-bit cameras.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats, whose white level is unknown; convert it to 8 bits")
    if image.mode.startswith("I"):
        grey: np.ndarray = np.asarray(image).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError("its pixels have 32 bits, whose white level is unknown; convert it to 8 bits")
        if 0 < grey.max(initial=0) < 4096:
            raise ValueError(f"its pixels have 16 bits, but none is above {grey.max()}; convert it to 8 bits")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Upright RGB square of side `size`: ADM's center crop (halved by box filters, resized bicubically, cropped)."""
    image = to_rgb(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _crop_and_encode(
    cell: dict[str, Any] | None, size: int, encoding: str, archive: ZipFile | None = None
) -> bytes | Exception:
    """One image of the source, cropped and encoded, or the error that occurred; `archive`: in which its path is."""
    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        return ValueError("no image")
    try:
        source: Any = cell["path"]
        if archive is not None:
            source = io.BytesIO(archive.read(cell["path"]))
        elif cell["bytes"] is not None:
            source = io.BytesIO(cell["bytes"])
        buffer = io.BytesIO()
        with Image.open(source) as image:
            center_crop(image, size).save(buffer, **ENCODINGS[encoding])
        return buffer.getvalue()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, …
        return error


def write_images(
    source: Source,
    folder: Path,
    size: int,
    encoding: str = "webp",
    on_error: str = "stop",
    holdout: float = 0.0,
    shard: int = SHARD,
    progress: bool = True,
) -> list[str]:
    """Write every image of a source to `folder` as a square of side `size`.

    All processes must call it. Files that an interrupted call has written are kept.

    Args:
        source: see `gat.data.sources.load_source`.
        folder: created if missing.
        size: side in pixels.
        encoding: `webp` (lossless), or `jpeg` (quality 95, full color resolution), about half as large.
        on_error: `stop` if an image cannot be read, or `skip` it.
        holdout: share of each class that is held out of all training; see `gat.data.images.Images`.
        shard: images per file.
        progress: show a progress bar.

    Returns:
        A line with name and reason for each skipped image.

    Raises:
        BrokenImageError: an image cannot be read and `on_error` is `stop`, or none of them can be.
    """
    data = source.data
    schema = pa.schema([("image", pa.large_binary()), ("label", pa.int64())])

    def write(path: Path, rows: range, advance: Advance) -> None:
        skipped: list[str] = []
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for start in range(rows.start, rows.stop, _CHUNK):
                part = data[start : min(start + _CHUNK, rows.stop)]
                encoded = list(pool.map(lambda cell: _crop_and_encode(cell, size, encoding, archive), part["image"]))
                skipped += _failures(part["image"], encoded, start, on_error)
                kept = [i for i, image in enumerate(encoded) if isinstance(image, bytes)]
                columns = [[encoded[i] for i in kept], [part["label"][i] for i in kept]]
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
                advance(len(encoded))
        index = re.sub(r"\D", "", path.stem)
        (folder / f"skipped-{index}.json").write_text(json.dumps(skipped))

    with (
        nullcontext() if source.archive is None else ZipFile(source.archive) as archive,
        ThreadPoolExecutor(cores()) as pool,
    ):
        write_shards(folder, "images", "arrow", len(data), write, shard, progress)
    if PartialState().is_main_process:
        _write_info(folder, size, source, holdout)
    wait_for_everyone()
    skipped: list[str] = json.loads((folder / "images.json").read_text())["skipped"]
    if len(skipped) == len(data):
        raise BrokenImageError(f"data.source: none of its images can be read, such as {skipped[0]}")
    return skipped


def _failures(
    cells: list[dict[str, Any] | None], encoded: list[bytes | Exception], start: int, on_error: str
) -> list[str]:
    """A line with name and reason for each image that could not be encoded; `start` is the row of the first image."""
    lines = []
    for row, (cell, image) in enumerate(zip(cells, encoded, strict=True), start):
        if isinstance(image, Exception):
            if on_error == "stop":
                raise BrokenImageError(
                    f"data.on_error: {_name(cell, row)} cannot be read ({_reason(image)}); to leave it out, set skip"
                )
            lines.append(f"{_name(cell, row)}: {_reason(image)}")
    return lines


def _reason(error: Exception) -> str:
    """The message of an error without paths, so that `images.json` is the same on every machine."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image format that Pillow reads"
    return re.sub(r"<_io\.[^>]*>|'/[^']*'|\"/[^\"]*\"", "it", str(error))


def _write_info(folder: Path, size: int, source: Source, holdout: float) -> None:
    """Write `images.json` if it is missing, and remove the partial lists of skipped images, which it includes."""
    path, lists = folder / "images.json", sorted(folder.glob("skipped-*.json"))
    if not path.exists():
        skipped = list(itertools.chain.from_iterable(json.loads(part.read_text()) for part in lists))
        about = {"size": size, "classes": source.classes, "holdout": holdout}
        info = about | {"skipped": skipped, "left_out": source.left_out}
        write_json(path, info)
    for part in lists:
        part.unlink()


def _name(cell: dict[str, Any] | None, row: int) -> str:
    """An image's row and, if known, its file name with the class folder."""
    path = cell["path"] if cell is not None else None
    return f"image {row} ({'/'.join(Path(path).parts[-2:])})" if path else f"image {row}"
