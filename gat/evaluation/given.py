"""Samples that another model has made: an `.npz` in ADM's format, or a folder of images."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gat.config import ParamsError
from gat.data.sources import Source, load_source
from gat.evaluation.features import SampleFn

MINIMUM = 100  # samples


class GivenSamples(NamedTuple):
    """Samples of another model.

    Attributes:
        images: by index.
        number: of images.
        labels: (number,) their classes; None: unknown.
        left_out: lines on files of the folder that are no images.
    """

    images: SampleFn
    number: int
    labels: np.ndarray | None
    left_out: list[str]


def read_samples(path: Path, classes: list[str], key: str) -> GivenSamples:
    """Read samples of another model.

    Args:
        path: an `.npz` with images `arr_0`, uint8 (N, H, W, 3), and optionally labels `arr_1`, (N,); or a folder of
            images of one size, in one subfolder per class if the names of these are class names.
        classes: names of the classes by label.
        key: of params.yaml, which errors name.

    Raises:
        ParamsError: it is neither, cannot be read, or has fewer than 100 images.
    """
    try:
        given = _read_folder(path, classes) if path.is_dir() else _read_npz(path, len(classes))
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).removeprefix("data.source: ").split())
        raise ParamsError(f"{key}: {path} has no samples that can be read ({reason or type(error).__name__})") from None
    if given.number < MINIMUM:
        raise ParamsError(f"{key}: {path} has {given.number} images; at least {MINIMUM} are needed")
    return given


def _read_npz(path: Path, classes: int) -> GivenSamples:
    images = _map_array(path)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"arr_0 is {images.dtype} {images.shape}, not uint8 (N, H, W, 3)")
    with np.load(path, allow_pickle=False) as file:
        labels = file["arr_1"] if "arr_1" in file.files else None
    if labels is not None:
        integer = labels.shape == (len(images),) and np.issubdtype(labels.dtype, np.integer)
        if not integer or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"arr_1 is not {len(images)} labels from 0 to {classes - 1}")
    return GivenSamples(lambda start, stop: np.asarray(images[start:stop]), len(images), labels, [])


def _map_array(path: Path) -> np.ndarray:
    """The array `arr_0` of an `.npz`: a map of the file or, if it is compressed, in memory."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("arr_0.npy")
        if entry.compress_type == zipfile.ZIP_STORED:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                header = file.tell()
            if dtype.hasobject:
                raise ValueError("arr_0 is an array of objects")
            if header + int(np.prod(shape)) * dtype.itemsize != entry.file_size:
                raise ValueError("arr_0 is cut off")
            with path.open("rb") as whole:
                whole.seek(entry.header_offset + 26)  # in the entry's own header: lengths of its name and extra field
                name, extra = np.frombuffer(whole.read(4), "<u2")
            offset = entry.header_offset + 30 + int(name) + int(extra) + header
            return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["arr_0"])


def _read_folder(path: Path, classes: list[str]) -> GivenSamples:
    source, labels = _find_images(path, classes)
    encoded = source.data["image"]
    width, height = _decode(encoded[0], path).size

    def images(start: int, stop: int) -> np.ndarray:
        pictures = [_decode(encoded[i], path) for i in range(start, stop)]
        for i, picture in enumerate(pictures, start):
            if picture.size != (width, height):
                name = encoded[i]["path"] or f"image {i}"
                raise ParamsError(f"samples: {name} has {picture.size} pixels, the first image {(width, height)}")
        return np.stack([np.asarray(picture) for picture in pictures])

    return GivenSamples(images, len(source.data), labels, source.left_out)


def _find_images(path: Path, classes: list[str]) -> tuple[Source, np.ndarray | None]:
    """The images of a folder, with labels if its subfolders are classes."""
    if any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()):
        source = load_source(str(path))
        if {*source.classes} <= {*classes}:
            return source, np.array([classes.index(name) for name in source.classes])[source.data["label"]]
    return load_source(str(path), label_column=None), None


def _decode(encoded: dict[str, object], folder: Path) -> Image.Image:
    """An image in RGB."""
    content, name = encoded["bytes"], encoded["path"]
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else folder / str(name)) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ParamsError(f"samples: {name} in {folder} is not an image that can be read ({error})") from None
