import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gat.data.crop import center_crop, write_images
from gat.data.encode import write_latents
from gat.data.images import Images, held_out
from gat.data.latents import Latents, TrainingBatches
from gat.data.pixels import decode, to_model_range, to_uint8
from gat.data.sources import load_source
from gat.data.vae import downsampling_factor, encode, psnr, train_vae


def test_embedded_digits_are_mnist_padded_to_32(digits):
    source = load_source("mnist5k")
    assert len(source.data) == 5000
    assert source.classes == [str(digit) for digit in range(10)]
    assert np.bincount(source.data["label"]).tolist() == [500] * 10
    assert digits[:].shape == (300, 32, 32, 3)
    assert digits[:].max() == 255
    assert not digits[:][:, [0, 1, 30, 31]].any()


def test_a_share_of_each_class_is_held_out_and_no_image_is_lost(tmp_path):
    source = load_source("mnist5k")
    some = source._replace(data=source.data.select(range(0, 5000, 25)))
    for name, share in (("split", 0.2), ("whole", 0.0)):
        (tmp_path / name).mkdir()
        write_images(some, tmp_path / name, 32, holdout=share, progress=False)
    training, held = Images(tmp_path / "split"), Images(tmp_path / "split", held=True)
    assert np.bincount(training.labels).tolist() == [16] * 10
    assert np.bincount(held.labels).tolist() == [4] * 10
    both = [image.tobytes() for images in (training, held) for image in images[:]]
    assert sorted(both) == sorted(image.tobytes() for image in Images(tmp_path / "whole")[:])
    assert len(Images(tmp_path / "whole", held=True)) == 0
    again = pickle.loads(pickle.dumps(held))
    assert np.array_equal(again[3:5], held[np.array([3, 4])])
    assert np.array_equal(next(training.batches(7, 150))[0], training[150:151][0])


@pytest.mark.parametrize(("share", "counts"), [(0.0, [0, 0, 0]), (0.2, [2, 1, 0]), (0.5, [5, 2, 0])])
def test_held_out_images_are_spread_over_their_class(share, counts):
    labels = np.array([0] * 10 + [1] * 4 + [2])
    chosen = held_out(labels, share)
    assert [int(chosen[labels == label].sum()) for label in range(3)] == counts
    assert not chosen[0]
    assert chosen[5:10].sum() == (counts[0] + 1) // 2


@pytest.mark.parametrize("side", [(300, 150), (133, 700), (65, 64)])
def test_crop_is_adms(side, rng):
    """Halved as often as twice the size fits, each side by itself; then made small enough, and its middle taken."""
    image = Image.fromarray(rng.integers(0, 256, (side[1], side[0], 3), dtype=np.uint8))
    want, (width, height) = image, side
    while min(width, height) >= 64:
        width, height = int(width / 2), int(height / 2)
        want = want.resize((width, height), resample=Image.Resampling.BOX)
    ratio = 32 / min(width, height)
    want = np.asarray(want.resize((round(width * ratio), round(height * ratio)), resample=Image.Resampling.BICUBIC))
    top, left = (want.shape[0] - 32) // 2, (want.shape[1] - 32) // 2
    assert np.array_equal(np.asarray(center_crop(image, 32)), want[top : top + 32, left : left + 32])


def test_examples_of_a_class_are_its_images_from_the_first_to_the_last(digits):
    examples = digits.class_examples(classes=2, each=3)
    for label in (0, 1):
        rows = np.flatnonzero(digits.labels == label)
        want = digits[rows[[0, (len(rows) - 1) // 2, len(rows) - 1]]]
        assert np.array_equal(examples[3 * label : 3 * label + 3], want)


def test_pixels_survive_the_round_trip_to_the_model_and_back(rng):
    pixels = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(to_model_range(pixels)).numpy(), pixels)


def test_small_vae_learns_to_rebuild(digits):
    vae = train_vae(digits, (8, 8), 4, 40, 8, 1e-2, 1e-3, seed=0, progress=False)
    before = train_vae(digits, (8, 8), 4, 1, 8, 1e-2, 1e-3, seed=0, progress=False)
    assert psnr(vae, digits) > psnr(before, digits) + 3
    mean, std = encode(vae, digits[:100])
    assert mean.shape == (100, 4, 16, 16)
    assert std.min() > 0
    latents = mean * vae.config["scaling_factor"]
    assert latents.std() == pytest.approx(1, abs=0.15)
    assert decode(vae, latents[:2]).shape == (2, 32, 32, 3)
    assert downsampling_factor(vae) == 2


def test_latents_are_the_posteriors_of_images_and_mirror_images(digits, vae, latents):
    assert (len(latents), latents.flips, latents.channels, latents.size) == (300, 2, 4, 8)
    want = torch.cat(encode(vae, digits[7:8]), dim=1)
    mirrored = torch.cat(encode(vae, np.ascontiguousarray(digits[7:8][:, :, ::-1])), dim=1)
    both = latents.moments(np.array([7, 7]), np.array([0, 1]))
    assert both.dtype == np.float16
    torch.testing.assert_close(torch.tensor(both).float(), torch.cat([want, mirrored]), rtol=2e-3, atol=1e-3)


def test_cut_file_of_latents_is_named(latents, tmp_path):
    shutil.copytree(latents.folder, tmp_path / "cut")
    cut = Latents(tmp_path / "cut")
    path = tmp_path / "cut/moments-00000.npy"
    os.truncate(path, path.stat().st_size - 10)
    assert len(cut.moments(np.array([0]), np.array([1]))) == 1
    with pytest.raises(OSError, match=r"moments-00000.npy is shorter"):
        cut.moments(np.array([0, len(cut) - 1]), np.array([0, 1]))


def test_interrupted_writing_goes_on_with_the_first_file_that_is_not_whole(digits, vae, latents, tmp_path):
    """A file of several, a kill, the rest: the same as in one go, and nothing encoded twice."""
    encoded = []

    def encoder(batch: np.ndarray):
        encoded.append(len(batch))
        if sum(encoded) == 192:
            raise KeyboardInterrupt
        return encode(vae, batch)

    arguments = {"folder": tmp_path, "scaling_factor": 0.5, "mirror": False, "batch_size": 64, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        write_latents(digits, encoder, shard=128, **arguments)
    assert [path.name for path in sorted(tmp_path.glob("moments-*"))] == ["moments-00000.npy"]
    write_latents(digits, encoder, shard=128, **arguments)
    assert sum(encoded) == 192 + 300 - 128
    got, index = Latents(tmp_path), np.array([0, 127, 128, 255, 256, 299, 5])
    assert len(list(tmp_path.glob("moments-*"))) == 3
    flips = np.zeros(7, dtype=int)
    assert (got.flips, latents.flips) == (1, 2)
    np.testing.assert_allclose(got.moments(index, flips), latents.moments(index, flips), rtol=2e-3, atol=1e-3)


def test_no_sample_is_seen_twice_in_an_epoch(latents):
    batches = TrainingBatches(latents, 64, seed=0)
    seen = np.concatenate([batches.indices(step) for step in range(75)])  # 16 epochs of 300
    for epoch in range(16):
        assert sorted(seen[epoch * 300 : (epoch + 1) * 300]) == list(range(300))
    assert seen[:300].tolist() != seen[300:600].tolist()


def test_both_mirror_images_are_drawn(latents):
    batch = TrainingBatches(latents, 300, seed=0)[0]
    index = TrainingBatches(latents, 300, seed=0).indices(0)
    upright = (batch.moments.numpy() == latents.moments(index, np.zeros(300, int))).all((1, 2, 3)).mean()
    assert 0.4 < upright < 0.6
    assert batch.images is None


def test_images_come_with_their_latents_mirrored_where_those_are(latents, digits):
    index = TrainingBatches(latents, 100, seed=0).indices(2)
    batch = TrainingBatches(latents, 100, seed=0, images=digits)[2]
    for row, i in enumerate(index):
        mirrored = not (batch.moments[row].numpy() == latents.moments(np.array([i]), np.array([0]))[0]).all()
        pixels = digits[i : i + 1][0]
        assert np.array_equal(batch.images[row].numpy(), pixels[:, ::-1] if mirrored else pixels)


def test_folders_travel_to_worker_processes_as_their_place(latents, digits):
    assert len(pickle.dumps(latents)) < 500
    assert len(pickle.dumps(digits)) < 500
    index = np.array([3, 250])
    assert np.array_equal(pickle.loads(pickle.dumps(digits))[index], digits[index])
