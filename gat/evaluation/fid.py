"""FID and its reference statistics of real images; the Fréchet distance is clean-fid's."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cleanfid.fid import frechet_distance

from gat.config import ParamsError


@dataclass(frozen=True)
class Reference:
    """Statistics of the real images' features.

    Attributes:
        mu, sigma: mean (d,) and covariance (d, d).
        features: (n, d) of some of the images, for KID, precision and recall; None: unknown.
        labels: (n,) classes of these images, for the within-class variance; None: unknown.
        class_counts: (classes,) class proportions of samples to compare; None: each class equally often.
        held: (m, d) features of the real images that are held out of all training; None: there are none.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray | None = None
    labels: np.ndarray | None = None
    class_counts: np.ndarray | None = None
    held: np.ndarray | None = None

    @classmethod
    def from_features(cls, features: np.ndarray) -> "Reference":
        """Mean and covariance of these features (N, d), with the features themselves."""
        return cls(np.mean(features, axis=0), np.cov(features, rowvar=False), features)

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read an `.npz` with `mu` and `sigma`, and optionally the other attributes."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**{field.name: file.get(field.name) for field in dataclasses.fields(cls)})

    def save(self, path: str | Path) -> None:
        """Write what `load` reads."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        np.savez(path, allow_pickle=False, **{name: array for name, array in arrays.items() if array is not None})


def evenly_spaced(count: int, keep: int) -> np.ndarray:
    """Indices of `keep` evenly spaced items of `count`, since sources are often sorted by class."""
    return np.linspace(0, count - 1, min(keep, count)).round().astype(int)


def read_reference(path: str | Path, extractor: str, width: int) -> tuple[Reference, np.ndarray | None]:
    """Read an `.npz` with `mu` and `sigma`, such as ADM's, and its images `arr_0`, uint8 (n, H, W, 3), if it has any.

    Args:
        path: the file.
        extractor: name of the extractor whose features it should have.
        width: number of these features.

    Raises:
        ParamsError: `mu` or `sigma` is missing, or has another number of features.
    """
    with np.load(path, allow_pickle=False) as file:
        if missing := {"mu", "sigma"} - set(file.files):
            raise ParamsError(f"metrics.reference: {path} has no {', '.join(sorted(missing))}, only {file.files}")
        reference, images = Reference(file["mu"], file["sigma"]), file["arr_0"] if "arr_0" in file.files else None
    if len(reference.mu) != width:
        raise ParamsError(
            f"metrics.reference: {path} has {len(reference.mu)} features, but metrics.extractor {extractor} has "
            f"{width}; ADM's files need inception"
        )
    return reference, images


def fid(features: np.ndarray, reference: Reference) -> float:
    """Fréchet distance of features (N, d) to the reference (FID); smaller is better.

    Raises:
        FloatingPointError: a feature is infinite or not a number.
    """
    if not np.isfinite(features).all():
        raise FloatingPointError("features of the samples are not finite")
    mu, sigma = np.mean(features, axis=0), np.cov(features, rowvar=False)
    return float(frechet_distance(mu, sigma, reference.mu, reference.sigma))
