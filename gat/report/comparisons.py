"""Comparisons of runs over their seeds, and the one rule by which a claim is shown, contradicted or undecided."""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from gat.report.trainings import main_patch

ALPHA = 0.05  # for all claims of a table together
EQUAL = float(np.log(1.1))  # values whose ratio is within ±10 % are taken as equal
PERMUTATIONS = 99_999
UNKNOWN = float("nan")

Verdict = Literal["shows", "contradicted", "undecided"]
Direction = Literal["higher", "lower"]


class Comparison(NamedTuple):
    """A sample against a baseline, by Welch's t-test: their difference with its 95% interval.

    Of positive values it is the difference of logarithms, and `text` gives ratios. With a single value on either side,
    no spread on both, or values that are unknown, the interval and both p-values are NaN.

    With infinite values, which are those of trainings that diverged, it is an exact permutation test of ranks, in which
    they share the highest; there is no interval, and the difference is infinite, or 0 if both sides rank the same.
    """

    difference: float
    low: float
    high: float
    p: float  # two-sided, of no difference
    p_equal: float  # of a difference of `EQUAL` or more: the smallest α whose 1 − α interval lies within ±`EQUAL`
    logarithmic: bool

    @property
    def text(self) -> str:
        """The ratio or the difference with its interval, such as `0.88 [0.50, 1.54]`."""
        if np.isinf(self.difference):
            return "higher, by ranks" if self.difference > 0 else "lower, by ranks"
        mean, *interval = np.exp(self[:3]) if self.logarithmic else self[:3]
        sign = "" if self.logarithmic else "+"
        ends = "" if np.isnan(self.low) else f" [{interval[0]:{sign}.3g}, {interval[1]:{sign}.3g}]"
        return f"{mean:{sign}.3g}{ends}"

    @property
    def p_text(self) -> str:
        """The p-value of no difference; empty if it is unknown."""
        return "" if np.isnan(self.p) else f"{self.p:.2g}"


class ExpectedDifference(NamedTuple):
    """A claim that a sample is higher or lower than a baseline, made before the values were known."""

    comparison: Comparison
    direction: Direction

    @property
    def p(self) -> float:
        """The smallest α at which the claim is decided either way."""
        return float(np.fmin(self.comparison.p, self.comparison.p_equal))

    @property
    def decided(self) -> Verdict:
        """The verdict at that α."""
        difference, _, _, p, p_equal, _ = self.comparison
        return "shows" if p <= p_equal and (difference > 0) == (self.direction == "higher") else "contradicted"


def compare(sample: ArrayLike, baseline: ArrayLike, logarithmic: bool = True) -> Comparison:
    """Compare two samples (N,) and (M,), by their logarithms if all are positive by nature."""
    a, b = (np.asarray(values, float) for values in (sample, baseline))
    if np.isposinf([*a, *b]).any():
        return _compare_ranks(a, b, logarithmic)
    if logarithmic:
        a, b = np.log(a), np.log(b)
    if not len(a) or not len(b):
        return Comparison(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, logarithmic)
    difference = float(a.mean() - b.mean())
    same = np.allclose(a, a[0]) and np.allclose(b, b[0])  # such as the seeds of pretrained models
    if min(len(a), len(b)) < 2 or same or not np.isfinite([*a, *b]).all():
        return Comparison(difference, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, logarithmic)
    welch = stats.ttest_ind(a, b, equal_var=False)
    low, high = (float(end) for end in welch.confidence_interval(1 - ALPHA))
    error = (high - low) / 2 / stats.t.ppf(1 - ALPHA / 2, welch.df)
    p_equal = 1.0  # ±10% is of a ratio
    if logarithmic:
        p_equal = min(1.0, 2 * float(stats.t.sf((EQUAL - abs(difference)) / error, welch.df)))
    return Comparison(difference, low, high, float(welch.pvalue), p_equal, logarithmic)


def _compare_ranks(a: np.ndarray, b: np.ndarray, logarithmic: bool) -> Comparison:
    """Compare two samples (N,) and (M,), some of whose values are infinite, by their mean ranks."""
    ranks = stats.rankdata([*a, *b])

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return x.mean(axis=axis) - y.mean(axis=axis)

    tested = stats.permutation_test(
        (ranks[: len(a)], ranks[len(a) :]), difference, vectorized=True, n_resamples=np.inf, rng=0
    )
    p = float(tested.pvalue) if min(len(a), len(b)) > 1 else UNKNOWN
    infinite = float(np.sign(tested.statistic)) * np.inf if tested.statistic else 0.0
    return Comparison(infinite, UNKNOWN, UNKNOWN, p, 1.0, logarithmic)


def judge(claims: Sequence[ExpectedDifference], count: int = 0) -> list[Verdict]:
    """Verdicts on claims, by Holm's procedure at `ALPHA`.

    A claim is shown if the interval of its comparison lies on its side, contradicted if it lies on the other side or
    within ±10 % of equal, and else undecided. The intervals' level is such that the chance of one or more wrong
    verdicts is at most `ALPHA`.

    Args:
        claims: those whose trainings are done.
        count: of all claims, if there are more. When the others come, they can decide more of these, but not fewer.
    """
    verdicts: list[Verdict] = ["undecided"] * len(claims)
    testable = [i for i, claim in enumerate(claims) if not np.isnan(claim.p)]
    missing = max(0, count - len(claims))
    for rank, i in enumerate(sorted(testable, key=lambda i: claims[i].p)):
        if claims[i].p > ALPHA / (len(testable) + missing - rank):
            break
        verdicts[i] = claims[i].decided
    return verdicts


class Step(NamedTuple):
    """From one run of the study to the next larger or finer one, which is claimed to have a lower FID."""

    smaller: str
    larger: str
    comparison: Comparison  # of the larger run's FID with the smaller one's
    verdict: Verdict


def compare_sizes(study: pd.DataFrame) -> list[Step]:
    """Each size against the next smaller one at the main patch, and each patch against the next coarser one."""
    runs = study.drop_duplicates("run").sort_values("gmacs")
    sizes = runs[runs.patch == main_patch(study)]
    pairs = [*zip(sizes.run, sizes.run[1:], strict=False)]
    for _, patches in runs.sort_values("patch", ascending=False).groupby(["width", "depth"]):
        pairs += zip(patches.run, patches.run[1:], strict=False)
    fids = {run: own.to_numpy() for run, own in study.groupby("run").fid}
    comparisons = [compare(fids[b], fids[a]) for a, b in pairs]
    verdicts = judge([ExpectedDifference(comparison, "lower") for comparison in comparisons])
    return [Step(a, b, *judged) for (a, b), judged in zip(pairs, zip(comparisons, verdicts, strict=True), strict=True)]


class Trend(NamedTuple):
    """Jonckheere and Terpstra's test that values fall from group to group."""

    ordered: float  # pairs of values of different groups, the earlier group's higher; ties count half
    pairs: int
    p: float  # one-sided


def trend(groups: Sequence[Sequence[float] | np.ndarray], seed: int = 0) -> Trend:
    """Test that the values fall from each group to the next, by permutation of all values.

    The p-value is exact if the values have at most `PERMUTATIONS` orders, else of so many random ones.
    """
    values = np.concatenate([np.asarray(group, float) for group in groups])
    ends = np.cumsum([len(group) for group in groups])[:-1]

    def ordered(permuted: np.ndarray, axis: int = -1) -> np.ndarray:
        parts = np.split(np.moveaxis(permuted, axis, -1), ends, axis=-1)
        differences = [a[..., :, None] - b[..., None, :] for a, b in combinations(parts, 2)]
        return sum(((np.sign(own) + 1) / 2).sum((-1, -2)) for own in differences)

    tested = stats.permutation_test(
        (values,),
        ordered,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=10_000,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    pairs = sum(len(a) * len(b) for a, b in combinations(groups, 2))
    return Trend(float(tested.statistic), pairs, float(tested.pvalue))
