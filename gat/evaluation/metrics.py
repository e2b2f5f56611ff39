"""All metrics of samples: FID and KID (clean-fid's), precision and recall, and measures of collapse."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from cleanfid.fid import kernel_distance

from gat.evaluation.fid import Reference, fid

NEIGHBOURS = 3  # k of the manifold estimate of precision and recall


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global random state, from which clean-fid draws its subsets."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def kid(features: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """Kernel distance between features (N, d) and reference features (n, d), the mean over 100 random subsets."""
    with _numpy_seed(seed):
        return kernel_distance(reference, features)


def _knn_radii(features: torch.Tensor) -> torch.Tensor:
    """Distance of each row to its 3rd nearest neighbour, (N,)."""
    nearest = [torch.cdist(rows, features).topk(NEIGHBOURS + 1, largest=False).values for rows in features.split(1000)]
    return torch.cat(nearest)[:, -1]  # the nearest is the row itself


def _fraction_in_manifold(rows: torch.Tensor, manifold: torch.Tensor, radii: torch.Tensor) -> float:
    inside = [(torch.cdist(part, manifold) <= radii).any(dim=1) for part in rows.split(1000)]
    return torch.cat(inside).float().mean().item()


def precision_recall(
    features: np.ndarray, reference: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, k = 3) of features (N, d) against real ones (n, d).

    Returns:
        The share of samples inside the real manifold, and of real images inside the samples' manifold.
    """
    fake, real = (torch.from_numpy(f).to(device, torch.float32) for f in (features, reference))
    return _fraction_in_manifold(fake, real, _knn_radii(real)), _fraction_in_manifold(real, fake, _knn_radii(fake))


def within_class_variance(features: np.ndarray, labels: np.ndarray) -> float:
    """Variance of features (N, d) within each class, summed over features and averaged over classes.

    Its ratio to that of real images measures collapse: it is 0 if all samples of a class are the same image.
    """
    classes = [features[labels == label] for label in np.unique(labels)]
    return float(np.mean([rows.var(axis=0, ddof=1).sum() for rows in classes if len(rows) > 1]))


def compute_metrics(
    features: np.ndarray,
    labels: np.ndarray,
    reference: Reference,
    predicted: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """All metrics of samples that can be computed with this reference.

    Args:
        features: (N, d) of the samples.
        labels: (N,) classes of the samples.
        reference: statistics of the real images.
        predicted: (N,) classes that a classifier predicts for the samples; None: unknown.
        device: for computing distances.
        seed: of KID's subsets.

    Returns:
        `fid`; if the reference has features, `kid`, `precision` and `recall`; if it also has labels, `spread`, the
        within-class variance of samples over that of real images; with `predicted`, `recognized`, the classifier's
        accuracy (0–1) on the samples.
    """
    metrics = {"fid": fid(features, reference)}
    if reference.features is not None:
        precision, recall = precision_recall(features, reference.features, device)
        metrics |= {"kid": kid(features, reference.features, seed), "precision": precision, "recall": recall}
        if reference.labels is not None:
            variance = within_class_variance(reference.features, reference.labels)
            metrics["spread"] = within_class_variance(features, labels) / variance
    if predicted is not None:
        metrics["recognized"] = float(np.mean(predicted == labels))
    return metrics
