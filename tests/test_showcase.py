"""What a showcase shows: images that equal the pipeline's, nearest training images, files, the live generator."""

import copy

import av
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from gat.evaluation.grid import image_grid
from gat.evaluation.sampling import seed_noise
from gat.release.demo import make_image
from gat.release.live import INPUTS, export_onnx, size_megabytes
from gat.release.pipeline import GATPipeline
from gat.release.showcase import TrainingFeatures, level_images, neighbours, save_sheet, save_video, sweep, walk


def image(pipeline: GATPipeline, label: int, seed: int, **options: float) -> np.ndarray:
    made = pipeline(label, generator=torch.Generator().manual_seed(seed), **options).images[0]
    return np.asarray(made).astype(int)


@pytest.mark.parametrize("option", ["truncation_psi", "guidance_scale"])
def test_a_sweep_has_the_pipelines_images(option, pipeline):
    swept = sweep(pipeline, [3, 7], [0, 5], option, [0.0, 0.5, 1.0])
    assert swept.shape == (2, 3, 2, 32, 32, 3)
    for i, label in enumerate((3, 7)):
        for j, value in enumerate((0.0, 0.5, 1.0)):
            for k, seed in enumerate((0, 5)):
                assert np.array_equal(swept[i, j, k], image(pipeline, label, seed, **{option: value}))
    assert not np.array_equal(swept[0, 0, 0], swept[0, 2, 0])


def test_the_last_level_is_the_sample_and_the_first_is_not(pipeline):
    levels = level_images(pipeline, [3, 7], [0, 5])
    assert levels.shape == (2, 4, 32, 32, 3)
    for own, label, seed in zip(levels, (3, 7), (0, 5), strict=True):
        want = image(pipeline, label, seed)
        assert np.abs(own[-1] - want).max() <= 1
        assert np.abs(own[0] - want).max() > 10


def test_nearest_training_images_are_found_copies_among_them(digits, rng):
    """Features are known of every second image; three samples are copies, one is noise."""
    rows = np.arange(0, 300, 2)
    training = TrainingFeatures(digits, rows, pixels(digits[rows]), pixels)
    samples = digits[np.array([4, 8, 10, 298])].reshape(2, 2, 32, 32, 3)
    samples[1, 0] = rng.integers(0, 256, samples.shape[2:])
    pictures, distances = neighbours(samples, training, 3)
    assert pictures.shape == (2 + 2, 1 + 3, 32, 32, 3)
    assert np.array_equal(pictures[0, :2], samples[[0, 0], [0, 0]])
    from_noise = np.linalg.norm(training.features - pixels(samples[1:, 0]), axis=1)
    assert np.array_equal(pictures[1], [samples[1, 0], *digits[rows[np.argsort(from_noise)[:3]]]])
    assert distances["samples"] == [0, 0, pytest.approx(from_noise.min(), rel=1e-5), 0]
    assert (pictures[2:, 0] != pictures[2:, 1]).any((1, 2, 3)).all()  # of reals the nearest other ones
    assert len(distances["reals"]) == 4
    assert min(distances["reals"]) > 0


def pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def test_a_walk_passes_through_its_samples_and_closes(pipeline):
    frames = walk(pipeline, [3, 7, 1], [0, 5, 2], 16).astype(int)
    assert frames.shape == (48, 32, 32, 3)
    for i, (label, seed) in enumerate(((3, 0), (7, 5), (1, 2))):
        assert np.abs(frames[16 * i] - image(pipeline, label, seed)).max() <= 1
    steps = np.abs(frames - np.roll(frames, -1, axis=0)).mean((1, 2, 3))  # the last one is to the first frame
    stops = np.abs(frames[[0, 16, 32]] - frames[[16, 32, 0]]).mean((1, 2, 3))
    assert steps.max() < 0.35 * stops.min()
    assert steps[-1] < 1.5 * steps.mean() + 1


def test_small_sheets_are_lossless_and_large_ones_fit_into_webp(rng, tmp_path):
    images = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    assert save_sheet(tmp_path / "a.webp", images) == {"side": 8, "exact": True}
    saved = np.asarray(Image.open(tmp_path / "a.webp").convert("RGB"))
    assert np.array_equal(saved, image_grid(images.reshape(6, 8, 8, 3), columns=3))
    large = np.broadcast_to(rng.integers(0, 256, (1, 1, 1, 1, 3), dtype=np.uint8), (9, 4, 512, 512, 3))
    assert save_sheet(tmp_path / "large.webp", large) == {"side": 256, "exact": False}
    assert Image.open(tmp_path / "large.webp").size == (4 * 256, 9 * 256)
    many = np.zeros((2000, 2, 32, 32, 3), np.uint8)
    assert save_sheet(tmp_path / "many.webp", many) == {"side": 8, "exact": False}
    assert Image.open(tmp_path / "many.webp").size == (16, 16_000)


def test_videos_play(tmp_path):
    shades = np.linspace(40, 200, 12).astype(np.uint8)
    save_video(tmp_path / "a.mp4", np.broadcast_to(shades[:, None, None, None], (12, 33, 33, 3)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert decoded[0].shape[0] >= 256
    assert [round(float(frame.mean())) for frame in decoded] == pytest.approx(shades, abs=4)


def test_live_generator_makes_the_pipelines_images(pipeline, tmp_path):
    """Exported from a pipeline in half precision, on a GPU if there is one, which stays what it is."""
    pipeline = GATPipeline(copy.deepcopy(pipeline.generator), copy.deepcopy(pipeline.vae))
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)
    before = pipeline.device, pipeline.generator.dtype, pipeline.vae.dtype
    export_onnx(pipeline, tmp_path / "a.onnx")
    assert (pipeline.device, pipeline.generator.dtype, pipeline.vae.dtype) == before
    pipeline.to("cpu", torch.float32)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")

    def live(psi: float, mix: float) -> np.ndarray:
        values = (seed_noise([0, 5]).numpy(), np.array([3, 7]), np.array([psi], "f"), np.array([mix], "f"))
        return session.run(None, dict(zip(INPUTS, values, strict=True)))[0].astype(int)

    for psi in (0.0, 0.5, 1.0):
        assert np.abs(live(psi, 0.0) - image(pipeline, 3, 0, truncation_psi=psi)).max() <= 1
        assert np.abs(live(psi, 1.0) - image(pipeline, 7, 5, truncation_psi=psi)).max() <= 1
    assert np.abs(live(0.0, 0.5) - make_image(pipeline, (3, 7), (0, 5), 0.5)).max() <= 1
    assert np.abs(live(0.0, 0.5) - live(0.0, 0.0)).max() > 5
    assert b".py" not in (tmp_path / "a.onnx").read_bytes()  # no lines of code or paths
    weights = [p for part in (pipeline.generator, pipeline.vae.decoder) for p in part.parameters()]
    assert size_megabytes(pipeline) == pytest.approx(4e-6 * sum(p.numel() for p in weights), rel=1e-3)


def test_the_demo_shows_the_pipelines_images(pipeline):
    options = {"truncation_psi": 0.3, "guidance_scale": 1.5}
    for mix, label, seed in ((0.0, 4, 9), (1.0, 2, 1)):
        made = make_image(pipeline, (4, 2), (9, 1), mix, **options)
        assert np.abs(made - image(pipeline, label, seed, **options)).max() <= 1
