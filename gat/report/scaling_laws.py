"""Power laws of FID in compute, with bootstrap confidence intervals over runs and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gat.report.trainings import study_of

FEWEST = 3  # different costs that a power law is fitted to


class CostAxis(NamedTuple):
    """A kind of compute: a column of the table, the factor to its unit, its name, and the label of an axis."""

    column: str
    factor: int
    name: str
    label: str


COST_AXES = (
    CostAxis("gmacs", 2, "generator GFLOPs", "generator GFLOPs (2 × GMACs)"),
    CostAxis("training_gmacs", 1, "training GMACs", "training compute (GMACs)"),
)


@dataclass(frozen=True)
class PowerLaw:
    """y ≈ factor · x^exponent, fitted to logarithms by least squares; called with x it gives y.

    `correlation` is Pearson's r of log y with log x; `correlation_linear` that of y with log x, which the paper reports
    as −0.95. `resampled` has the slopes and intercepts (2, R) of the fits to bootstrap resamplings.
    """

    factor: float
    exponent: float
    correlation: float
    correlation_linear: float
    resampled: np.ndarray

    def __call__(self, x: ArrayLike) -> np.ndarray:
        return self.factor * np.asarray(x, float) ** self.exponent

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """The exponent's 95% confidence interval."""
        low, high = np.percentile(self.resampled[0], [2.5, 97.5])
        return float(low), float(high)

    def interval(self, x: ArrayLike) -> np.ndarray:
        """95% confidence interval of the law's y at x (N,): low and high, (2, N)."""
        slopes, intercepts = self.resampled[..., None]
        return np.percentile(np.exp(intercepts + slopes * np.log(x)), [2.5, 97.5], axis=0)


class Points(NamedTuple):
    """Runs in the order of their costs (N,), with the FIDs of their seeds."""

    runs: list[str]
    costs: np.ndarray
    fids: list[np.ndarray]

    @classmethod
    def of(cls, study: pd.DataFrame, axis: CostAxis) -> "Points":
        """The points of a study (see `study_of`); runs of unknown cost have none."""
        groups = study.dropna(subset=axis.column).sort_values(axis.column, kind="stable").groupby("run", sort=False)
        runs, fids = [str(run) for run in groups.groups], [own.to_numpy(float) for _, own in groups.fid]
        return cls(runs, axis.factor * groups[axis.column].first().to_numpy(float), fids)


class Forecast(NamedTuple):
    """What the law of all other runs predicts for the most costly one, its 95% interval, and what was measured."""

    run: str
    predicted: float
    low: float
    high: float
    measured: float


class Scaling(NamedTuple):
    """A study against one kind of compute; None where there are too few runs for a law or a forecast."""

    axis: CostAxis
    points: Points
    law: PowerLaw | None
    forecast: Forecast | None

    @property
    def grid(self) -> np.ndarray:
        """Costs (50,) at which to draw the law, a little beyond the points."""
        return np.geomspace(self.points.costs.min() / 1.3, self.points.costs.max() * 1.3, 50)


def fit_scaling(table: pd.DataFrame, resamplings: int = 2000) -> list[Scaling]:
    """The laws of a table's study, one for each kind of compute, with `resamplings` of the bootstrap."""
    scalings = []
    for axis in COST_AXES:
        points = Points.of(study_of(table), axis)
        law = fit_power_law(points.costs, points.fids, resamplings) if _enough(points.costs) else None
        forecast = forecast_last(points, resamplings) if _enough(points.costs[:-1]) else None
        scalings.append(Scaling(axis, points, law, forecast))
    return scalings


def fit_power_law(x: ArrayLike, y: Sequence[ArrayLike], resamplings: int = 2000, seed: int = 0) -> PowerLaw:
    """Fit the runs' means.

    Args:
        x: (N,) cost of each run.
        y: for each run its value, or the values of all its seeds.
        resamplings: of runs, and of seeds within them.
        seed: of the resamplings.

    Raises:
        ValueError: fewer than three different costs.
    """
    costs, values = np.asarray(x, float), [np.atleast_1d(np.asarray(own, float)) for own in y]
    if not _enough(costs):
        raise ValueError(f"a power law needs runs of {FEWEST} or more different costs, not {len(np.unique(costs))}")
    means = np.array([own.mean() for own in values])
    log_x, log_y = np.log(costs), np.log(means)
    exponent, intercept = _line(log_x, log_y)
    both_logs, one_log = (float(np.corrcoef(log_x, one)[0, 1]) for one in (log_y, means))
    resampled = _resampled_lines(costs, values, resamplings, seed)
    return PowerLaw(float(np.exp(intercept)), float(exponent), both_logs, one_log, resampled)


def forecast_last(points: Points, resamplings: int = 2000) -> Forecast:
    """Fit all points but the last one, and predict its FID; raises as `fit_power_law` does."""
    law = fit_power_law(points.costs[:-1], points.fids[:-1], resamplings)
    cost, measured = points.costs[-1], points.fids[-1].mean()
    return Forecast(points.runs[-1], *map(float, (law(cost), *law.interval([cost])[:, 0], measured)))


def _enough(costs: np.ndarray) -> bool:
    return len(np.unique(costs)) >= FEWEST


def _line(log_x: np.ndarray, log_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts (…,) of least-squares lines through points (…, N)."""
    x, y = log_x.mean(-1, keepdims=True), log_y.mean(-1, keepdims=True)
    slope = ((log_x - x) * (log_y - y)).sum(-1) / np.square(log_x - x).sum(-1)
    return slope, y[..., 0] - slope * x[..., 0]


def _resampled_lines(x: np.ndarray, y: Sequence[np.ndarray], resamplings: int, seed: int) -> np.ndarray:
    """Slopes and intercepts (2, R) of fits to runs drawn with replacement, each the mean of seeds so drawn.

    Draws with fewer than three different costs are left out, since no law is fitted to them.
    """
    rng = np.random.default_rng(seed)
    count = len(x)
    runs = rng.integers(count, size=(resamplings, count))
    means = np.stack([own[rng.integers(len(own), size=(resamplings, count, len(own)))].mean(-1) for own in y])
    means = np.take_along_axis(means, runs[None], axis=0)[0]
    enough = np.array([_enough(drawn) for drawn in x[runs]])
    return np.stack(_line(np.log(x)[runs[enough]], np.log(means[enough])))
