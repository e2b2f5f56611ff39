"""What a trained model can do, as pictures: sweeps of truncation and guidance, level images, neighbours, a walk."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from scipy.interpolate import CubicSpline

from gat.data.images import Images
from gat.data.pixels import decode
from gat.evaluation.sampling import seed_noise
from gat.release.pipeline import GATPipeline

SWEEPS = ("truncation_psi", "guidance_scale")  # options of the pipeline
LOSSLESS_PIXELS = 1_000_000
TILE_SIDE = 256  # pixels of a tile of a sheet, at most
SHEET_SIDE = 16_383  # pixels of a WebP's side, at most
VIDEO_SIDE = 256  # pixels, at least
FRAMES_PER_SECOND = 24


def sweep(
    pipeline: GATPipeline, labels: Sequence[int], seeds: Sequence[int], option: str, values: Sequence[float]
) -> np.ndarray:
    """The same samples at several values of an option of the pipeline: uint8 (labels, values, seeds, H, W, 3).

    Each is made alone, and so is to the bit what the pipeline makes of its label, seed and value.
    """

    def image(label: int, seed: int, value: float) -> np.ndarray:
        options: dict[str, Any] = {option: value, "generator": torch.Generator().manual_seed(seed)}
        return np.asarray(pipeline(label, return_dict=False, **options)[0][0])

    return np.array([[[image(label, seed, value) for seed in seeds] for value in values] for label in labels])


@torch.no_grad()
def level_images(pipeline: GATPipeline, labels: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
    """What the discriminator sees of a sample, without its noise: uint8 (B, K, H, W, 3), the last one the sample."""
    generator, device = pipeline.generator, pipeline.generator.w_avg.device
    levels = generator(seed_noise(seeds).to(device), torch.tensor(labels, device=device), return_levels=True)
    images = [decode(pipeline.vae, level).cpu().numpy() for level in levels]
    return np.stack(images, axis=1)


def nearest(
    features: np.ndarray, candidates: np.ndarray, count: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest candidates (M, d) to features (N, d): their rows int64 (N, count) and distances (N, count).

    Args:
        features: of some images.
        candidates: of the images to compare them with.
        count: how many, at most M, or M − 1 with `own`.
        own: (N,) rows of the same images among the candidates, which are passed over.
    """
    x, y = torch.from_numpy(features).float(), torch.from_numpy(candidates).float()
    # Not by products, which lose what is small, such as the distance to a copy.
    distances = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    if own is not None:
        distances[torch.arange(len(own)), torch.from_numpy(own)] = torch.inf
    values, rows = distances.topk(count, largest=False)
    return rows.numpy(), values.numpy()


@torch.no_grad()
def walk(pipeline: GATPipeline, labels: Sequence[int], seeds: Sequence[int], frames: int) -> np.ndarray:
    """A closed curve through the styles w of some samples: uint8 (B · frames, H, W, 3), a sample every `frames`.

    A periodic cubic spline, so that neither place nor speed jumps, nor where the last frame meets the first.
    """
    generator, device = pipeline.generator, pipeline.generator.w_avg.device
    w = generator.mapping(seed_noise(seeds).to(device), torch.tensor(labels, device=device)).float().cpu().numpy()
    curve = CubicSpline(np.arange(len(w) + 1), np.concatenate([w, w[:1]]), bc_type="periodic")
    styles = torch.from_numpy(curve(np.arange(len(w) * frames) / frames)).to(device, generator.dtype)
    latents = torch.cat([generator.synthesis(part)[-1] for part in styles.split(64)])
    return decode(pipeline.vae, latents).cpu().numpy()


def neighbours_of(
    samples: np.ndarray,
    images: Images,
    kept: np.ndarray,
    extract: Callable[[np.ndarray], np.ndarray],
    features: np.ndarray,
    count: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Nearest training images of samples, and of reals for comparison: copies would be nearer than reals are.

    Args:
        samples: uint8 (labels, seeds, H, W, 3).
        images: the training images.
        kept: (M,) which of them have features.
        extract: features (N, d) of images (N, H, W, 3).
        features: (M, d) of the kept ones.
        count: neighbours of each image.

    Returns:
        Images (rows, 1 + count, H, W, 3), the first sample of each label with its neighbours, then as many reals; and
        the distances of all samples and of as many reals to their nearest, by name.
    """
    flat, shown = (
        samples.reshape(-1, *samples.shape[2:]),
        range(0, samples.shape[0] * samples.shape[1], samples.shape[1]),
    )
    count = min(count, len(features) - 1)
    rows, distances = nearest(extract(flat), features, count)
    own = np.linspace(0, len(kept) - 1, len(flat)).round().astype(int)
    real_rows, real_distances = nearest(features[own], features, count, own)
    pictures = [[flat[i], *images[kept[rows[i]]]] for i in shown]
    pictures += [[images[kept[own[i : i + 1]]][0], *images[kept[real_rows[i]]]] for i in shown]
    return np.array(pictures), {
        "training_images": len(kept),
        "of": len(images),
        "samples": distances[:, 0].round(4).tolist(),
        "reals": real_distances[:, 0].round(4).tolist(),
    }


def mosaic(images: np.ndarray) -> np.ndarray:
    """Images (rows, columns, H, W, 3) edge to edge: (rows · H, columns · W, 3)."""
    rows, columns, height, width, channels = images.shape
    return images.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def save_sheet(path: Path, images: np.ndarray) -> dict[str, Any]:
    """Write images, uint8 (rows, columns, H, W, 3), edge to edge as a WebP.

    A small sheet is without loss; one of millions of pixels loses a little, and its images are made smaller where they
    are larger than 256 pixels or WebP could not hold them.

    Returns:
        `side`, of an image in the sheet, and `exact`, whether every pixel is as it was.
    """
    rows, columns, side = images.shape[:3]
    fitting = min(side, TILE_SIDE, SHEET_SIDE // max(rows, columns))
    if fitting < side:
        flat = (
            Image.fromarray(image).resize((fitting, fitting), Image.Resampling.LANCZOS)
            for row in images
            for image in row
        )
        images = np.array([np.asarray(image) for image in flat]).reshape(rows, columns, fitting, fitting, 3)
    picture = mosaic(images)
    lossless = picture.shape[0] * picture.shape[1] <= LOSSLESS_PIXELS
    Image.fromarray(picture).save(path, format="WEBP", lossless=lossless, quality=80 if lossless else 90, method=6)
    return {"side": fitting, "exact": lossless and fitting == side}


def save_video(path: Path, frames: np.ndarray) -> None:
    """Write frames, uint8 (T, H, W, 3), as an MP4 of H.264 that every browser plays; small ones are enlarged."""
    factor = max(1, -(-VIDEO_SIDE // frames.shape[1]))
    height, width = (side * factor // 2 * 2 for side in frames.shape[1:3])  # H.264 wants even sides
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND), options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
        for pixels in frames:
            enlarged = pixels.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(enlarged), format="rgb24")))
        container.mux(stream.encode())
