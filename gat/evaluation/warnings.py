"""Reasons to doubt a training or its FID; tables and figures mark it with (!)."""

from collections.abc import Mapping

import numpy as np

from gat.evaluation.fid import Reference

FLAT_GAP = 0.01  # mean of D(real) − D(fake) below which the discriminator does not separate them
FLAT_SHARE = 0.1  # fraction of the training over which the mean is taken
DIVERGING = 2.0  # ratio of final to best FID above which it counts as diverging


def warnings_of(curves: Mapping[str, np.ndarray], samples: int, reference: Reference, own_reals: bool) -> list[str]:
    """All warnings for a model.

    Args:
        curves: `gap` and `fid` of its training, rows (N, 2) of a step and a value; empty for a pretrained model.
        samples: number of samples behind its FID.
        reference: statistics of the real images.
        own_reals: whether these are the images of the data set, whose number is known.
    """
    counts = reference.class_counts if own_reals else None
    reals = None if counts is None else int(counts.sum())
    return [
        *(flat_discriminator(curves["gap"]) if "gap" in curves else []),
        *(diverging_fid(curves["fid"]) if "fid" in curves else []),
        *few_for_fid(samples, reals, len(reference.mu)),
    ]


def flat_discriminator(gap: np.ndarray) -> list[str]:
    """A warning if D(real) − D(fake) is flat: rows (N, 2) of a step and the mean since the row before."""
    steps, values = gap.T
    durations = np.diff(steps, prepend=0)
    length = FLAT_SHARE * steps[-1]
    means = {}
    for end in steps[steps >= length]:
        window = (steps > end - length) & (steps <= end)
        means[end] = np.average(values[window], weights=durations[window])
    end = min(means, key=means.__getitem__)
    if means[end] >= FLAT_GAP:
        return []
    return [f"discriminator flat: mean gap {means[end]:.3f} over steps {max(0, end - length):.0f} to {end:.0f}"]


def diverging_fid(curve: np.ndarray) -> list[str]:
    """A warning if FID rose again: rows (N, 2) of a step and the FID."""
    steps, values = curve.T
    best = values.argmin()
    if values[-1] <= DIVERGING * values[best]:
        return []
    return [f"FID diverging: {values[best]:.3g} at step {steps[best]:.0f}, {values[-1]:.3g} at the end"]


def few_for_fid(samples: int, reals: int | None, features: int) -> list[str]:
    """Warnings if a covariance is singular: with no more images than features. `reals` None: unknown."""
    counts = {"samples": samples, "reals": reals}
    return [
        f"FID of {count} {images}, not more than the {features} features"
        for images, count in counts.items()
        if count is not None and count <= features
    ]
