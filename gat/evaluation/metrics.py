"""All metrics of samples: FID and KID (clean-fid's), precision and recall, and measures of collapse."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from cleanfid.fid import kernel_distance
from sklearn.neighbors import KNeighborsClassifier

from gat.evaluation.fid import Reference, evenly_spaced, fid

NEIGHBOURS, NEIGHBOURS_OF_REALS = 3, 5  # k of precision and recall, and of density and coverage
NEIGHBOURS_OF_CLASSES = 10  # k by which classes are told


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


def _tensors(*features: np.ndarray, device: torch.device | str) -> list[torch.Tensor]:
    return [torch.from_numpy(own).to(device, torch.float32) for own in features]


def _knn_radii(features: torch.Tensor, k: int) -> torch.Tensor:
    """Distance of each row to its k-th nearest neighbour, (N,)."""
    nearest = [torch.cdist(rows, features).topk(k + 1, largest=False).values for rows in features.split(1000)]
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
    fake, real = _tensors(features, reference, device=device)
    return (
        _fraction_in_manifold(fake, real, _knn_radii(real, NEIGHBOURS)),
        _fraction_in_manifold(real, fake, _knn_radii(fake, NEIGHBOURS)),
    )


def density_coverage(
    features: np.ndarray, reference: np.ndarray, device: torch.device | str = "cpu"
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, k = 5) of features (N, d) against real ones (n, d).

    Both look at the balls around real images that reach to their 5th nearest other one, so that an outlier among the
    samples has no part in them.

    Returns:
        The mean number of balls that a sample lies in, divided by k; and the share of balls with a sample in them.
    """
    fake, real = _tensors(features, reference, device=device)
    radii = _knn_radii(real, NEIGHBOURS_OF_REALS)
    balls = covered = 0
    for centers, reach in zip(real.split(1000), radii.split(1000), strict=True):
        inside = torch.cdist(centers, fake) <= reach[:, None]
        balls, covered = balls + int(inside.sum()), covered + int(inside.any(dim=1).sum())
    return balls / (NEIGHBOURS_OF_REALS * len(fake)), covered / len(real)


def nearest_in_training(
    features: np.ndarray, training: np.ndarray, held: np.ndarray, device: torch.device | str = "cpu"
) -> float:
    """Share (0–1) of samples (N, d) whose nearest real image is a training image, among as many of both kinds.

    0.5 if samples are no nearer to the images that were trained on than to others. If all are copies of training images
    it is 0.5 + n / 2, n the share of the training images that are compared, as many as there are held-out ones.
    """
    count = min(len(training), len(held))
    fake, *reals = _tensors(features, *(own[evenly_spaced(len(own), count)] for own in (training, held)), device=device)
    of_training, of_held = (
        torch.cat([torch.cdist(rows, own).min(dim=1).values for rows in fake.split(1000)]) for own in reals
    )
    return ((of_training < of_held).float() + (of_training == of_held).float() / 2).mean().item()


def within_class_variance(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Variance of features (N, d) within each class, summed over features and averaged over classes.

    Its ratio to that of real images measures collapse: it is 0 if all samples of a class are the same image. A class of
    fewer than two images has no variance.
    """
    rows = [features[labels == label] for label in range(classes)]
    return float(sum(own.var(axis=0, ddof=1).sum() for own in rows if len(own) > 1) / classes)


def neighbour_accuracy(features: np.ndarray, labels: np.ndarray, known: np.ndarray, known_labels: np.ndarray) -> float:
    """Share (0–1) of features (N, d) whose class most of their ten nearest known features (M, d) have."""
    return float(
        KNeighborsClassifier(min(NEIGHBOURS_OF_CLASSES, len(known))).fit(known, known_labels).score(features, labels)
    )


def compute_metrics(
    features: np.ndarray,
    labels: np.ndarray | None,
    reference: Reference,
    predicted: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """All metrics of samples that can be computed with this reference.

    Args:
        features: (N, d) of the samples.
        labels: (N,) classes of the samples; None: unknown.
        reference: statistics of the real images.
        predicted: (N,) classes that a classifier predicts for the samples; None: unknown.
        device: for computing distances.
        seed: of KID's subsets.

    Returns:
        `fid`; if the reference has features, `kid`, `precision`, `recall`, `density` and `coverage`; with `labels` and
        `predicted`, `recognized`, the classifier's accuracy (0–1) on the samples, and if the reference has labels,
        `spread`, the within-class variance of recognized samples over that of real images; if the reference has
        held-out images, `fid_held` against them, and `nearest_in_training`.
    """
    metrics = {"fid": fid(features, reference)}
    if reference.held is not None and len(reference.held) > features.shape[1]:  # else their covariance is singular
        metrics["fid_held"] = fid(features, Reference.from_features(reference.held))
    if reference.features is not None:
        precision, recall = precision_recall(features, reference.features, device)
        density, coverage = density_coverage(features, reference.features, device)
        metrics |= {"kid": kid(features, reference.features, seed), "precision": precision, "recall": recall}
        metrics |= {"density": density, "coverage": coverage}
    if reference.features is not None and reference.held is not None:
        metrics["nearest_in_training"] = nearest_in_training(features, reference.features, reference.held, device)
    if predicted is not None and labels is not None:
        recognized = predicted == labels
        metrics["recognized"] = float(np.mean(recognized))
        if reference.features is not None and reference.labels is not None:
            classes = int(max(reference.labels.max(), labels.max())) + 1
            variance = within_class_variance(reference.features, reference.labels, classes)
            metrics["spread"] = within_class_variance(features[recognized], labels[recognized], classes) / variance
    return metrics
