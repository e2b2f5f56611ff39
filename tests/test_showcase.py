"""Pictures of what a model can do: each is what it says."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from gat.release.pipeline import GATPipeline
from gat.release.showcase import level_images, mosaic, nearest, save_sheet, save_video, sweep, walk


def image(pipeline: GATPipeline, label: int, seed: int, **options: float) -> np.ndarray:
    return np.asarray(pipeline(label, generator=torch.Generator().manual_seed(seed), **options).images[0])


@pytest.mark.parametrize("option", ["truncation_psi", "guidance_scale"])
def test_a_sweep_is_the_pipelines_own_images(option, pipeline):
    swept = sweep(pipeline, [3, 7], [0, 5], option, [0.0, 0.5, 1.0])
    assert swept.shape == (2, 3, 2, 32, 32, 3)
    for i, label in enumerate((3, 7)):
        for j, value in enumerate((0.0, 0.5, 1.0)):
            for k, seed in enumerate((0, 5)):
                assert np.array_equal(swept[i, j, k], image(pipeline, label, seed, **{option: value}))
    assert not np.array_equal(swept[0, 0, 0], swept[0, 2, 0])


def test_the_last_level_is_the_sample_and_the_others_are_not(pipeline):
    levels = level_images(pipeline, [3, 7], [0, 5])
    assert levels.shape == (2, 4, 32, 32, 3)
    for own, label, seed in zip(levels, (3, 7), (0, 5), strict=True):
        want = image(pipeline, label, seed).astype(int)
        assert np.abs(own[-1] - want).max() <= 1
        assert np.abs(own[0] - want).max() > 10


def test_nearest_are_the_nearest_and_an_image_is_not_its_own_neighbour(rng):
    candidates = rng.normal(size=(50, 4))
    features = candidates[[7, 20]] + 1e-3
    rows, distances = nearest(features, candidates, 3)
    assert rows[:, 0].tolist() == [7, 20]
    np.testing.assert_allclose(distances[:, 0], 2e-3, rtol=1e-2)
    assert (np.diff(distances) >= 0).all()
    slow = np.linalg.norm(features[1] - candidates, axis=1)
    assert rows[1].tolist() == np.argsort(slow)[:3].tolist()
    others, _ = nearest(candidates[[7, 20]], candidates, 49, own=np.array([7, 20]))
    assert [sorted(row) for row in others] == [[i for i in range(50) if i != own] for own in (7, 20)]


def test_a_walk_passes_through_its_samples_and_closes(pipeline):
    frames = walk(pipeline, [3, 7, 1], [0, 5, 2], 16).astype(int)
    assert frames.shape == (48, 32, 32, 3)
    for i, (label, seed) in enumerate(((3, 0), (7, 5), (1, 2))):
        assert np.abs(frames[16 * i] - image(pipeline, label, seed)).max() <= 1
    steps = np.abs(frames - np.roll(frames, -1, axis=0)).mean((1, 2, 3))  # the last one is to the first frame
    stops = np.abs(frames[[0, 16, 32]] - frames[[16, 32, 0]]).mean((1, 2, 3))
    assert steps.max() < 0.35 * stops.min()
    assert steps[-1] < 1.5 * steps.mean() + 1


def test_a_mosaic_has_its_rows_below_one_another(rng):
    images = rng.integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    picture = mosaic(images)
    assert picture.shape == (8, 15, 3)
    assert np.array_equal(picture[4:, 10:], images[1, 2])


def test_pictures_are_without_loss_and_videos_play(rng, tmp_path):
    images = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    assert save_sheet(tmp_path / "a.webp", images) == {"side": 8, "exact": True}
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.webp").convert("RGB")), mosaic(images))
    shades = np.linspace(40, 200, 12).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (12, 33, 33, 3))
    save_video(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 12
    assert decoded[0].shape[0] >= 256
    assert [round(float(frame.mean())) for frame in decoded] == pytest.approx(shades, abs=4)


def test_large_sheets_lose_a_little_and_never_more_than_webp_can_hold(rng, tmp_path):
    large = np.broadcast_to(rng.integers(0, 256, (1, 1, 1, 1, 3), dtype=np.uint8), (9, 4, 512, 512, 3))
    assert save_sheet(tmp_path / "large.webp", large) == {"side": 256, "exact": False}
    assert Image.open(tmp_path / "large.webp").size == (4 * 256, 9 * 256)
    many = np.zeros((2000, 2, 32, 32, 3), np.uint8)
    assert save_sheet(tmp_path / "many.webp", many) == {"side": 8, "exact": False}
    assert Image.open(tmp_path / "many.webp").size == (16, 16_000)
