"""What lies in a folder or a file, how it is read, and what comes of it or is said of it."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from sklearn.datasets import load_sample_images

from gat.config import ParamsError
from gat.data.crop import BrokenImageError, center_crop, to_rgb, write_images
from gat.data.images import Images
from gat.data.sources import load_source, readable_names

ORIENTATION = 0x0112  # EXIF tag; 6: the camera was held sideways


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


PNG = encoded(Image.new("RGB", (20, 16), "red"))
CELL = {"bytes": PNG, "path": None}


def images(*names: str) -> dict[str, bytes]:
    return dict.fromkeys(names, PNG)


def jsonl(kinds: dict[str, Any]) -> dict[str, bytes]:
    lines = [json.dumps({"file_name": name, "kind": kind}) + "\n" for name, kind in kinds.items()]
    return {"metadata.jsonl": "".join(lines).encode()}


def table(labels: list, kind: object = None, cells: list | None = None) -> Dataset:
    features = None if kind is None else Features({"image": ImageColumn(), "label": kind})
    return Dataset.from_dict({"image": cells or [CELL] * len(labels), "label": labels}, features=features)


def parquet(*arguments: Any) -> bytes:
    buffer = io.BytesIO()
    table(*arguments).to_parquet(buffer)
    return buffer.getvalue()


def make(folder: Path, files: dict[str, bytes | Path | None]) -> Path:
    """Write files, links (a path from the folder on) and empty folders (None)."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, Path):
            path.symlink_to(folder / content)
        else:
            path.write_bytes(content)
    return folder


SUFFIXES = [
    f"a/{i}.{s}" for i, s in enumerate(["jpg", "JPG", "Jpg", "jpeg", "png", "webp", "bmp", "tif", "TIFF", "GIF"])
]
WORDS = ["cat/0.jpg", "cat/test.PNG", "cat/train_0.jpg", "eval/a-val.jpg", "training/[1].Jpg", "training/new\nline.TIF"]
AB = images("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")
SPLITS = images("train/cat/0.jpg", "train/cat/1.jpg", "train/dog/0.jpg", "val/cat/0.jpg", "val/dog/0.jpg")
FLAT = images("train/0.jpg", "train/1.jpg", "test/0.jpg", "test/1.jpg")
FLAT_TABLES = dict.fromkeys(("train/metadata.csv", "test/metadata.csv"), b"file_name,label\n0.jpg,a\n1.jpg,b\n")
CSV = {"metadata.csv": b"file_name,kind\na/0.jpg,NA\na/1.jpg,sit\n./b/0.jpg,sit\n"}
LINKS = {"dog": Path("../elsewhere"), "dog/again": Path(), "ant/1.png": Path("dog/0.png"), "ant/2.png": Path("nowhere")}
OTHERS = dict.fromkeys(("a/0.txt", "a/1.txt", "a/0.json", "metadata.csv", "b.h5"), b"{}")  # Pillow claims to read h5


def not_images(**counts: int) -> list[str]:
    return [f"{count} files that are not images (.{suffix})" for suffix, count in counts.items()]


# Files and options; the images that are found, in order, with their classes; lines on what is left out.
FOLDERS: dict[str, tuple[dict, dict, dict[str, str], list[str]]] = {
    "words in names are no splits": (images(*WORDS), {}, {name: name.split("/")[0] for name in WORDS}, []),
    "suffixes in any case": (images(*SUFFIXES), {}, dict.fromkeys(SUFFIXES, "a"), []),
    "links, not in circles": (
        images("ant/0.png", "../elsewhere/0.png", "../elsewhere/deep/1.png") | LINKS,
        {},
        {"ant/0.png": "ant", "ant/1.png": "ant", "dog/0.png": "dog", "dog/deep/1.png": "dog"},
        ["'ant/2.png': a broken link"],
    ),
    "other files and empty folders": (
        AB | images("a/._0.jpg") | OTHERS | {"c": None},
        {},
        {name: name[0] for name in AB},
        [
            "ATTENTION: 'metadata.csv' may have labels, but is not used: classes are folders",
            "'a/._0.jpg': hidden",
            *not_images(csv=1, h5=1, json=1, txt=2),
            "'c': a class folder without images",
        ],
    ),
    "training split": (SPLITS, {}, {name: name[6:9] for name in SPLITS if name.startswith("train")}, []),
    "table beside splits and in another one": (
        SPLITS | {"labels.tsv": b"", "val/labels.csv": b""},
        {},
        {name: name[6:9] for name in SPLITS if name.startswith("train")},
        ["ATTENTION: '../labels.tsv' may have labels, but is not used: classes are folders"],
    ),
    "another split": (SPLITS, {"split": "val"}, {"val/cat/0.jpg": "cat", "val/dog/0.jpg": "dog"}, []),
    "split without classes": (
        FLAT,
        {"split": "test", "label_column": None},
        {"test/0.jpg": "all", "test/1.jpg": "all"},
        [],
    ),
    "split with a table": (
        FLAT | FLAT_TABLES,
        {"split": "test"},
        {"test/0.jpg": "a", "test/1.jpg": "b"},
        not_images(csv=1),
    ),
    "one class of all": (images("0.jpg", "1.jpg"), {"label_column": None}, {"0.jpg": "all", "1.jpg": "all"}, []),
    "table that is not asked for": (
        AB | CSV,
        {},
        {name: name[0] for name in AB},
        ["ATTENTION: 'metadata.csv' may have labels, but is not used: classes are folders", *not_images(csv=1)],
    ),
    "table of CSV": (
        AB | CSV,
        {"label_column": "kind"},
        {"a/0.jpg": "NA", "a/1.jpg": "sit", "b/0.jpg": "sit"},
        [*not_images(csv=1), "'b/1.jpg': not in the metadata"],
    ),
    "table of JSON lines": (
        AB | jsonl({"a/0.jpg": 1, "b/1.jpg": 0}),
        {"label_column": "kind"},
        {"a/0.jpg": "1", "b/1.jpg": "0"},
        [*not_images(jsonl=1), "'a/1.jpg': not in the metadata", "'b/0.jpg': not in the metadata"],
    ),
}


@pytest.mark.parametrize(("files", "options", "want", "left_out"), FOLDERS.values(), ids=FOLDERS)
def test_every_file_of_a_folder_is_used_or_named(files, options, want, left_out, tmp_path):
    folder = make(tmp_path / "in", files)
    source = load_source(str(folder), **options)
    names = [str(Path(cell["path"]).relative_to(folder.resolve())) for cell in source.data["image"]]
    assert names == [*want]
    assert [source.classes[label] for label in source.data["label"]] == [*want.values()]
    assert source.classes == sorted({*want.values()})
    assert source.left_out == left_out


KIND, AB_CLASSES = {"label_column": "kind"}, ClassLabel(names=["a", "b"])
# Files, what is called the source, options, and what the error says.
REFUSED: dict[str, tuple[dict, str, dict, str]] = {
    "no classes": (images("0.jpg"), "", {}, "label_column: '0.jpg' .*null"),
    "no such split": (SPLITS, "", {"split": "dev"}, "split: 'dev' is not allowed; allowed: train, val"),
    "no splits": (AB, "", {"split": "val"}, "split: 'val' is not allowed; allowed: train"),
    "classes in one split": (SPLITS | images("val/0.jpg"), "", {}, r"source: .*'val/0\.jpg'"),
    "a folder beside splits": (
        SPLITS | images("more/0.jpg"),
        "",
        {},
        "source: train, val in ",
    ),
    "images and tables": (AB | {"c.parquet": b""}, "", {}, r"source: .* images and tables \(\.parquet\)"),
    "no column of images": (AB, "", {"image_column": "img"}, "image_column: 'img' is not a column .* it has image"),
    "no column of labels": (AB | CSV, "", {"label_column": "hue"}, "label_column: 'hue' is not a column of metadata"),
    "table of no image": (
        images("a/0.jpg", "a/1.jpg") | CSV,
        "",
        KIND,
        "label_column: .* 'b/0.jpg'",
    ),
    "table without names": (AB | {"metadata.csv": b"a,kind\n0,1\n"}, "", KIND, "label_column: .*file_name"),
    "image twice": (AB | jsonl({"a/0.jpg": 0, "./a/0.jpg": 0}), "", KIND, "label_column: .* 'a/0.jpg'"),
    "labels of two kinds": (
        AB | jsonl({"a/0.jpg": 1, "a/1.jpg": "a"}),
        "",
        KIND,
        "label_column: .*kind",
    ),
    "empty": ({}, "", {}, "source: .*no images"),
    "words": ({"a.txt": b"a"}, "", {}, r"source: .*no images.* \(\.txt\)"),
    "an image": (images("0.png"), "0.png", {}, r"source: .* tables: \.parquet"),
    "an archive": ({"a.tgz": b"PK"}, "a.tgz", {}, "source: .* is an archive"),
    "a broken zip": ({"a.zip": b"PK"}, "a.zip", {}, "source: .* cannot be read"),
    "a cut table": ({"a.parquet": parquet([0, 1])[:400]}, "a.parquet", {}, "source: .* cannot be read"),
    "split of a table": (
        {"a.parquet": parquet([0, 1])},
        "a.parquet",
        {"split": "val"},
        "source: .*split: val.* be read",
    ),
    "absent": ({}, "absent", {}, "source: .* does not exist here and cannot be loaded from the hub"),
    **{
        f"labels {labels}": ({"a.parquet": parquet(labels, kind)}, "a.parquet", {}, f"label_column: {message}")
        for labels, kind, message in (
            ([-1, -1], AB_CLASSES, "image 0 has the label -1"),
            ([0, None, 1], AB_CLASSES, "image 1 has the label None"),
            ([0, None], Value("int64"), "image 1 has the label None"),
            (["a", None], Value("string"), "image 1 has the label None"),
            ([[0], [1]], None, r"image 0 has the label \[0\]"),
            ([0.5, 1.0], Value("float32"), "image 0 has the label 0.5"),
            ([0, 2], Value("int64"), r"integers must be 0 .* not \[0, 2\]"),
        )
    },
}


@pytest.mark.parametrize(("files", "name", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_source_is_one_line_with_its_key(files, name, options, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ParamsError, match=rf"^data\.{message}") as error:
        load_source(str(make(tmp_path / "in", files) / name), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "kind", "classes", "numbers", "left_out"),
    [
        (list(range(12)), Value("int64"), [str(i) for i in range(12)], list(range(12)), []),  # not "0", "1", "10", …
        (["dog", "cat", "dog"], Value("string"), ["cat", "dog"], [1, 0, 1], []),
        ([0, 3, 3], ClassLabel(names=["a", "b", "c", "d"]), ["a", "d"], [0, 1, 1], ["class b", "class c"]),
    ],
    ids=["numbers", "words", "classes without images"],
)
def test_labels_of_tables_become_classes_that_have_images(labels, kind, classes, numbers, left_out, tmp_path):
    table(labels, kind).to_parquet(tmp_path / "a.parquet")
    source = load_source(str(tmp_path / "a.parquet"))
    assert source.classes == classes
    assert source.data["label"][:] == numbers
    assert source.left_out == [f"{name}: no images" for name in left_out]


def test_every_format_of_tables_is_read_and_not_written_to(tmp_path):
    data = table([1, 0, 1], ClassLabel(names=["0", "1"]))
    other = data.rename_columns({"image": "img", "label": "kind"}).add_column("caption", ["x"] * 3)
    make(tmp_path, {"folder": None})
    other.to_parquet(tmp_path / "folder/train-00000.parquet")
    data.save_to_disk(tmp_path / "saved")
    table(["1", "0", "1"], Value("string")).save_to_disk(tmp_path / "words")
    DatasetDict({"val": data}).save_to_disk(tmp_path / "splits")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i, label in enumerate(data["label"]):
            for suffix, content in (("png", PNG), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    before = sorted(tmp_path.rglob("*"))
    for place, options in {
        "folder": {"image_column": "img", "label_column": "kind"},
        "folder/train-00000.parquet": {"image_column": "img", "label_column": "kind"},
        "saved": {},
        "words": {},
        "splits": {"split": "val"},
        "shard.tar": {"image_column": "png", "label_column": "cls"},
    }.items():
        source = load_source(str(tmp_path / place), **options)
        assert source.classes == ["0", "1"], place
        assert source.data["label"][:] == [1, 0, 1], place
        assert [cell["bytes"] for cell in source.data["image"]] == [PNG] * 3, place
    assert sorted(tmp_path.rglob("*")) == before


def test_another_projects_cache_is_no_source(tmp_path, monkeypatch):
    """`datasets` keeps a folder's images in its cache under the folder's name, and takes them for a hub id's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make(tmp_path / "digits", images("a/0.png", "b/0.png"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.load_dataset(str(tmp_path / "digits"), split="train")
    monkeypatch.chdir(make(tmp_path / "here", {}))
    with pytest.raises(ParamsError, match=r"data\.source: digits .* does not exist here"):
        load_source("digits")


def test_imagenets_folders_get_the_names_of_what_they_show():
    names = readable_names([f"n{i:08d}" for i in range(1000)])
    assert names[207] == "golden retriever"
    assert len({*names}) == 1000
    assert readable_names(["n01440764", "n01443537"]) == ["n01440764", "n01443537"]


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize((160, 107))


@pytest.fixture(scope="session")
def odd(photo, tmp_path_factory) -> dict[Path, Image.Image]:
    """One file of each kind that real data sets hold, and what it should look like."""
    folder = tmp_path_factory.mktemp("odd")
    grey, palette, clear, exif = photo.convert("L"), photo.quantize(64), photo.copy(), Image.Exif()
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    on_white = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), clear).convert("RGB")
    see_through = palette.copy()
    see_through.info["transparency"] = 0
    holes = np.where(np.asarray(palette)[..., None] == 0, 255, np.asarray(palette.convert("RGB"))).astype(np.uint8)
    exif[ORIENTATION] = 6
    kinds: dict[str, tuple[Image.Image, dict, Image.Image]] = {
        "rgb.jpg": (photo, {"quality": 95}, photo),
        "grey.jpg": (grey, {"quality": 95}, grey),
        "cmyk.jpg": (photo.convert("CMYK"), {"quality": 95}, photo),
        "sideways.jpg": (photo.transpose(Image.Transpose.ROTATE_90), {"quality": 95, "exif": exif}, photo),
        "palette.png": (palette, {}, palette),
        "see-through.png": (see_through, {}, Image.fromarray(holes)),
        "alpha.png": (clear, {}, on_white),
        "grey-alpha.png": (clear.convert("LA"), {}, on_white.convert("L")),
        "deep.png": (deep, {}, grey),
        "deep.tif": (deep, {}, grey),
        "dark.png": (Image.new("I;16", (4, 4)), {}, Image.new("L", (4, 4))),
        "bits.png": (grey.convert("1"), {}, grey.convert("1")),
        "tiny.png": (photo.resize((5, 3)), {}, photo.resize((5, 3))),
        "line.png": (photo.resize((300, 1)), {}, photo.resize((300, 1))),
    }
    for name, (image, options, _) in kinds.items():
        image.save(folder / name, **options)
    return {folder / name: want.convert("RGB") for name, (_, _, want) in sorted(kinds.items())}


def test_every_kind_becomes_upright_rgb(odd):
    for path, want in odd.items():
        with Image.open(path) as image:
            got = to_rgb(image)
        assert (got.mode, got.size) == ("RGB", want.size), path
        error = np.abs(np.asarray(got, dtype=float) - np.asarray(want)).mean()
        assert error < (4 if path.suffix == ".jpg" else 1), path


@pytest.mark.parametrize(
    ("name", "white", "kind", "reason"),
    [
        ("12.png", 4095, np.uint16, "16 bits, but none is above 4095"),
        ("8-in-16.png", 255, np.uint16, "16 bits, but none is above 255"),
        ("32.tif", 2**31 - 1, np.int32, "32 bits"),
        ("01.tif", 1, np.float32, "floats"),
        ("255.tif", 255, np.float32, "floats"),
    ],
)
def test_greys_of_unknown_white_are_refused(name, white, kind, reason, tmp_path):
    ramp = np.linspace(0, 1, 40 * 36).reshape(36, 40)
    Image.fromarray((ramp * white).astype(kind)).save(tmp_path / name)
    with Image.open(tmp_path / name) as image, pytest.raises(ValueError, match=reason):
        to_rgb(image)


def test_images_are_written_in_order_and_read_in_any(odd, tmp_path):
    folder = make(tmp_path / "in", {f"{kind}/{path.name}": path for kind in ("cat", "dog") for path in odd})
    write_images(load_source(str(folder)), tmp_path / "out", 32, shard=7, progress=False)
    written = Images(tmp_path / "out")
    assert written.classes == ["cat", "dog"]
    assert written.labels.tolist() == [0] * len(odd) + [1] * len(odd)
    for i, path in enumerate(odd):
        with Image.open(path) as image:
            assert np.array_equal(written[i : i + 1][0], np.asarray(center_crop(image, 32))), path
    picked = np.array([20, 3, 11])
    assert np.array_equal(written[picked], np.stack([written[int(i) : int(i) + 1][0] for i in picked]))


def test_broken_images_stop_or_are_skipped_and_named(tmp_path):
    broken = {"cat/1.png": PNG[: len(PNG) // 2], "dog/text.png": b"not an image", "dog/empty.png": b""}
    source = load_source(str(make(tmp_path / "in", images("cat/0.png", "dog/0.png") | broken | {"a.txt": b""})))
    with pytest.raises(BrokenImageError, match=r"data\.on_error: image 1 \(cat/1\.png\) cannot be read"):
        write_images(source, tmp_path / "stop", 32, progress=False)
    skipped = write_images(source, tmp_path / "skip", 32, on_error="skip", shard=2, progress=False)
    assert [line.split(":")[0] for line in skipped] == [
        "image 1 (cat/1.png)",
        "image 3 (dog/empty.png)",
        "image 4 (dog/text.png)",
    ]
    assert str(tmp_path) not in "".join(skipped)  # the same words on any machine
    assert Images(tmp_path / "skip").labels.tolist() == [0, 1]
    info = json.loads((tmp_path / "skip/images.json").read_text())
    assert (info["skipped"], info["left_out"]) == (skipped, ["1 files that are not images (.txt)"])
    for name in ("cat/0.png", "dog/0.png"):
        (tmp_path / "in" / name).write_text("no image")
    with pytest.raises(BrokenImageError, match=r"^data\.source: .*image 0 \(cat"):
        write_images(source, tmp_path / "none", 8, on_error="skip", progress=False)


def test_a_row_without_an_image_stops_or_is_counted(tmp_path):
    table([0, 1, 0], Value("int64"), [CELL, None, CELL]).to_parquet(tmp_path / "a.parquet")
    source = load_source(str(tmp_path / "a.parquet"))
    with pytest.raises(BrokenImageError, match=r"data\.on_error: image 1 cannot be read"):
        write_images(source, tmp_path / "stop", 8, progress=False)
    assert write_images(source, tmp_path / "skip", 8, on_error="skip", progress=False) == ["image 1: no image"]


def test_images_are_kept_compactly_and_without_loss(tmp_path):
    photo = Image.fromarray(load_sample_images().images[0])
    source = load_source(str(make(tmp_path / "in", {"a/0.png": encoded(photo)})))
    sizes = {}
    for encoding in ("webp", "jpeg"):
        write_images(source, tmp_path / encoding, 128, encoding, progress=False)
        sizes[encoding] = (tmp_path / encoding / "images-00000.arrow").stat().st_size
    want = np.asarray(center_crop(photo, 128))
    assert np.array_equal(Images(tmp_path / "webp")[:][0], want)
    assert sizes["jpeg"] < 0.7 * sizes["webp"] < 0.6 * want.nbytes
    assert np.abs(Images(tmp_path / "jpeg")[:][0].astype(int) - want).mean() < 3


# Of dataset_tool.py, which makes folders of a thousand images each; class 1 has none.
TOOL = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png", "00001/img00001001.png"]
NUMBERS = [[TOOL[2], 0], [TOOL[0], 2], [TOOL[1], 0], [TOOL[3], 2]]


def tool(labels: Any, names: list[str] = TOOL, **others: bytes) -> dict[str, bytes]:
    colors = ("red", "lime", "blue", "white")
    pictures = {name: encoded(Image.new("RGB", (8, 8), color)) for name, color in zip(names, colors, strict=False)}
    return pictures | {"dataset.json": json.dumps({"labels": labels}).encode()} | others


def packed(folder: Path, files: dict[str, bytes], zipped: bool) -> str:
    if not zipped:
        return str(make(folder, files))
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(folder.with_suffix(".zip"))


@pytest.mark.parametrize("zipped", [False, True])
def test_data_sets_of_dataset_tool_have_the_labels_of_their_list(zipped, tmp_path):
    source = load_source(packed(tmp_path / "tool", tool(NUMBERS), zipped))
    assert source.classes == ["0", "2"]
    assert "class 1: no images" in source.left_out
    write_images(source, tmp_path / "out", 8, progress=False)
    read = Images(tmp_path / "out")
    assert read.labels.tolist() == [1, 0, 0, 1]
    assert read[np.arange(4)][:, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (tool(None), "dataset.json of .* has no labels; null"),
        (tool([*NUMBERS, [f"./{TOOL[0]}", 1]]), "dataset.json of .* lists '00000/img00000000.png' several times"),
        (tool([[TOOL[0], [0.0, 1.0]]]), "the label of '00000/img00000000.png' is .0.0, 1.0.; labels must be integers"),
        (tool([[TOOL[0], -1]]), "is -1; labels must be integers from 0"),
        (tool([3, 4]), "labels of another form"),
        (tool([["00000/other.png", 0]]), "name.* '00000/other.png', which is no image"),
        (dict.fromkeys(TOOL, PNG), "folders 00000, 00001, … of .* are numbers, as dataset_tool.py"),
        (tool(NUMBERS) | {"dataset.json": b"{}"}, "folders 00000, 00001, … of .* are numbers"),
    ],
)
def test_a_data_set_of_dataset_tool_without_usable_labels_is_no_set_of_folders(files, message, zipped, tmp_path):
    with pytest.raises(ParamsError, match=f"^data.label_column: .*{message}"):
        load_source(packed(tmp_path / "tool", files, zipped))
    unlabelled = load_source(packed(tmp_path / "again", files, zipped), label_column=None)
    assert (unlabelled.classes, len(unlabelled.data)) == (["all"], 4)


@pytest.mark.parametrize("zipped", [False, True])
def test_images_without_a_label_in_the_list_are_named(zipped, tmp_path):
    source = load_source(packed(tmp_path / "tool", tool(NUMBERS[:3]), zipped))
    assert len(source.data) == 3
    assert any(line.startswith(f"{TOOL[3]!r}: not in") for line in source.left_out)


SIDECARS = [
    *("labels.csv", "train.csv", "y.tsv", "a.jsonl", "metadata.json", "annotations.json", "Label.txt", "dataset.json"),
    *("a/labels.csv", "more/annotations.xml"),
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", SIDECARS)
def test_files_that_may_have_labels_are_used_or_named_first(name, zipped, tmp_path):
    path = packed(tmp_path / "source", AB | {name: b"{}", "a/._labels.csv": b""}, zipped)
    source = load_source(path)
    assert source.classes == ["a", "b"]
    assert source.left_out[0] == f"ATTENTION: {name!r} may have labels, but is not used: classes are folders"
    assert "ATTENTION" not in "".join(source.left_out[1:] + load_source(path, label_column=None).left_out)


@pytest.mark.parametrize("zipped", [False, True])
def test_beside_a_file_with_labels_others_are_named(zipped, tmp_path):
    source = load_source(packed(tmp_path / "tool", tool(NUMBERS) | {"00000/labels.csv": b"", "b.csv": b""}, zipped))
    assert [line for line in source.left_out if "ATTENTION" in line] == [
        f"ATTENTION: {name!r} may have labels, but is not used: labels are those of dataset.json"
        for name in ("b.csv", "00000/labels.csv")
    ]


def test_of_several_files_with_labels_metadata_are_used_and_the_others_named(tmp_path):
    table = "".join(f"{name},{name[-5]}\n" for name in TOOL)
    files = {"metadata.csv": f"file_name,label\n{table}".encode(), "metadata.jsonl": b'{"file_name": "a", "label": 1}'}
    source = load_source(str(make(tmp_path / "tool", tool(NUMBERS) | files)))
    assert source.classes == ["0", "1"]
    assert source.left_out[:2] == [
        f"ATTENTION: {name!r} may have labels, but is not used: labels are those of metadata.csv"
        for name in ("dataset.json", "metadata.jsonl")
    ]


def patched(path: str, value: int, local: int, central: int) -> None:
    """Write a byte into the headers of all files of a zip."""
    content = bytearray(Path(path).read_bytes())
    for signature, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        for found in re.finditer(signature, bytes(content)):
            content[found.start() + offset] = value
    Path(path).write_bytes(content)


def damaged(path: str) -> None:
    """Have dataset.json not be what its checksum says."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content.replace(b'{"labels"', b'{"labelz"'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: patched(path, 1, 6, 8), r"'0000.*' is encrypted.*; unpack it"),
        (lambda path: patched(path, 9, 8, 10), r"compression method is not supported\); unpack it"),
        (damaged, r"Bad CRC-32 for file 'dataset\.json'\)"),
    ],
    ids=["encrypted", "compressed by Deflate64", "damaged"],
)
def test_a_zip_file_that_cannot_be_read_is_refused_before_images_are_cut(spoil, message, tmp_path):
    path = packed(tmp_path / "tool", tool(NUMBERS), zipped=True)
    spoil(path)
    with pytest.raises(ParamsError, match=rf"^data\.source: .*tool\.zip cannot be read \(.*{message}$"):
        load_source(path)


def test_a_zip_file_without_classes_is_refused(tmp_path):
    for files in (images("a.png", "b.png"), images("all/a/0.png", "all/b/0.png")):
        with pytest.raises(ParamsError, match=r"^data\.label_column: .* has neither dataset\.json nor class folders"):
            load_source(packed(tmp_path / "source", files, zipped=True))


def test_tables_are_read_where_the_cache_of_datasets_cannot_be_written(tmp_path, monkeypatch):
    """As with a read-only home. A test that runs as root cannot make a folder that it may not write to."""
    table([0], Value("int64")).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home/.cache")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    assert len(load_source(str(tmp_path / "a.parquet")).data) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]
