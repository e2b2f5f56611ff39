"""Samples of other models: what is read as them, and that they are measured as a model's own are."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gat.config import ParamsError
from gat.evaluation.given import read_samples

CLASSES = ["cat", "dog"]


@pytest.fixture
def pixels(rng) -> np.ndarray:
    return rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)


def read(path: Path):
    return read_samples(path, CLASSES, "samples.other.path")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_with_and_without_labels(save, pixels, tmp_path):
    labels = np.arange(120) % 2
    save(tmp_path / "bare.npz", pixels)
    save(tmp_path / "labelled.npz", pixels, labels)
    bare, labelled = read(tmp_path / "bare.npz"), read(tmp_path / "labelled.npz")
    assert (bare.number, bare.labels) == (120, None)
    assert np.array_equal(labelled.labels, labels)
    for given in (bare, labelled):
        assert np.array_equal(given.images(3, 50), pixels[3:50])


def test_npz_is_not_read_into_memory(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((100, 8, 8, 3), np.uint8))
    images = read(tmp_path / "a.npz").images.__closure__[0].cell_contents
    assert isinstance(images, np.memmap)


def save_images(folder: Path, pixels: np.ndarray, names: list[str]) -> Path:
    for name, picture in zip(names, pixels, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder


def test_folder_is_read_with_labels_if_its_subfolders_are_classes(pixels, tmp_path):
    flat = read(save_images(tmp_path / "flat", pixels, [f"{i:03}.png" for i in range(120)]))
    assert flat.labels is None
    assert np.array_equal(flat.images(0, 120), pixels)
    names = [f"{'dog' if i < 70 else 'cat'}/{i:03}.png" for i in range(120)]
    sorted_ = read(save_images(tmp_path / "sorted", pixels, names))
    order = np.roll(np.arange(120), -70)  # cats come first
    assert np.array_equal(sorted_.labels, (order < 70).astype(int))
    assert np.array_equal(sorted_.images(0, 120), pixels[order])
    names = [f"{'wolf' if i < 70 else 'cat'}/{i:03}.png" for i in range(120)]
    other = read(save_images(tmp_path / "other", pixels, names))
    assert (other.number, other.labels) == (120, None)
    (tmp_path / "flat/notes.txt").write_text("not an image")
    assert read(tmp_path / "flat").left_out == ["1 files that are not images (.txt)"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("arrays", "spoil", "reason"),
    [
        ([np.zeros((120, 8, 8, 3), np.uint8)], cut, "zip"),
        ([np.zeros((120, 8, 8, 3), np.float32)], None, "float32"),
        ([np.zeros((120, 8, 8), np.uint8)], None, r"\(120, 8, 8\)"),
        ([np.zeros((50, 8, 8, 3), np.uint8)], None, "50 images; at least 100"),
        ([np.zeros((120, 8, 8, 3), np.uint8), np.arange(120)], None, "labels from 0 to 1"),
        ([np.zeros((120, 8, 8, 3), np.uint8), np.zeros(3, int)], None, "120 labels"),
        ([], None, "arr_0"),
        ([np.array([{}] * 120, object)], None, "object"),
    ],
)
def test_what_is_no_npz_of_images_is_refused_in_one_line(arrays, spoil, reason, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, *arrays, **({} if arrays else {"mu": np.zeros(3)}))
    if spoil:
        spoil(path)
    with pytest.raises(ParamsError, match=rf"^samples\.other\.path: .*a\.npz .*{reason}") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_odd_entries_and_folders_are_refused_in_one_line(pixels, tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00")
    (tmp_path / "empty").mkdir()
    for name in ("text.npz", "short.npz", "empty"):
        with pytest.raises(
            ParamsError, match=rf"^samples\.other\.path: .*{name} has no samples that can be read"
        ) as error:
            read(tmp_path / name)
        assert "\n" not in str(error.value)
    folder = save_images(tmp_path / "sizes", pixels[:119], [f"{i:03}.png" for i in range(119)])
    Image.fromarray(pixels[0, :4]).save(folder / "119.png")
    with pytest.raises(ParamsError, match=r"119\.png has \(8, 4\) pixels"):
        read(folder).images(0, 120)
    (folder / "119.png").write_bytes(b"no image")
    with pytest.raises(ParamsError, match=r"119\.png .*cannot|119\.png .* not an image"):
        read(folder).images(0, 120)
