"""Images of every kind that a real data set holds, real photographs among them (scikit-learn ships two)."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate import PartialState
from conftest import ROOT
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from sklearn.datasets import load_sample_images

from gat.config import ParamsError
from gat.data.crop import BrokenImageError, center_crop, to_rgb, write_images
from gat.data.images import Images
from gat.data.sources import Source, fingerprint, load_source, readable_names
from gat.evaluation.extractor import train_classifier
from gat.evaluation.features import compute_reference

ORIENTATION = 0x0112  # EXIF tag; 6: the camera was held sideways


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize((160, 107))


def odd_images(folder: Path, photo: Image.Image) -> dict[str, Image.Image]:
    """Write one file of each kind; returns each with what it should look like."""
    folder.mkdir(parents=True)
    grey = photo.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    clear = photo.copy()
    clear.putalpha(Image.linear_gradient("L").resize(photo.size))
    on_white = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), clear).convert("RGB")
    palette = photo.quantize(64)
    see_through = palette.copy()
    see_through.info["transparency"] = 0
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    kinds: dict[str, tuple[Image.Image, dict, Image.Image]] = {
        "rgb.jpg": (photo, {"quality": 95}, photo),
        "grey.jpg": (grey, {"quality": 95}, grey.convert("RGB")),
        "cmyk.jpg": (photo.convert("CMYK"), {"quality": 95}, photo),
        "sideways.jpg": (photo.transpose(Image.Transpose.ROTATE_90), {"quality": 95, "exif": exif}, photo),
        "palette.png": (palette, {}, palette.convert("RGB")),
        "see-through.png": (see_through, {}, None),
        "alpha.png": (clear, {}, on_white),
        "grey-alpha.png": (clear.convert("LA"), {}, on_white.convert("L").convert("RGB")),
        "deep.png": (Image.fromarray(deep), {}, grey.convert("RGB")),
        "deep.tif": (Image.fromarray(deep), {}, grey.convert("RGB")),
        "bits.png": (grey.convert("1"), {}, grey.convert("1").convert("RGB")),
        "tiny.png": (photo.resize((5, 3)), {}, photo.resize((5, 3))),
        "line.png": (photo.resize((300, 1)), {}, photo.resize((300, 1))),
    }
    for name, (image, options, _) in kinds.items():
        image.save(folder / name, **options)
    return {name: want for name, (_, _, want) in kinds.items() if want is not None}


def test_every_kind_becomes_upright_rgb(tmp_path, photo):
    for name, want in odd_images(tmp_path / "in", photo).items():
        with Image.open(tmp_path / "in" / name) as image:
            got = to_rgb(image)
        assert (got.mode, got.size) == ("RGB", want.size), name
        error = np.abs(np.asarray(got, dtype=float) - np.asarray(want)).mean()
        assert error < (4 if name.endswith("jpg") else 1), name


def test_transparent_palette_turns_white_where_it_is_clear(tmp_path, photo):
    odd_images(tmp_path / "in", photo)
    with Image.open(tmp_path / "in/see-through.png") as image:
        clear, got = np.asarray(image) == 0, np.asarray(to_rgb(image))
    assert clear.any()
    assert (got[clear] == 255).all()


def folder_of_classes(folder: Path, photo: Image.Image) -> None:
    odd_images(folder / "cat", photo)
    odd_images(folder / "dog", photo)


def test_a_folder_of_odd_images_is_read_in_order(tmp_path, photo):
    folder_of_classes(tmp_path / "in", photo)
    write_images(load_source(str(tmp_path / "in")), tmp_path / "out", 32, shard=7, progress=False)
    images = Images(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "in/cat").iterdir())
    assert len(images) == 2 * len(names)
    assert images.labels.tolist() == [0] * len(names) + [1] * len(names)
    for i, name in enumerate(names):
        with Image.open(tmp_path / "in/cat" / name) as image:
            assert np.array_equal(images[i : i + 1][0], np.asarray(center_crop(image, 32))), name
    picked = np.array([20, 3, 11])
    assert np.array_equal(images[picked], np.stack([images[int(i) : int(i) + 1][0] for i in picked]))


def test_broken_images_stop_or_are_skipped_and_named(tmp_path, photo):
    folder_of_classes(tmp_path / "in", photo)
    whole = (tmp_path / "in/cat/rgb.jpg").read_bytes()
    (tmp_path / "in/cat/half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/dog/text.png").write_text("not an image")
    (tmp_path / "in/dog/empty.png").write_bytes(b"")
    source = load_source(str(tmp_path / "in"))
    with pytest.raises(BrokenImageError, match=r"data\.on_error: image \d+ \(cat/half\.jpg\) cannot be read"):
        write_images(source, tmp_path / "stop", 32, progress=False)
    skipped = write_images(source, tmp_path / "skip", 32, on_error="skip", shard=5, progress=False)
    assert [line.split(")")[0].split("(")[1] for line in skipped] == ["cat/half.jpg", "dog/empty.png", "dog/text.png"]
    images = Images(tmp_path / "skip")
    assert len(images) == len(source.data) - 3
    assert np.bincount(images.labels).tolist() == [13, 13]
    assert json.loads((tmp_path / "skip/images.json").read_text())["skipped"] == skipped


def test_parquet_with_other_column_names_is_a_source(tmp_path, photo):
    buffers = [io.BytesIO() for _ in range(3)]
    for i, buffer in enumerate(buffers):
        photo.rotate(90 * i).save(buffer, format="PNG")
    features = Features({"img": ImageColumn(), "kind": ClassLabel(names=["a", "b"]), "caption": Value("string")})
    rows = {"img": [{"bytes": b.getvalue(), "path": None} for b in buffers], "kind": [1, 0, 1], "caption": ["x"] * 3}
    data = Dataset.from_dict(rows, features=features)
    (tmp_path / "in").mkdir()
    data.to_parquet(tmp_path / "in/train-00000.parquet")
    for place in (tmp_path / "in", tmp_path / "in/train-00000.parquet"):
        source = load_source(str(place), image_column="img", label_column="kind")
        write_images(source, tmp_path / place.name / "out", 32, progress=False)
        images = Images(tmp_path / place.name / "out")
        assert images.classes == ["a", "b"]
        assert images.labels.tolist() == [1, 0, 1]
        assert np.array_equal(images[:1][0], np.asarray(center_crop(photo, 32)))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (list(range(12)), [str(i) for i in range(12)], list(range(12))),  # not "0", "1", "10", "11", "2", …
        (["dog", "cat", "dog"], ["cat", "dog"], [1, 0, 1]),
    ],
)
def test_labels_that_are_numbers_or_words_become_classes(labels, classes, numbers, tmp_path, photo):
    buffer = io.BytesIO()
    photo.save(buffer, format="PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * len(labels), "label": labels}
    kind = Value("int64") if isinstance(labels[0], int) else Value("string")
    Dataset.from_dict(rows, features=Features({"image": ImageColumn(), "label": kind})).to_parquet(
        tmp_path / "a.parquet"
    )
    source = load_source(str(tmp_path / "a.parquet"))
    assert source.classes == classes
    assert source.data["label"][:] == numbers


def test_images_without_labels_are_one_class(tmp_path, photo):
    (tmp_path / "in").mkdir()
    for i in range(3):
        photo.rotate(90 * i).save(tmp_path / f"in/{i}.jpg")
    with pytest.raises(ValueError, match=r"data.label_column: '0.jpg' of .* lies in no class folder; null: one class"):
        load_source(str(tmp_path / "in"))
    write_images(load_source(str(tmp_path / "in"), label_column=None), tmp_path / "out", 32, progress=False)
    images = Images(tmp_path / "out")
    assert images.classes == ["all"]
    assert images.labels.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"metrics.extractor: a classifier needs two classes"):
        train_classifier(images, 1, 1, 1e-3, 0)


def names_of(source: Source) -> list[str]:
    """Class folder and file of each image."""
    return ["/".join(Path(cell["path"]).parts[-2:]) for cell in source.data["image"]]


def save(photo: Image.Image, *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.resize((20, 16)).save(path, format=None if path.suffix else "PNG")


def test_words_in_names_are_no_splits(tmp_path, photo):
    names = [
        "cat/0.jpg",
        "cat/test.PNG",
        "cat/train_0.jpg",
        "eval/a-val.jpg",
        "training/[1].Jpg",
        "training/new\nline.TIF",
    ]
    save(photo, *(tmp_path / name for name in names))
    source = load_source(str(tmp_path))
    assert names_of(source) == names
    assert source.classes == ["cat", "eval", "training"]
    assert source.data["label"][:] == [0, 0, 0, 1, 2, 2]
    assert source.left_out == []


@pytest.mark.parametrize(
    "suffix",
    ["jpg", "JPG", "Jpg", "jpeg", "JPEG", "png", "PNG", "webp", "WEBP", "bmp", "BMP", "tif", "TIFF", "GIF", "ppm"],
)
def test_suffixes_in_any_case_are_images(suffix, tmp_path, photo):
    save(photo, tmp_path / f"a/0.{suffix}", tmp_path / "b/0.png")
    assert names_of(load_source(str(tmp_path))) == [f"a/0.{suffix}", "b/0.png"]


def test_links_are_followed_but_not_in_circles(tmp_path, photo):
    save(photo, tmp_path / "in/ant/0.png", tmp_path / "elsewhere/0.png", tmp_path / "elsewhere/deep/1.png")
    (tmp_path / "in/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/dog/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/ant/1.png").symlink_to(tmp_path / "elsewhere/0.png")
    (tmp_path / "in/ant/2.png").symlink_to(tmp_path / "nowhere")
    source = load_source(str(tmp_path / "in"))
    assert source.classes == ["ant", "dog"]
    assert source.data["label"][:] == [0, 0, 1, 1]
    assert source.left_out == ["'ant/2.png': a link to nothing"]


def test_what_is_no_image_is_counted_and_what_is_hidden_named(tmp_path, photo):
    save(photo, *(tmp_path / f"in/{kind}/{i}.jpg" for kind in "ab" for i in range(2)), tmp_path / "in/a/._0.jpg")
    for i in range(2):
        (tmp_path / f"in/a/{i}.txt").write_text("a caption")
        (tmp_path / f"in/a/{i}.json").write_text("{}")
    (tmp_path / "in/metadata.csv").write_text("file_name,caption\na/0.jpg,a photograph\n")
    (tmp_path / "in/c").mkdir()
    source = load_source(str(tmp_path / "in"))
    assert names_of(source) == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]
    assert source.left_out == [
        "'a/._0.jpg': hidden",
        "1 files that are not images (.csv)",
        "2 files that are not images (.json)",
        "2 files that are not images (.txt)",
        "'c': a class folder without images",
    ]
    write_images(source, tmp_path / "out", 16, progress=False)
    assert json.loads((tmp_path / "out/images.json").read_text())["left_out"] == source.left_out


def test_folders_of_splits_are_chosen_by_name(tmp_path, photo):
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        save(photo, *(tmp_path / f"in/{split}/{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(count)))
    for split, count in (("train", 8), ("val", 4)):
        source = load_source(str(tmp_path / "in"), split)
        assert (len(source.data), source.classes) == (count, ["cat", "dog"])
    with pytest.raises(
        ParamsError, match=r"data\.split: 'validation' is not allowed; allowed: test, train, val, as in"
    ):
        load_source(str(tmp_path / "in"), "validation")
    with pytest.raises(
        ParamsError, match=r"data\.split: 'val' is not allowed; allowed: train, as .* has no folders of"
    ):
        load_source(str(tmp_path / "in/train"), "val")
    save(photo, tmp_path / "in/val/flat.jpg")
    with pytest.raises(ParamsError, match=r"data\.source: .*'val/flat\.jpg' lies in none; name one of them"):
        load_source(str(tmp_path / "in"))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "file_name,kind\na/0.jpg,NA\na/1.jpg,sit\n./b/0.jpg,sit\n"),
        ("metadata.jsonl", "".join(json.dumps({"file_name": n, "kind": k}) + "\n" for n, k in
                                   [("a/0.jpg", "NA"), ("a/1.jpg", "sit"), ("b/0.jpg", "sit")])),
    ],
)  # fmt: skip
def test_metadata_are_labels_where_their_column_is_asked_for(name, table, tmp_path, photo):
    save(photo, *(tmp_path / path for path in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg")))
    (tmp_path / name).write_text(table)
    assert load_source(str(tmp_path)).classes == ["a", "b"]
    source = load_source(str(tmp_path), label_column="kind")
    assert source.classes == ["NA", "sit"]
    assert source.data["label"][:] == [0, 1, 1]
    assert "'b/1.jpg': not in the metadata" in source.left_out
    with pytest.raises(ParamsError, match=r"data\.label_column: 'colour' is not a column of metadata"):
        load_source(str(tmp_path), label_column="colour")
    (tmp_path / "b/0.jpg").unlink()
    with pytest.raises(ParamsError, match=r"data\.label_column: the metadata name 'b/0.jpg', which is no image"):
        load_source(str(tmp_path), label_column="kind")


def test_splits_without_class_folders_are_not_mixed(tmp_path, photo):
    """`train/*.jpg`, `test/*.jpg`: with one class of all, or with metadata in each, only the split is read."""
    save(photo, *(tmp_path / f"{split}/{i}.jpg" for split in ("train", "test") for i in range(2)))
    for split in ("train", "test"):
        assert names_of(load_source(str(tmp_path), split, label_column=None)) == [f"{split}/0.jpg", f"{split}/1.jpg"]
        (tmp_path / split / "metadata.csv").write_text("file_name,label\n0.jpg,a\n1.jpg,b\n")
        source = load_source(str(tmp_path), split)
        assert (source.classes, names_of(source)) == (["a", "b"], [f"{split}/0.jpg", f"{split}/1.jpg"])
    save(photo, tmp_path / "preview/0.jpg", tmp_path / "train/cat/0.jpg")
    with pytest.raises(
        ParamsError, match=r"data\.source: train in .* have class folders, but other folders are beside"
    ):
        load_source(str(tmp_path))


def test_images_and_tables_in_one_place_are_not_guessed_about(tmp_path, photo):
    save(photo, tmp_path / "assets/preview.png")
    parquet(tmp_path / "train.parquet", [0, 1], Value("int64"))
    with pytest.raises(ParamsError, match=r"data\.source: .* has images and tables \(\.parquet\); name the place"):
        load_source(str(tmp_path))
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "assets/features.h5").write_bytes(b"which Pillow only claims to read")
    assert load_source(str(tmp_path)).left_out == ["1 files that are not images (.h5)"]


def test_a_saved_data_set_is_not_written_to(tmp_path):
    rows = {"image": [{"bytes": b"", "path": None}] * 2, "label": ["b", "a"]}
    features = Features({"image": ImageColumn(), "label": Value("string")})
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    before = fingerprint(str(tmp_path / "saved"))
    source = load_source(str(tmp_path / "saved"))
    assert (source.classes, source.data["label"][:]) == (["a", "b"], [1, 0])
    assert fingerprint(str(tmp_path / "saved")) == before


def test_labels_of_several_kinds_are_refused(tmp_path, photo):
    save(photo, tmp_path / "0.jpg", tmp_path / "1.jpg")
    rows = [{"file_name": "0.jpg", "kind": 1}, {"file_name": "1.jpg", "kind": "a"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ParamsError, match=r"^data\.label_column: not one kind of labels"):
        load_source(str(tmp_path), label_column="kind")


def test_what_is_skipped_is_said_in_the_same_words_anywhere(tmp_path, photo):
    lines = []
    for place in ("here", "there"):
        save(photo, tmp_path / place / "a/0.png")
        (tmp_path / place / "a/1.png").write_text("no image")
        source = load_source(str(tmp_path / place))
        lines.append(write_images(source, tmp_path / f"out-{place}", 8, on_error="skip", progress=False))
    assert lines == [["image 1 (a/1.png): no image that Pillow knows"]] * 2


def parquet(path: Path, labels: list, kind: object = None, images: list | None = None) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    cells = images or [{"bytes": buffer.getvalue(), "path": None}] * len(labels)
    features = None if kind is None else Features({"image": ImageColumn(), "label": kind})
    Dataset.from_dict({"image": cells, "label": labels}, features=features).to_parquet(path)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([-1, -1], ClassLabel(names=["a", "b"]), "image 0 has the label -1"),
        ([0, None, 1], ClassLabel(names=["a", "b"]), "image 1 has the label None"),
        ([0, None], Value("int64"), "image 1 has the label None"),
        (["a", None], Value("string"), "image 1 has the label None"),
        ([[0], [1]], None, r"image 0 has the label \[0\]"),
        ([0.5, 1.0], Value("float32"), "image 0 has the label 0.5"),
        ([0, 2], Value("int64"), r"integers must be 0 to the number of classes − 1, not \[0, 2\]"),
    ],
)
def test_labels_that_are_no_classes_stop_at_once(labels, kind, message, tmp_path):
    with pytest.raises(ParamsError, match=rf"^data\.label_column: {message}"):
        load_source(parquet(tmp_path / "a.parquet", labels, kind))


def test_classes_without_images_are_left_out_by_name(tmp_path):
    path = parquet(tmp_path / "a.parquet", [0, 3, 3], ClassLabel(names=["ant", "bee", "cow", "dog"]))
    source = load_source(path)
    assert source.classes == ["ant", "dog"]
    assert source.data["label"][:] == [0, 1, 1]
    assert source.left_out == ["class bee: no images", "class cow: no images"]


def test_a_row_without_an_image_stops_or_is_counted(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    cell = {"bytes": buffer.getvalue(), "path": None}
    source = load_source(parquet(tmp_path / "a.parquet", [0, 1, 0], Value("int64"), [cell, None, cell]))
    with pytest.raises(BrokenImageError, match=r"data\.on_error: image 1 cannot be read \(there is none\)"):
        write_images(source, tmp_path / "stop", 8, progress=False)
    assert write_images(source, tmp_path / "skip", 8, on_error="skip", progress=False) == ["image 1: there is none"]


def test_too_few_images_are_refused_in_one_line(tmp_path, photo):
    save(photo, *(tmp_path / f"in/{i}/0.png" for i in range(5)))
    write_images(load_source(str(tmp_path / "in")), tmp_path / "out", 8, progress=False)
    with pytest.raises(ParamsError, match=r"^metrics\.extractor: a classifier needs ten images or more, not 5"):
        train_classifier(Images(tmp_path / "out"), 1, 1, 1e-3, 0)
    with pytest.raises(ParamsError, match=r"^data\.source: statistics need two images or more, not 1$"):
        compute_reference(lambda start, stop: np.zeros((1, 8, 8, 3)), lambda images: np.zeros((1, 4)), 1, 1, 1)
    for file in (tmp_path / "in").glob("*/*"):
        file.write_text("no image")
    with pytest.raises(BrokenImageError, match=r"^data\.source: none of its images can be read, such as image 0 \(0/0"):
        write_images(load_source(str(tmp_path / "in")), tmp_path / "none", 8, on_error="skip", progress=False)


def test_greys_of_unknown_white_are_refused_and_never_black(tmp_path):
    ramp = np.linspace(0, 1, 40 * 36).reshape(36, 40)
    want = (ramp * 255).astype(np.uint8)
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    with Image.open(tmp_path / "16.png") as image:
        assert np.abs(np.asarray(to_rgb(image))[..., 0].astype(int) - want).max() <= 1
    for name, pixels, reason in (
        ("12.png", (ramp * 4095).astype(np.uint16), "16 bits, but none is above 4095"),
        ("8-in-16.png", (ramp * 255).astype(np.uint16), "16 bits, but none is above 255"),
        ("32.tif", (ramp * (2**31 - 1)).astype(np.int32), "32 bits"),
        ("01.tif", ramp.astype(np.float32), "floats"),
        ("255.tif", (ramp * 255).astype(np.float32), "floats"),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        with Image.open(tmp_path / name) as image, pytest.raises(ValueError, match=reason):
            to_rgb(image)
    Image.new("I;16", (4, 4)).save(tmp_path / "dark.png")  # black has no white to know
    with Image.open(tmp_path / "dark.png") as image:
        assert not np.asarray(to_rgb(image)).any()


def test_what_is_no_source_is_one_line(tmp_path, photo, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words/a.txt").write_text("words")
    save(photo, tmp_path / "photo.png", tmp_path / "in/a/0.png")
    whole = Path(parquet(tmp_path / "whole.parquet", [0, 1], Value("int64"))).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "in")
    for name, message in {
        "empty": "there are no images in .*empty$",
        "words": r"there are no images in .*words; there are 1 files that are not images \(\.txt\)$",
        "photo.png": "is no folder and no table; tables: .parquet, .arrow, .tar$",
        "packed.zip": "is an archive; unpack it, and name the folder",
        "cut.parquet": r"\(data.split: train\) cannot be read \(",
        "whole.parquet": r"\(data.split: val\) cannot be read \(ValueError: Unknown split",
        "absent": "is neither here nor to be had from the hub",
    }.items():
        with pytest.raises(ParamsError, match=rf"^data\.source: .*{message}") as error:
            load_source(str(tmp_path / name), "val" if name == "whole.parquet" else "train")
        assert "\n" not in str(error.value)


def test_another_projects_cache_is_no_source(tmp_path, photo, monkeypatch):
    """`datasets` keeps a folder's images in its cache under the folder's name, and takes them for a hub id's."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save(photo, tmp_path / "there/digits/a/0.png", tmp_path / "there/digits/b/0.png")
    (tmp_path / "here").mkdir()
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(cache))
    datasets.load_dataset(str(tmp_path / "there/digits"), split="train")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ParamsError, match=r"data\.source: digits \(data\.split: train\) is neither here nor to be had"):
        load_source("digits")


def test_saved_data_sets_and_tar_files_are_sources(tmp_path, photo):
    buffer = io.BytesIO()
    photo.save(buffer, format="PNG")
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 2, "label": [1, 0]}
    data = Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "saved")
    DatasetDict({"val": data}).save_to_disk(tmp_path / "splits")
    assert load_source(str(tmp_path / "saved")).data["label"][:] == [1, 0]
    assert load_source(str(tmp_path / "splits"), "val").data["label"][:] == [1, 0]
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i, label in enumerate([1, 0, 1]):
            for suffix, content in (("png", buffer.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = load_source(str(tmp_path / "shard.tar"), image_column="png", label_column="cls")
    assert source.data["label"][:] == [1, 0, 1]


def test_fingerprint_changes_with_any_file(tmp_path, photo):
    save(photo, tmp_path / "a/0.png", tmp_path / "b/deep/0.png")
    before = fingerprint(str(tmp_path))
    assert before == fingerprint(str(tmp_path))
    assert before["files"] == 2
    for change in (
        lambda: save(photo, tmp_path / "b/1.png"),
        lambda: (tmp_path / "b/1.png").rename(tmp_path / "b/2.png"),
        lambda: (tmp_path / "b/deep/0.png").write_bytes(b"other"),
        lambda: os.utime(tmp_path / "a/0.png", ns=(1, 1)),
        lambda: (tmp_path / "a/0.png").unlink(),
    ):
        change()
        after = fingerprint(str(tmp_path))
        assert after != before
        before = after
    assert fingerprint("mnist5k") == {"source": "mnist5k"}


def test_imagenets_folders_get_the_names_of_what_they_show():
    wordnet = sorted(f"n{i:08d}" for i in range(1000))
    names = readable_names(wordnet)
    assert names[207] == "golden retriever"
    assert len(set(names)) == 1000
    assert readable_names(["n01440764", "n01443537"]) == ["n01440764", "n01443537"]


def test_images_are_kept_compactly_and_without_loss(tmp_path, photo):
    big = Image.fromarray(load_sample_images().images[0])
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        big.save(tmp_path / "in" / name / "0.png")
    source = load_source(str(tmp_path / "in"))
    sizes = {}
    for encoding in ("webp", "jpeg"):
        write_images(source, tmp_path / encoding, 256, encoding, progress=False)
        sizes[encoding] = (tmp_path / encoding / "images-00000.arrow").stat().st_size
    want = np.asarray(center_crop(big, 256))
    assert np.array_equal(Images(tmp_path / "webp")[:1][0], want)
    assert sizes["webp"] < 0.75 * 2 * want.nbytes
    assert sizes["jpeg"] < 0.6 * sizes["webp"]
    assert np.abs(Images(tmp_path / "jpeg")[:1][0].astype(int) - want).mean() < 3


def test_any_number_of_processes_writes_the_same_images(tmp_path, photo):
    folder_of_classes(tmp_path / "in", photo)
    source = str(tmp_path / "in")
    write_images(load_source(source), tmp_path / "one", 32, shard=5, progress=False)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__, source, tmp_path / "two"],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        check=True,
    )
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "two"))
    assert one == two
    assert len(one) == 7  # six files of images and the list


if __name__ == "__main__":  # one of two processes
    assert PartialState(cpu=True).num_processes == 2
    write_images(load_source(sys.argv[1]), Path(sys.argv[2]), 32, shard=5, progress=False)
