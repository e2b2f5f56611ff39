"""Whatever is written in params.yaml or lies in a folder: it is used, or named in one line.

`pytest tests/test_fuzz.py --hypothesis-profile thorough` tries thousands of params and hundreds of folders.
"""

import contextlib
import copy
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gat.config import Params, ParamsError, load_params
from gat.data.crop import write_images
from gat.data.images import Images
from gat.data.sources import load_source

PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "~", ".", "/", "null", "1e-5", "5e-05", "../x", "~nobody/x", "#fff", "auto", "none"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Where there is something to change."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [*([path] if path else []), *(place for key, value in inside for place in places(value, (*path, key)))]


@st.composite
def params_files(draw: st.DrawFn) -> bytes:
    """The default study's file with some values replaced, keys removed or added, or bytes changed."""
    content = copy.deepcopy(PARAMS)
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(places(content)))
        place = content
        for key in parents:
            place = place[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if action == "remove":
            del place[last]
        elif action == "add" and isinstance(place, dict):
            place[draw(SCALARS)] = draw(VALUES)
        else:
            place[last] = draw(VALUES)
    text = yaml.safe_dump(content, allow_unicode=draw(st.booleans()), sort_keys=False).encode(errors="replace")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=4)) + text[at + draw(st.integers(0, 3)) :]
    return text


@given(params_files())
def test_any_params_are_read_or_refused_in_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(content)
        try:
            assert isinstance(load_params(path), Params)
        except ParamsError as error:
            assert re.fullmatch(r"[^\n]+", str(error))


NAMES = st.one_of(
    st.sampled_from(["train", "val", "test", "eval", "cat", "dog", "Dog", "a b", "[x]", "ü", "new\nline", ".hidden"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
).filter(lambda name: name not in (".", ".."))
SUFFIXES = st.sampled_from(
    ["", ".jpg", ".JPG", ".png", ".Png", ".webp", ".tif", ".gif", ".bmp", ".txt", ".json", ".csv"]
)
KINDS = st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "1", "I;16", "F", "broken", "empty", "link", "dead link"])
FILES = st.tuples(st.lists(NAMES, max_size=3), NAMES, SUFFIXES, KINDS)


def write_file(path: Path, kind: str, elsewhere: Path) -> None:
    """An image of some mode, whatever the suffix says, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() or path.is_symlink():
        return
    if kind.endswith("link"):
        path.symlink_to(elsewhere if kind == "link" else path.parent / "nowhere")
    elif kind in ("broken", "empty"):
        path.write_bytes(b"\x89PNG broken" if kind == "broken" else b"")
    else:
        Image.new(kind, (8, 6)).save(path, "TIFF" if kind == "F" else "PNG")


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder, followlinks=True))


@given(st.lists(FILES, max_size=12), st.sampled_from(["train", "train", "val"]), st.booleans())
@settings(max_examples=max(20, settings().max_examples // 10))
def test_every_file_of_a_folder_is_used_or_named(files, split, labelled):
    root = Path(tempfile.mkdtemp())
    try:
        write_file(root / "elsewhere/0.png", "RGB", root)
        (root / "in").mkdir()
        for parents, name, suffix, mode in files:
            with contextlib.suppress(OSError):  # a file where a folder should be, or the other way round
                write_file(root.joinpath("in", *parents, name + suffix), mode, root / "elsewhere")
        try:
            source = load_source(str(root / "in"), split, label_column="label" if labelled else None)
            skipped = write_images(source, root / "out", 8, on_error="skip", progress=False)
        except ParamsError as error:
            assert re.fullmatch(r"[^\n]+", str(error))
            return
        images = Images(root / "out")
        counted = r"(\d+) files that are not images|'.*': (?!a class folder)|\".*\": "
        left_out = sum(int(count[1] or 1) for count in (re.match(counted, line) for line in source.left_out) if count)
        assert len(images) + len(skipped) + left_out in (count_files(root / "in"), count_files(root / "in" / split))
        assert {*images.labels.tolist()} <= {*range(len(source.classes))}
        names = [Path(cell["path"]).relative_to((root / "in").resolve()).parts for cell in source.data["image"]]
        if labelled:
            assert {part for name in names for part in name} >= {*source.classes}
    finally:
        shutil.rmtree(root)
