"""All metrics of images: of samples, of real images and of reconstructions alike."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gat.evaluation.encoder import Encoder
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import FeatureFn, SampleFn, compute_features
from gat.evaluation.fid import Reference, fid
from gat.evaluation.inception import InceptionOutputs, inception_score, split
from gat.evaluation.metrics import compute_metrics


class Features(NamedTuple):
    """What the networks say of N images; None: there is no such network."""

    main: np.ndarray  # (N, d) of the extractor
    spatial: np.ndarray | None  # (N, 2023) of Inception, for sFID
    probabilities: np.ndarray | None  # (N, classes) of Inception
    encoder: np.ndarray | None  # (N, e)


class References(NamedTuple):
    """Statistics of real images in each feature space; None: unknown."""

    main: Reference
    spatial: Reference | None
    encoder: Reference | None

    @classmethod
    def load(cls, main: Path, others: Path) -> "References":
        """Read the file `main`, and `spatial.npz` and `encoder.npz` in the folder `others` if they exist."""
        paths = (others / "spatial.npz", others / "encoder.npz")
        return cls(Reference.load(main), *(Reference.load(path) if path.exists() else None for path in paths))

    @classmethod
    def of(cls, features: Features, labels: np.ndarray) -> "References":
        """The statistics of features of N images with these labels (N,)."""
        main = dataclasses.replace(Reference.from_features(features.main), labels=labels)
        others = (features.spatial, features.encoder)
        return cls(main, *(None if own is None else Reference.from_features(own) for own in others))


class Measure:
    """The networks behind the metrics.

    Args:
        extractor: its folder.
        encoder: its folder, which is empty if there is none.
        device: where they run.
    """

    def __init__(self, extractor: Path, encoder: Path, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.extractor = Extractor(extractor, device)
        self._complete = self.extractor.name == "inception"
        if self._complete:
            self.extractor.model = InceptionOutputs(self.extractor.model)
        self.encoder = Encoder(encoder, device) if (encoder / "config.json").exists() else None

    @property
    def description(self) -> dict[str, str]:
        """The extractor, as results record it."""
        return {"extractor": self.extractor.name, "mode": self.extractor.mode}

    def main(self, images: np.ndarray) -> np.ndarray:
        """FID's features (B, d) of images uint8 (B, H, W, 3)."""
        features = self.extractor(images)
        return split(features)[0] if self._complete else features

    def features(self, images: SampleFn, count: int, batch_size: int, progress: bool = True) -> Features:
        """Features of images 0 to `count`, each of which is made once; see `compute_features`."""
        networks: list[FeatureFn] = [self.extractor, *([self.encoder] if self.encoder else [])]

        def extract(batch: np.ndarray) -> np.ndarray:
            return np.concatenate([network(batch) for network in networks], axis=1)

        main, encoder = compute_features(images, extract, count, batch_size, progress), None
        spatial = probabilities = None
        if self.encoder is not None:
            main, encoder = main[:, : -self.encoder.width], main[:, -self.encoder.width :]
        if self._complete:
            main, spatial, probabilities = split(main)
        return Features(main, spatial, probabilities, encoder)

    def metrics(
        self, features: Features, labels: np.ndarray | None, references: References, seed: int
    ) -> dict[str, float]:
        """All metrics that can be computed: those of `compute_metrics`, `fd_encoder`, `sfid` and `inception_score`.

        A Fréchet distance needs more images than features, else their covariance is singular; without so many,
        `fd_encoder` and `sfid` are left out.

        Args:
            features: of N images.
            labels: (N,) their classes; None: unknown.
            references: statistics of real images.
            seed: of KID's subsets.
        """
        predicted = self.extractor.classify(features.main)
        metrics = compute_metrics(features.main, labels, references.main, predicted, self.device, seed)
        for name, own, reference in (
            ("fd_encoder", features.encoder, references.encoder),
            ("sfid", features.spatial, references.spatial),
        ):
            if own is not None and reference is not None and len(own) > own.shape[1]:
                metrics[name] = fid(own, reference)
        if features.probabilities is not None:
            metrics["inception_score"] = inception_score(features.probabilities)
        return metrics
