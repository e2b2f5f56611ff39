"""Images and a video of what a pipeline makes: sweeps, level images, nearest training images, an interpolation."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist
from tqdm import tqdm

from gat.config import ParamsError, Showcase
from gat.data.images import Images
from gat.data.pixels import decode
from gat.evaluation.fid import evenly_spaced
from gat.evaluation.grid import image_grid
from gat.evaluation.sampling import seed_noise
from gat.release.live import export_onnx, size_megabytes
from gat.release.pipeline import GATPipeline
from gat.release.styles import sample_styles, style_images

SWEEPS = ("truncation_psi", "guidance_scale")  # options of the pipeline
LIVE_SEEDS = 64  # that the live generator offers
LOSSLESS_PIXELS = 1_000_000
TILE_SIDE = 256  # maximum side in pixels of an image in a sheet
SHEET_SIDE = 16_383  # maximum side in pixels of a WebP
VIDEO_SIDE = 256  # minimum side in pixels
FRAMES_PER_SECOND = 24


class TrainingFeatures(NamedTuple):
    """Features of training images, to find the nearest ones.

    Attributes:
        images: all training images.
        rows: (M,) indices of the images whose features are known.
        features: (M, d).
        extract: computes features (N, d) of images uint8 (N, H, W, 3).
    """

    images: Images
    rows: np.ndarray
    features: np.ndarray
    extract: Callable[[np.ndarray], np.ndarray]


def write_showcase(
    folder: Path, pipeline: GATPipeline, settings: Showcase, training: TrainingFeatures | None
) -> dict[str, Any]:
    """Write the images, the video and, of a small model, the live generator's graph; `stages.showcase` lists the files.

    Without features of `training` images no neighbours are shown.

    Returns:
        Labels, seeds, values and sizes of what was written, distances to the nearest training images, and the live
        generator's noise.

    Raises:
        ParamsError: `showcase.classes` has a class that the generator does not have.
    """
    classes = pipeline.generator.config["classes"]
    labels = settings.classes if settings.classes is not None else list(range(min(10, classes)))
    if max(labels) >= classes:
        raise ParamsError(f"showcase.classes: {max(labels)} is not allowed; allowed: 0 to {classes - 1}")
    seeds, names = list(range(settings.seeds)), pipeline.config.classes or [str(label) for label in range(classes)]
    stops = [labels[i % len(labels)] for i in range(settings.walk_stops)]
    shown: dict[str, Any] = {
        "labels": labels,
        "names": [names[label] for label in labels],
        "all_names": names,
        "seeds": seeds,
        "levels": pipeline.generator.config["levels"],
        "neighbours": {},
        "live": size_megabytes(pipeline) <= settings.live_megabytes,
        "exact": True,
        "walk": [names[label] for label in stops],
    }
    with tqdm(total=6, desc="showcase", unit="part") as bar:
        for option in SWEEPS:
            shown[option] = getattr(settings, option)
            for i, images in enumerate(sweep(pipeline, labels, seeds, option, shown[option])):
                sheet = save_sheet(folder / f"{option}-{i}.webp", images)
                shown |= sheet | {"exact": shown["exact"] and sheet["exact"]}
            bar.update()
        save_sheet(folder / "levels.webp", level_images(pipeline, labels, [0] * len(labels)))
        bar.update()
        if training is not None:
            samples = sweep(pipeline, labels, seeds, "truncation_psi", [0.0])[:, 0]
            images, shown["neighbours"] = neighbours(samples, training, settings.neighbours)
            save_sheet(folder / "neighbours.webp", images)
        bar.update()
        save_video(folder / "walk.mp4", walk(pipeline, stops, range(len(stops)), settings.walk_frames))
        bar.update()
        if shown["live"]:
            shown["noise"] = [[round(z, 7) for z in row] for row in seed_noise(range(LIVE_SEEDS)).tolist()]
            export_onnx(pipeline, folder / "generator.onnx")
        bar.update()
    return shown


def sweep(
    pipeline: GATPipeline, labels: Sequence[int], seeds: Sequence[int], option: str, values: Sequence[float]
) -> np.ndarray:
    """The same samples at several values of one of the pipeline's options: uint8 (labels, values, seeds, H, W, 3).

    One call makes one image, so each equals the pipeline's image of its label, seed and value bit for bit.
    """

    def image(label: int, seed: int, value: float) -> np.ndarray:
        options: dict[str, Any] = {option: value, "generator": torch.Generator().manual_seed(seed)}
        return np.asarray(pipeline(label, return_dict=False, **options)[0][0])

    return np.array([[[image(label, seed, value) for seed in seeds] for value in values] for label in labels])


@torch.no_grad()
def level_images(pipeline: GATPipeline, labels: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """Level images of B samples, decoded, without the noise that training adds: uint8 (B, K, H, W, 3).

    The last level is the sample itself.
    """
    levels = pipeline.generator.synthesis(sample_styles(pipeline, labels, seeds))
    return np.stack([decode(pipeline.vae, level).cpu().numpy() for level in levels], axis=1)


def neighbours(samples: np.ndarray, training: TrainingFeatures, count: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Nearest training images of samples and, for comparison, of real images: copies would be nearer than reals are.

    Args:
        samples: uint8 (labels, seeds, H, W, 3).
        training: features of training images.
        count: neighbours of each image.

    Returns:
        Images (rows, 1 + count, H, W, 3), in each row an image and its neighbours: the first sample of each label,
        then as many reals. And the distances of all samples, and of as many reals, to their nearest training image.
    """
    images, kept, features, extract = training
    flat = samples.reshape(-1, *samples.shape[2:])
    reals = evenly_spaced(len(features), len(flat))
    queries = np.concatenate([flat, images[kept[reals]]])
    distances = cdist(np.concatenate([extract(flat), features[reals]]), features)
    distances[len(flat) + np.arange(len(reals)), reals] = np.inf  # a real image is not its own neighbour
    rows, nearest = distances.argsort(axis=1)[:, : min(count, len(features) - 1)], distances.min(axis=1).round(4)
    pictures = [[queries[i], *images[kept[rows[i]]]] for i in range(0, len(queries), samples.shape[1])]
    return np.array(pictures), {
        "training_images": len(kept),
        "of": len(images),
        "samples": nearest[: len(flat)].tolist(),
        "reals": nearest[len(flat) :].tolist(),
    }


def walk(pipeline: GATPipeline, labels: Sequence[int], seeds: Sequence[int], frames: int) -> np.ndarray:
    """Images along a closed curve through the styles of B samples: uint8 (B · frames, H, W, 3).

    Every `frames` images it passes through a sample. The curve is a periodic cubic spline: position and velocity are
    continuous, also from the last image to the first.
    """
    w = sample_styles(pipeline, labels, seeds)
    curve = CubicSpline(np.arange(len(w) + 1), torch.cat([w, w[:1]]).float().cpu(), bc_type="periodic")
    styles = torch.from_numpy(curve(np.arange(len(w) * frames) / frames)).to(w)
    return style_images(pipeline.generator, pipeline.vae, styles).cpu().numpy()


def save_sheet(path: Path, images: np.ndarray) -> dict[str, Any]:
    """Write images, uint8 (rows, columns, H, W, 3), edge to edge as a WebP.

    Up to a million pixels it is lossless. Images larger than 256 pixels, or than WebP's maximum allows, are shrunk.

    Returns:
        `side`, in pixels, of an image in the sheet, and `exact`, whether it holds every pixel as it was.
    """
    rows, columns, side = images.shape[:3]
    fitting = min(side, TILE_SIDE, SHEET_SIDE // max(rows, columns))
    tiles = images.reshape(-1, *images.shape[2:])
    if fitting < side:
        shrunk = (Image.fromarray(tile).resize((fitting, fitting), Image.Resampling.LANCZOS) for tile in tiles)
        tiles = np.stack([np.asarray(tile) for tile in shrunk])
    sheet = Image.fromarray(image_grid(tiles, columns))
    lossless = sheet.width * sheet.height <= LOSSLESS_PIXELS
    sheet.save(path, format="WEBP", lossless=lossless, quality=80 if lossless else 90, method=6)
    return {"side": fitting, "exact": lossless and fitting == side}


def save_video(path: Path, frames: np.ndarray) -> None:
    """Write frames, uint8 (T, H, W, 3), as an H.264 MP4, which every browser plays; small frames are enlarged."""
    factor = max(1, -(-VIDEO_SIDE // frames.shape[1]))
    height, width = (side * factor // 2 * 2 for side in frames.shape[1:3])  # H.264 needs even sides
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
        for pixels in frames:
            enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(enlarged), format="rgb24")))
        container.mux(stream.encode())
