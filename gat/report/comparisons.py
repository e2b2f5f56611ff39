"""Comparisons of runs over their seeds. The one rule that decides between a difference and seed noise is here."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gat.report.trainings import main_patch


class Comparison(NamedTuple):
    """A sample and a baseline, both with one value per seed."""

    difference: float  # mean of the sample − mean of the baseline
    errors: float  # sum of the standard errors of the two means; NaN if either has a single value

    @property
    def single(self) -> bool:
        """Whether there is no spread to compare with."""
        return bool(np.isnan(self.errors))

    @property
    def verdict(self) -> str:
        """Whether the difference exceeds the sum of the standard errors."""
        if self.single:
            return "one seed: no spread to compare with"
        return "beyond seed noise" if abs(self.difference) > self.errors else "within seed noise"

    @property
    def claim_of_increase(self) -> str:
        """Whether a claim that the sample is higher than the baseline holds."""
        if self.single:
            return "cannot be tested with one seed"
        return "holds here" if self.difference > self.errors else "does not hold here"

    @property
    def text(self) -> str:
        """The difference in words, such as `4.1 higher`."""
        return f"{abs(self.difference):.3g} {'higher' if self.difference > 0 else 'lower'}"


def compare(sample: ArrayLike, baseline: ArrayLike) -> Comparison:
    """Compare the means of two samples (N,) and (M,)."""
    a, b = np.asarray(sample, float), np.asarray(baseline, float)
    return Comparison(float(a.mean() - b.mean()), _standard_error(a) + _standard_error(b))


def _standard_error(values: np.ndarray) -> float:
    """Of the mean; NaN of a single value. `scipy.stats.sem` is the same, but takes two seconds to import."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def compare_sizes(study: pd.DataFrame) -> list[tuple[str, str, Comparison]]:
    """Each size with the next larger one at the main patch, and each patch of a size with the next finer one.

    Returns:
        The name of the smaller or coarser run, that of the other one, and how the FID of the latter compares.
    """
    runs = study.drop_duplicates("run").sort_values("gmacs")
    sizes = runs[runs.patch == main_patch(study)]
    pairs = [*zip(sizes.run, sizes.run[1:], strict=False)]
    for _, patches in runs.sort_values("patch", ascending=False).groupby(["width", "depth"]):
        pairs += zip(patches.run, patches.run[1:], strict=False)
    fids = {run: own.to_numpy() for run, own in study.groupby("run").fid}
    return [(a, b, compare(fids[b], fids[a])) for a, b in pairs]
