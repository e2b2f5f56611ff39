"""Images of every kind that a real data set holds, real photographs among them (scikit-learn ships two)."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from conftest import ROOT
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from sklearn.datasets import load_sample_images

from gat.data.images import BrokenImageError, Images, center_crop, load_source, readable_names, to_rgb, write_images
from gat.evaluation.extractor import train_classifier

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
    assert len(images) == len(source) - 3
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
    assert source.features["label"].names == classes
    assert source["label"] == numbers


def test_images_without_labels_are_one_class(tmp_path, photo):
    (tmp_path / "in").mkdir()
    for i in range(3):
        photo.rotate(90 * i).save(tmp_path / f"in/{i}.jpg")
    with pytest.raises(ValueError, match=r"data.label_column: 'label' is not a column .* \(null: one class"):
        load_source(str(tmp_path / "in"))
    write_images(load_source(str(tmp_path / "in"), label_column=None), tmp_path / "out", 32, progress=False)
    images = Images(tmp_path / "out")
    assert images.classes == ["all"]
    assert images.labels.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"metrics.extractor: a classifier needs two classes"):
        train_classifier(images, 1, 1, 1e-3, 0)


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
