"""Features of many real or generated images, computed on all processes."""

from collections.abc import Callable, Iterator

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from gat.config import ParamsError
from gat.evaluation.fid import Reference, evenly_spaced

SampleFn = Callable[[int, int], np.ndarray]  # (start, stop) -> images start to stop, uint8 (n, H, W, 3)
FeatureFn = Callable[[np.ndarray], np.ndarray]  # images -> features (n, d)


def _local_batches(
    images: SampleFn, extract: FeatureFn, count: int, batch_size: int, progress: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """This process's batches of features, each with the index of its first image."""
    state = PartialState()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    for start in tqdm(
        starts, desc="samples", unit="batch", disable=not (progress and state.is_main_process), leave=False
    ):
        yield start, extract(images(start, min(start + batch_size, count)))


def compute_features(
    images: SampleFn,
    extract: FeatureFn,
    count: int,
    batch_size: int,
    progress: bool = True,
) -> np.ndarray:
    """Features (count, d) of images 0 to count, in order, computed on all processes and returned on each.

    Args:
        images: samples or real images, by index.
        extract: features of images.
        count: number of images.
        batch_size: images per batch on each process.
        progress: show a progress bar.
    """
    mine = list(_local_batches(images, extract, count, batch_size, progress))
    return np.concatenate([features for _, features in sorted(gather_object(mine), key=lambda item: item[0])])


def compute_reference(
    images: SampleFn,
    extract: FeatureFn,
    count: int,
    batch_size: int,
    keep: int,
    labels: np.ndarray | None = None,
    progress: bool = True,
) -> Reference:
    """Mean and covariance of the features of images 0 to count, and the features of `keep` evenly spaced ones.

    All processes must call it, and each gets the result. Memory does not grow with `count`. `labels` (count,) are the
    classes of the images, if known; other arguments as in `compute_features`.

    Raises:
        ParamsError: there is only one image.
    """
    if count < 2:
        raise ParamsError(f"data.source: the reference statistics need at least two images, not {count}")
    kept = evenly_spaced(count, keep)
    total, products, rows = np.zeros(1), np.zeros(1), []
    for start, features in _local_batches(images, extract, count, batch_size, progress):
        exact = features.astype(np.float64)
        total, products = total + exact.sum(0), products + exact.T @ exact
        mine = kept[(kept >= start) & (kept < start + len(features))]
        rows.append((start, features[mine - start]))
    parts = gather_object([(total, products, rows)])
    mu = sum(total for total, _, _ in parts) / count
    sigma = (sum(products for _, products, _ in parts) - count * np.outer(mu, mu)) / (count - 1)
    all_rows = sorted((row for _, _, rows in parts for row in rows), key=lambda row: row[0])
    kept_labels = None if labels is None else np.asarray(labels[kept])
    return Reference(mu, sigma, np.concatenate([features for _, features in all_rows]), kept_labels)
