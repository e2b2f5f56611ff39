"""Power laws of FID in compute, with Student's intervals, and the best size at equal training compute."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from gat.config import Training
from gat.report.trainings import main_patch, study_of

FEWEST = 3  # different costs that a power law is fitted to
FEWEST_WITH_FLOOR = 5
LEVEL = 0.95


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


class PowerLaw:
    """y ≈ factor · x^exponent, fitted to logarithms by least squares; called with x it gives y.

    Intervals are Student's with n − 2 degrees of freedom: all scatter of the points about the law counts as noise.

    Args:
        x: (N,) cost of each run.
        y: (N,) its value, the geometric mean of its seeds.

    Attributes:
        n: number of runs.
        factor, exponent: of the law.
        correlation: Pearson's r of log y with log x.
        correlation_linear: Pearson's r of y with log x, which the paper reports as −0.95.

    Raises:
        ValueError: fewer than three different costs.
    """

    def __init__(self, x: ArrayLike, y: ArrayLike) -> None:
        costs, values = np.asarray(x, float), np.asarray(y, float)
        if not _enough(costs):
            raise ValueError(f"a power law needs runs of {FEWEST} or more different costs, not {len(np.unique(costs))}")
        self._x, log_y, self.n = np.log(costs), np.log(values), len(costs)
        self._line = stats.linregress(self._x, log_y)
        self.factor, self.exponent = float(np.exp(self._line.intercept)), float(self._line.slope)
        self.correlation, self.correlation_interval = _correlation(self._x, log_y)
        self.correlation_linear, self.correlation_linear_interval = _correlation(self._x, values)
        residuals = log_y - np.log(self(costs))
        self._scatter = float(np.sqrt(np.square(residuals).sum() / (self.n - 2)))
        self._quantile = float(stats.t.ppf((1 + LEVEL) / 2, self.n - 2))

    def __call__(self, x: ArrayLike) -> np.ndarray:
        return self.factor * np.asarray(x, float) ** self.exponent

    @property
    def exponent_interval(self) -> tuple[float, float]:
        """95% confidence interval of the exponent."""
        half = self._quantile * float(self._line.stderr)
        return self.exponent - half, self.exponent + half

    def band(self, x: ArrayLike) -> np.ndarray:
        """95% confidence interval of the law at x (N,): low and high, (2, N)."""
        return self._interval(x, 0)

    def forecast(self, x: ArrayLike) -> np.ndarray:
        """95% prediction interval of a new run at x (N,): low and high, (2, N)."""
        return self._interval(x, 1)

    def _interval(self, x: ArrayLike, scatter: float) -> np.ndarray:
        distance = np.log(np.asarray(x, float)) - self._x.mean()
        variance = scatter + 1 / self.n + distance**2 / np.square(self._x - self._x.mean()).sum()
        factor = np.exp(self._quantile * self._scatter * np.sqrt(variance))
        return np.stack([self(x) / factor, self(x) * factor])


class FloorLaw(NamedTuple):
    """y ≈ floor + factor · x^exponent; intervals are Student's with n − 3 degrees of freedom, from the curvature."""

    floor: float
    floor_interval: tuple[float, float]
    exponent: float
    exponent_interval: tuple[float, float]


def fit_with_floor(x: ArrayLike, y: ArrayLike) -> FloorLaw | None:
    """Fit logarithms by least squares; None with fewer than five runs, or if the fit does not converge."""
    log_x, values = np.log(np.asarray(x, float)), np.asarray(y, float)
    if len(np.unique(log_x)) < FEWEST_WITH_FLOOR:
        return None
    line = stats.linregress(log_x, np.log(values))

    def model(at: np.ndarray, floor: float, intercept: float, exponent: float) -> np.ndarray:
        return np.log(floor + np.exp(intercept + exponent * at))

    start, bounds = (values.min() / 2, line.intercept, line.slope), ([0, -np.inf, -np.inf], np.inf)
    try:
        (floor, _, exponent), covariance = optimize.curve_fit(model, log_x, np.log(values), start, bounds=bounds)
    except RuntimeError:
        return None
    halves = stats.t.ppf((1 + LEVEL) / 2, len(values) - 3) * np.sqrt(np.diag(covariance))
    low, high = float(floor - halves[0]), float(floor + halves[0])
    return FloorLaw(
        float(floor), (max(0.0, low), high), float(exponent), (float(exponent - halves[2]), float(exponent + halves[2]))
    )


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

    @property
    def means(self) -> np.ndarray:
        """The geometric mean FID of each run (N,)."""
        return np.array([np.exp(np.log(own).mean()) for own in self.fids])

    @property
    def law(self) -> PowerLaw | None:
        """The power law of the means; None with too few runs."""
        return PowerLaw(self.costs, self.means) if _enough(self.costs) else None


class Forecast(NamedTuple):
    """What the law of all other runs predicts for the most costly one, its 95% interval, and what was measured."""

    run: str
    predicted: float
    low: float
    high: float
    measured: float


class Fit(NamedTuple):
    """A law of some runs of the study, and what follows from it; None where there are too few runs."""

    title: str  # "patch 2" or "all patches"
    points: Points
    law: PowerLaw
    floor: FloorLaw | None
    forecast: Forecast | None
    unflagged: PowerLaw | None  # without trainings that have warnings; None also if there are none


class Scaling(NamedTuple):
    """A study against one kind of compute: the points of all runs, and the laws of those at one patch and of all."""

    axis: CostAxis
    points: Points
    fits: list[Fit]

    @property
    def grid(self) -> np.ndarray:
        """Costs (50,) at which to draw laws, a little beyond the points."""
        return np.geomspace(self.points.costs.min() / 1.3, self.points.costs.max() * 1.3, 50)


def fit_scaling(table: pd.DataFrame) -> list[Scaling]:
    """The laws of a table's study, for each kind of compute."""
    study = study_of(table)
    patch = main_patch(study)
    parts = {f"patch {patch:g}": study[study.patch == patch], "all patches": study}
    if (study.patch == patch).all():
        del parts["all patches"]
    scalings = []
    for axis in COST_AXES:
        fits = [fit_points(title, part, axis) for title, part in parts.items()]
        scalings.append(Scaling(axis, Points.of(study, axis), [fit for fit in fits if fit is not None]))
    return scalings


def fit_points(title: str, study: pd.DataFrame, axis: CostAxis) -> Fit | None:
    """The law of some of a study's runs; None if there are too few of them."""
    points, unflagged = Points.of(study, axis), study[study.warnings == ""]
    law = points.law
    if law is None:
        return None
    without = Points.of(unflagged, axis).law if len(unflagged) < len(study) else None
    return Fit(title, points, law, fit_with_floor(points.costs, points.means), forecast_last(points), without)


def forecast_last(points: Points) -> Forecast | None:
    """Fit all points but the last one, and predict its FID; None with too few points."""
    others = Points(points.runs[:-1], points.costs[:-1], points.fids[:-1])
    if (law := others.law) is None:
        return None
    cost = points.costs[-1:]
    return Forecast(points.runs[-1], *map(float, (*law(cost), *law.forecast(cost)[:, 0], points.means[-1])))


def _enough(costs: np.ndarray) -> bool:
    return len(np.unique(costs)) >= FEWEST


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Pearson's r with its interval by Fisher's transformation, which needs four points."""
    r = stats.pearsonr(x, y)
    low, high = r.confidence_interval(LEVEL) if len(x) > 3 else (-1.0, 1.0)
    return float(r.statistic), (float(low), float(high))


# Equal compute


class EqualCompute(NamedTuple):
    """FID of each run against the training compute spent so far, and the best run at each compute."""

    curves: dict[str, np.ndarray]  # of each run rows (N, 1 + seeds): GMACs, and the FID of each seed
    best: list[tuple[str, float, float]]  # a run, and the GMACs from which and to which its mean FID is lowest


def equal_compute(table: pd.DataFrame, curves: Mapping[Training, Mapping[str, np.ndarray]]) -> EqualCompute | None:
    """Compare the study's runs at equal training compute, between the points of their FID curves by interpolation.

    A run counts from its first evaluation on, and keeps its last FID after its end. Means are geometric. None without
    FID curves.
    """
    study = study_of(table).dropna(subset="training_gmacs")
    by_run: dict[str, np.ndarray] = {}
    for run, own in study.groupby("run", sort=False):
        seeds = [curves[Training(str(run), int(seed))].get("fid") for seed in own.seed]
        found = [curve for curve in seeds if curve is not None]
        if found and len({len(curve) for curve in found}) == 1:
            compute = own.training_gmacs.iloc[0] * found[0][:, 0] / own.steps.iloc[0]
            by_run[str(run)] = np.stack([compute, *(one[:, 1] for one in found)], axis=1)
    if not by_run:
        return None
    ends = [curve[[0, -1], 0] for curve in by_run.values()]
    grid = np.geomspace(np.min(ends), np.max(ends), 100_000)
    means = [mean_curve(curve) for curve in by_run.values()]
    logs = [np.interp(np.log(grid), np.log(mean[:, 0]), np.log(mean[:, 1]), left=np.inf) for mean in means]
    names, leaders = list(by_run), np.argmin(logs, axis=0)
    parts = np.split(np.arange(len(grid)), np.flatnonzero(np.diff(leaders)) + 1)
    return EqualCompute(by_run, [(names[leaders[own[0]]], float(grid[own[0]]), float(grid[own[-1]])) for own in parts])


def mean_curve(curve: np.ndarray) -> np.ndarray:
    """The geometric mean over seeds of a curve of `EqualCompute`: rows (N, 2) of GMACs and FID."""
    return np.stack([curve[:, 0], np.exp(np.log(curve[:, 1:]).mean(axis=1))], axis=1)


def fids_at(curve: np.ndarray, gmacs: float) -> np.ndarray | None:
    """The FIDs of all seeds of a curve of `EqualCompute` at a compute; None outside of the curve."""
    if not curve[0, 0] * (1 - 1e-9) <= gmacs <= curve[-1, 0] * (1 + 1e-9):
        return None
    logs = np.log(curve)
    return np.exp([np.interp(np.log(gmacs), logs[:, 0], seed) for seed in logs[:, 1:].T])
