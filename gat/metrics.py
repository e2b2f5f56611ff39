"""FID, KID, precision and recall from features; the distances themselves are clean-fid's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance, kernel_distance

from gat.config import ParamsError

NEIGHBOURS = 3  # of the manifold estimate behind precision and recall


@dataclass(frozen=True)
class Reference:
    """Statistics of the real images' features.

    Attributes:
        mu, sigma: mean (d,) and covariance (d, d).
        features: (n, d) of some of the images, for KID, precision and recall; None where only the above is known.
        labels: (n,) classes of those, for the spread within classes; None where they are not known.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray | None = None
    labels: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> "Reference":
        """Statistics of all the given features (N, d), which stay with them."""
        return cls(np.mean(features, axis=0), np.cov(features, rowvar=False), features)

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read an `.npz` with `mu` and `sigma` and perhaps `features` and `labels`."""
        with np.load(path, allow_pickle=False) as file:
            return cls(file["mu"], file["sigma"], file.get("features"), file.get("labels"))

    def save(self, path: str | Path) -> None:
        """Write what `load` reads."""
        arrays = {"mu": self.mu, "sigma": self.sigma, "features": self.features, "labels": self.labels}
        np.savez(path, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})


def evenly_spaced(count: int, keep: int) -> np.ndarray:
    """Which `keep` of `count` items to keep, evenly spread, since sources are often in the order of their classes."""
    return np.linspace(0, count - 1, min(keep, count)).round().astype(int)


def read_reference(path: str | Path) -> tuple[Reference, np.ndarray | None]:
    """An `.npz` with `mu` and `sigma`, such as ADM's, and the images uint8 (n, H, W, 3) that it may hold as `arr_0`.

    Raises:
        ParamsError: there is no `mu` or `sigma` in it.
    """
    with np.load(path, allow_pickle=False) as file:
        if missing := {"mu", "sigma"} - set(file.files):
            raise ParamsError(f"metrics.reference: {path} has no {', '.join(sorted(missing))}, only {file.files}")
        return Reference(file["mu"], file["sigma"]), file["arr_0"] if "arr_0" in file.files else None


def fid(features: np.ndarray, reference: Reference) -> float:
    """Fréchet distance of features (N, d) to the reference (FID); smaller is better."""
    mu, sigma = np.mean(features, axis=0), np.cov(features, rowvar=False)
    return float(frechet_distance(mu, sigma, reference.mu, reference.sigma))


def fid_of_halves(features: np.ndarray, seed: int = 0) -> float:
    """FID of a random half of features (N, d) against the other: what as few samples of perfection would get."""
    order = np.random.default_rng(seed).permutation(len(features))
    first, second = np.array_split(features[order], 2)
    return fid(first, Reference.of(second))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """clean-fid draws its subsets from numpy's global state."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


def kid(features: np.ndarray, reference: np.ndarray, seed: int = 0) -> float:
    """Kernel distance of features (N, d) to reference features (n, d): mean over 100 random subsets."""
    with _numpy_seed(seed):
        return kernel_distance(reference, features)


def _radii(features: torch.Tensor) -> torch.Tensor:
    """Distance from each row to its 3rd neighbour, (N,)."""
    nearest = [torch.cdist(rows, features).topk(NEIGHBOURS + 1, largest=False).values for rows in features.split(1000)]
    return torch.cat(nearest)[:, -1]  # a row is its own nearest


def _covered(rows: torch.Tensor, manifold: torch.Tensor, radii: torch.Tensor) -> float:
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
    return _covered(fake, real, _radii(real)), _covered(real, fake, _radii(fake))


def class_spread(features: np.ndarray, labels: np.ndarray) -> float:
    """Variance of features (N, d) within their class, summed over the features and averaged over the classes.

    Relative to that of the reals it tells collapse from quality: 0 where each class is a single image.
    """
    classes = [features[labels == label] for label in np.unique(labels)]
    return float(np.mean([rows.var(axis=0, ddof=1).sum() for rows in classes if len(rows) > 1]))
