"""The study's figures and tables: FID against steps, generator and training compute, with what seeds make of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy import stats

from gat.config import MODEL, Training

matplotlib.use("Agg")

Curves = Mapping[Training, pd.DataFrame]  # frames with `step` and `fid`
SIZE_COLUMNS = ["width", "depth", "patch", "params", "gmacs", "train_gflops"]
PATCH_COLORS = ["#1f3a7a", "#d98c3f", "#7f9f5f", "#8c6fb0"]
FEWEST = 3  # points of a power law
MEASURES = {  # what the tables have of a training: heading, and digits after the point
    "fid": ("FID", 2),
    "kid": ("KID", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "spread": ("spread", 2),
    "recognized": ("recognized", 3),
    "gap": ("gap", 2),
    "images_per_second": ("images/s", 0),
}


class PowerLaw(NamedTuple):
    """y ≈ factor · x^exponent, fitted to logarithms by least squares; called with x it gives y.

    `low` and `high` bound the exponent with 95 % confidence. `correlation` is Pearson's r of log y with log x,
    `correlation_linear` that of y itself with log x, which the paper's −0.95 is.
    """

    factor: float
    exponent: float
    low: float
    high: float
    correlation: float
    correlation_linear: float

    def __call__(self, x: ArrayLike) -> np.ndarray:
        return self.factor * np.asarray(x, float) ** self.exponent


class Forecast(NamedTuple):
    """What the law of all other runs says of the largest one: its 95 % interval, and what was measured."""

    run: str
    predicted: float
    low: float
    high: float
    measured: float


def _line(log_x: np.ndarray, log_y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts (…,) of least-squares lines through points (…, N)."""
    x, y = log_x.mean(-1, keepdims=True), log_y.mean(-1, keepdims=True)
    slope = ((log_x - x) * (log_y - y)).sum(-1) / np.square(log_x - x).sum(-1)
    return slope, y[..., 0] - slope * x[..., 0]


def _resampled_lines(
    x: np.ndarray, y: Sequence[np.ndarray], resamplings: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and intercepts of fits to runs drawn with replacement, each the mean of seeds drawn with replacement.

    Draws of fewer than three runs are left out, as no law is fitted to them.
    """
    rng = np.random.default_rng(seed)
    count = len(x)
    runs = rng.integers(count, size=(resamplings, count))
    means = np.stack([own[rng.integers(len(own), size=(resamplings, count, len(own)))].mean(-1) for own in y])
    means = np.take_along_axis(means, runs[None], axis=0)[0]
    enough = np.array([len(np.unique(drawn)) >= FEWEST for drawn in runs])
    return _line(np.log(x)[runs[enough]], np.log(means[enough]))


def _as_points(x: ArrayLike, y: Sequence[ArrayLike]) -> tuple[np.ndarray, list[np.ndarray]]:
    points = np.asarray(x, float), [np.atleast_1d(np.asarray(own, float)) for own in y]
    if len(points[0]) < FEWEST:
        raise ValueError(f"a power law needs three points or more, not {len(points[0])}")
    return points


def fit_power_law(x: ArrayLike, y: Sequence[ArrayLike], resamplings: int = 2000, seed: int = 0) -> PowerLaw:
    """Fit the runs' means.

    Args:
        x: (N,) cost of each run.
        y: for each run its value, or the values of all its seeds.
        resamplings: of runs and of seeds within them, behind the exponent's interval.
        seed: of the resamplings.

    Raises:
        ValueError: fewer than three runs.
    """
    x, y = _as_points(x, y)
    means = np.array([own.mean() for own in y])
    exponent, intercept = _line(np.log(x), np.log(means))
    low, high = np.percentile(_resampled_lines(x, y, resamplings, seed)[0], [2.5, 97.5])
    both_logs, one_log = (np.corrcoef(np.log(x), values)[0, 1] for values in (np.log(means), means))
    return PowerLaw(*map(float, (np.exp(intercept), exponent, low, high, both_logs, one_log)))


def forecast_largest(
    runs: Sequence[str], x: ArrayLike, y: Sequence[ArrayLike], resamplings: int = 2000, seed: int = 0
) -> Forecast:
    """Fit all runs but the one of largest x, and say what that one's value should be; arguments as above.

    Raises:
        ValueError: fewer than four runs.
    """
    x = np.asarray(x, float)
    largest = int(x.argmax())
    rest = [i for i in range(len(x)) if i != largest]
    known_x, known_y = _as_points(x[rest], [y[i] for i in rest])
    law = fit_power_law(known_x, known_y, resamplings, seed)
    slopes, intercepts = _resampled_lines(known_x, known_y, resamplings, seed)
    low, high = np.percentile(np.exp(intercepts + slopes * np.log(x[largest])), [2.5, 97.5])
    measured = np.mean(np.asarray(y[largest], float))
    return Forecast(runs[largest], *map(float, (law(x[largest]), low, high, measured)))


def study_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study proper, by cost: not the model under test, no run that overrides losses or training."""
    return table[(table.run != MODEL) & ~table.overrides].sort_values(["gmacs", "seed"])


class Points(NamedTuple):
    """The runs of a study, by cost, and the FIDs of their seeds."""

    runs: list[str]
    costs: np.ndarray
    fids: list[np.ndarray]

    @classmethod
    def of(cls, study: pd.DataFrame, cost: str) -> "Points":
        """The points of `study_of` some table against one of its columns; runs without a value have none."""
        study = study.dropna(subset=cost)
        costs = study.groupby("run", sort=False)[cost].first()
        runs = [str(run) for run in costs.index]
        return cls(runs, costs.to_numpy(float), [study.fid[study.run == run].to_numpy(float) for run in runs])


class Scaling(NamedTuple):
    """A study against one cost: its points, the law through them with its 95 % band, the forecast of the largest run.

    Without enough runs there is no law, or no forecast.
    """

    points: Points
    law: PowerLaw | None
    grid: np.ndarray  # costs (50,) at which the band is given
    band: np.ndarray  # (2, 50) FIDs, low and high
    forecast: Forecast | None

    @classmethod
    def of(cls, table: pd.DataFrame, cost: "Cost", resamplings: int = 2000) -> "Scaling":
        """That of a table's study."""
        runs, costs, fids = Points.of(study_of(table), cost.column)
        points = Points(runs, cost.factor * costs, fids)
        if len(runs) < FEWEST:
            return cls(points, None, np.empty(0), np.empty((2, 0)), None)
        x = points.costs
        grid = np.geomspace(x.min() / 1.3, x.max() * 1.3, 50)
        slopes, intercepts = _resampled_lines(x, fids, resamplings, seed=0)
        band = np.percentile(np.exp(intercepts[:, None] + slopes[:, None] * np.log(grid)), [2.5, 97.5], axis=0)
        forecast = forecast_largest(runs, x, fids, resamplings) if len(runs) > FEWEST else None
        return cls(points, fit_power_law(x, fids, resamplings), grid, band, forecast)


class Cost(NamedTuple):
    """What a model costs: a column of the table, times a factor, by a name."""

    column: str
    factor: int
    name: str


COSTS = (Cost("gmacs", 2, "generator GFLOPs"), Cost("train_gflops", 1, "training GMACs"))


class Comparison(NamedTuple):
    """Two runs of a study: by how much the second one's mean FID is smaller, and the standard errors of both."""

    worse: str
    better: str
    difference: float
    errors: float

    @property
    def verdict(self) -> str:
        """Whether the difference is more than the noise of the seeds."""
        if not np.isfinite(self.errors):
            return "one seed does not tell"
        if abs(self.difference) <= self.errors:
            return "within the noise of the seeds"
        return "more than the noise of the seeds" if self.difference > 0 else "the other way round"


def main_patch(study: pd.DataFrame) -> float:
    """The patch at which the study varies size: that of most runs; of several, the finest; NaN without runs."""
    return float(study.drop_duplicates("run").patch.mode().min())


def compare(study: pd.DataFrame) -> list[Comparison]:
    """Each size with the next larger one at the main patch, and of each size every patch with the next finer one."""
    runs = study.drop_duplicates("run").sort_values("gmacs")
    sizes = runs[runs.patch == main_patch(study)]
    pairs = [*zip(sizes.run, sizes.run[1:], strict=False)]
    for _, patches in runs.sort_values("patch", ascending=False).groupby(["width", "depth"]):
        pairs += zip(patches.run, patches.run[1:], strict=False)
    fids = study.groupby("run").fid
    mean, error = fids.mean(), fids.sem()
    return [Comparison(a, b, float(mean[a] - mean[b]), float(error[a] + error[b])) for a, b in pairs]


def draw_scaling(
    table: pd.DataFrame,
    curves: Curves,
    colors: Sequence[str],
    highlight: str,
    resamplings: int = 2000,
    floors: Mapping[str, float] | None = None,
) -> Figure:
    """FID against steps by size, and by patch; final FID against the generator's and against training compute.

    The first three panels are the paper's figure. Lines and large points are means over seeds, bands their range, bars
    their standard deviation, small points single trainings.

    Args:
        table: a row a training with `run`, `seed`, `width`, `depth`, `patch`, `gmacs`, `train_gflops`, `fid`,
            `overrides` (bool), and `warnings` (text, empty if there are none).
        curves: FID against steps of each training.
        colors: from the smallest size to the largest, interpolated where there are more sizes.
        highlight: colour of the model under test.
        resamplings: behind the intervals.
        floors: names and FIDs of what no generator is expected to beat.
    """
    study = study_of(table)
    figure = Figure(figsize=(11.5, 8.6), layout="constrained", dpi=130)
    (by_size, by_patch), (by_generator, by_training) = figure.subplots(2, 2)
    shade = size_shades(study, colors)
    _draw_curves(by_size, curves, shade)
    _draw_curves(by_size, curves, {MODEL: highlight}, style="--")
    label_axes(by_size, "(a) FID by size", "training step", "FID")

    shapes = study.groupby(["width", "depth"]).patch.nunique()
    if (shapes > 1).any():
        width, depth = shapes[shapes > 1].index[-1]
        same = study[(study.width == width) & (study.depth == depth)].sort_values("patch")
        _draw_curves(by_patch, curves, dict(zip(same.run.unique(), PATCH_COLORS, strict=False)))
    label_axes(by_patch, "(b) FID by patch", "training step", "FID")

    for axes, cost in zip((by_generator, by_training), COSTS, strict=True):
        _draw_costs(axes, table, cost, shade, highlight, resamplings, floors or {})
    label_axes(by_generator, "(c) FID by generator compute", "generator GFLOPs (2 × GMACs)", "final FID")
    label_axes(by_training, "(d) FID by training compute", "training compute (10⁹ multiply-adds)", "final FID")
    return figure


def shades(table: pd.DataFrame, colors: Sequence[str], highlight: str) -> dict[str, str]:
    """A colour for each run of a table: of sizes, of other patches, of the model under test."""
    others = (run for run in table.run.unique() if run != MODEL)
    return dict.fromkeys(others, PATCH_COLORS[1]) | size_shades(study_of(table), colors) | {MODEL: highlight}


def size_shades(study: pd.DataFrame, colors: Sequence[str]) -> dict[str, str]:
    """A colour for each size at the main patch, interpolated between the given ones."""
    sizes = [str(run) for run in study[study.patch == main_patch(study)].run.unique()]
    if len(colors) == 1:
        return dict.fromkeys(sizes, colors[0])
    ramp = matplotlib.colors.LinearSegmentedColormap.from_list("sizes", list(colors))
    return {run: matplotlib.colors.to_hex(ramp(i / max(1, len(sizes) - 1))) for i, run in enumerate(sizes)}


def _draw_costs(
    axes: Axes,
    table: pd.DataFrame,
    cost: Cost,
    shade: Mapping[str, str],
    highlight: str,
    resamplings: int,
    floors: Mapping[str, float],
) -> None:
    """Final FID of all trainings against a cost."""
    scaling, (column, factor, _) = Scaling.of(table, cost, resamplings), cost
    _draw_law(axes, scaling, shade)
    known = table[table.run == MODEL].dropna(subset=column)  # of a pretrained model the training compute is not known
    axes.scatter(factor * known[column], known.fid, color=highlight, marker="*", s=150, zorder=4, label=MODEL)
    doubtful = table[table.warnings != ""]
    if len(doubtful):
        places = factor * doubtful[column], doubtful.fid
        axes.scatter(*places, color="black", marker="x", s=45, zorder=5, label="with a warning")
    for (name, fid), style in zip(floors.items(), ((0, (1, 1)), (0, (4, 2))), strict=False):
        axes.axhline(fid, color="#7a7a7a", lw=1, ls=style, label=f"{name}: {fid:.2g}")
    if len(scaling.points.runs) or len(known):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    shown = [*table.fid, *floors.values()]
    axes.set_ylim(min(shown) / 1.6, max(shown) * 2.5)  # intervals may reach out of sight
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")


def _draw_law(axes: Axes, scaling: Scaling, shade: Mapping[str, str]) -> None:
    """Points of all seeds, means with their standard deviation, the law with its band, the forecast."""
    (runs, x, values), law, grid, band, forecast = scaling
    for run, cost, fids in zip(runs, x, values, strict=True):
        color = shade.get(run, PATCH_COLORS[1])
        axes.scatter(np.full(len(fids), cost), fids, color=color, s=14, alpha=0.55, zorder=3, linewidths=0)
        deviation = fids.std(ddof=1) if len(fids) > 1 else 0.0
        bar = np.array([[min(deviation, 0.9 * fids.mean())], [deviation]])
        axes.errorbar(cost, fids.mean(), bar, fmt="o", color=color, ms=7.5, capsize=3, zorder=3)
        axes.annotate(run, (cost, fids.mean()), xytext=(8, 5), textcoords="offset points", fontsize=9)
    if law is None:
        return
    label = f"exponent {law.exponent:.2f} [{law.low:.2f}, {law.high:.2f}], r {law.correlation:.2f}"
    axes.plot(grid, law(grid), color="#888888", lw=1.2, ls="--", label=label)
    axes.fill_between(grid, *band, color="#888888", alpha=0.15, lw=0)
    if forecast is not None:
        bar = np.abs(np.array([[forecast.low], [forecast.high]]) - forecast.predicted)
        label = f"{forecast.run}, forecast from the others"
        axes.errorbar(
            x.max() * 1.08, forecast.predicted, bar, fmt="D", mfc="white", color="#555555", ms=5, capsize=3, label=label
        )


def _draw_curves(axes: Axes, curves: Curves, colors: Mapping[str, str], style: str = "-") -> None:
    for run, color in colors.items():
        own = [curve.set_index("step").fid for (name, _), curve in curves.items() if name == run]
        if not own:
            continue
        seeds = pd.concat(own, axis=1)
        mean = seeds.mean(axis=1)
        axes.plot(mean.index, mean, style, color=color, marker="o", ms=3.5, lw=1.8, label=run)
        axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=color, alpha=0.18, lw=0)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def label_axes(axes: Axes, title: str, x: str, y: str, logarithmic: str = "y") -> None:
    """Title, labels, grid, and logarithmic axes (of "xy") with plain numbers."""
    axes.set(title=title, xlabel=x, ylabel=y)
    for name in logarithmic:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1.5, 0.6)))
    axes.grid(alpha=0.25, which="both", lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)


def draw_samples(pictures: Mapping[str, np.ndarray]) -> Figure:
    """Grids of images, uint8 (H, W, 3) each, side by side under their titles."""
    figure = Figure(figsize=(4.2 * len(pictures), 4.5), layout="constrained", dpi=110)
    for axes, (title, picture) in zip(
        figure.subplots(1, len(pictures), squeeze=False)[0], pictures.items(), strict=True
    ):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    return figure


def markdown_table(table: pd.DataFrame) -> str:
    """A row a run: its size, and its measures as mean ± standard deviation over seeds, in Markdown."""
    groups = table.sort_values("gmacs").groupby("run", sort=False)
    rows = []
    for run, own in groups:
        size = own.iloc[0]
        row: dict[str, object] = {
            "run": f"{run} (!)" if (own.warnings != "").any() else run,
            "width": size.width,
            "depth": size.depth,
            "patch": size.patch,
            "params (M)": f"{size.params / 1e6:.3f}",
            "GFLOPs": f"{2 * size.gmacs:.3g}",
            "training GMACs": f"{size.train_gflops:.4g}" if pd.notna(size.train_gflops) else "",
            "seeds": len(own),
        }
        for column, (name, digits) in MEASURES.items():
            if column in own:
                row[name] = mean_text(own[column].dropna(), digits)
        rows.append(row)
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)


def mean_text(values: ArrayLike, digits: int = 2) -> str:
    """Mean ± standard deviation; of one value there is no deviation, of none nothing."""
    numbers = np.asarray(values, float)
    shown = [numbers.mean()] if len(numbers) else []
    shown += [numbers.std(ddof=1)] if len(numbers) > 1 else []
    return " ± ".join(f"{round(float(number), digits) + 0.0:.{digits}f}" for number in shown)  # no −0


def standard_errors(*samples: ArrayLike) -> float:
    """Sum of the standard errors of the means of some samples; NaN if one of them is a single value."""
    values = [np.asarray(own, float) for own in samples]
    return sum(float(stats.sem(own)) if len(own) > 1 else float("nan") for own in values)


def markdown_page(
    table: pd.DataFrame, floors: Mapping[str, float], notes: Sequence[str] = (), resamplings: int = 2000
) -> str:
    """The study as a Markdown page: the table, the laws, their forecasts, what is noise, what else there is to know."""
    study = study_of(table)
    lines = ["# The scaling study", "", markdown_table(table), ""]
    lines += [
        "Means over seeds ± their standard deviation. Spread: the samples' variance within classes over the reals', 0 "
        "where every class is one image. Recognized: share of samples that the extractor's classifier takes for their "
        "class. Gap: mean of D(real) − D(fake) over the last tenth of training; near 0 the discriminator is flat.",
        "",
    ]
    if (table.warnings != "").any():
        lines += ["## Warnings (!)", ""]
        doubtful = zip(table.run, table.seed, table.warnings, strict=True)
        lines += [f"- {run}, seed {seed}: {warnings}." for run, seed, warnings in doubtful if warnings]
        lines.append("")
    scalings = [(cost.name, Scaling.of(table, cost, resamplings)) for cost in COSTS]
    if any(scaling.law is not None for _, scaling in scalings):
        lines += ["## Laws", ""]
        for name, (_, law, _, _, forecast) in scalings:
            if law is None:
                continue
            lines.append(
                f"- FID ≈ {law.factor:.3g} · C^{law.exponent:.3f} with C in {name}; the exponent's 95 % bootstrap "
                f"interval (over runs and seeds) is [{law.low:.2f}, {law.high:.2f}]. Pearson's r of log FID with "
                f"log C is {law.correlation:.3f}, that of FID itself {law.correlation_linear:.3f}."
            )
            if forecast is not None:
                lines.append(
                    f"  Without {forecast.run} the law forecasts {forecast.predicted:.3g} "
                    f"[{forecast.low:.3g}, {forecast.high:.3g}] for it; measured: {forecast.measured:.3g}."
                )
        lines.append("")
    if pairs := compare(study):
        lines += ["## What is noise", ""]
        for pair in pairs:
            error = f", the sum of the standard errors {pair.errors:.2g}" if np.isfinite(pair.errors) else ""
            lines.append(
                f"- {pair.worse} to {pair.better}: FID smaller by {pair.difference:.3g}{error}: {pair.verdict}."
            )
        lines.append("")
    if floors:
        named = ", ".join(f"{name} {fid:.3g}" for name, fid in floors.items())
        lines += [f"FID of what no generator is expected to beat: {named}.", ""]
    return "\n".join([*lines, *(note + "\n" for note in notes)])
