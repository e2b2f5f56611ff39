"""The figures: FID against steps and compute, samples, claims and analyses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gat.config import MODEL, Training
from gat.files import atomic_write
from gat.report.claims import MEASURES
from gat.report.comparisons import compare_sizes
from gat.report.scaling_laws import EqualCompute, Fit, Scaling, mean_curve
from gat.report.trainings import given_of, main_patch, study_of

Curves = Mapping[Training, Mapping[str, np.ndarray]]  # of each training and metric, rows (N, 2) of a step and a value

PATCH_COLORS = ["#1f3a7a", "#d98c3f", "#7f9f5f", "#8c6fb0"]
GRAY = "#7a7a7a"


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, the same bytes for the same figure."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, metadata={"Software": None})


def draw_scaling(
    table: pd.DataFrame,
    curves: Curves,
    scalings: Sequence[Scaling],
    equal: EqualCompute | None,
    colors: Sequence[str],
    highlight: str,
    floors: Mapping[str, float],
) -> Figure:
    """FID by steps, final FID by compute, FID by training compute, and ratios of FIDs.

    Lines and large points are means over seeds, bands their range, bars their standard deviation, small points single
    trainings.

    Args:
        table: of all trainings, see `training_table`.
        curves: of them; only `fid` is drawn.
        scalings: the laws, see `fit_scaling`.
        equal: FID against training compute, see `equal_compute`.
        colors: from the smallest size to the largest, interpolated where there are more sizes.
        highlight: color of the model under test.
        floors: FIDs of reconstructions and of real images, by name.
    """
    study = study_of(table)
    figure = Figure(figsize=(11.5, 12.6), layout="constrained", dpi=130)
    (by_size, by_patch), by_cost, (at_compute, ratios) = figure.subplots(3, 2)
    shades = size_colors(study, colors)
    _draw_curves(by_size, curves, shades)
    _draw_curves(by_size, curves, {MODEL: highlight}, style="--")
    label_axes(by_size, "(a) FID by size", "training step", "FID")

    patches = study.groupby(["width", "depth"]).patch.nunique()
    if (patches > 1).any():
        width, depth = patches[patches > 1].index[-1]
        same = study[(study.width == width) & (study.depth == depth)].sort_values("patch")
        _draw_curves(by_patch, curves, dict(zip(same.run.unique(), PATCH_COLORS, strict=False)))
    label_axes(by_patch, "(b) FID by patch", "training step", "FID")

    titles = ("(c) FID by generator compute", "(d) FID by training compute")
    for axes, scaling, title in zip(by_cost, scalings, titles, strict=True):
        _draw_scaling(axes, table, scaling, shades, highlight, floors)
        label_axes(axes, title, scaling.axis.label, "final FID")
    logarithmic = _draw_equal_compute(at_compute, equal, shades)
    label_axes(at_compute, "(e) FID at equal training compute", "training compute so far (GMACs)", "FID", logarithmic)
    _draw_ratios(ratios, study)
    label_axes(
        ratios, "(f) FID of a larger model or a finer patch / before", "ratio, 95% interval of each alone", "", "x"
    )
    return figure


def _draw_equal_compute(axes: Axes, equal: EqualCompute | None, shades: Mapping[str, str]) -> str:
    """FID of each run against compute, and above the axis which run is best where; returns the logarithmic axes."""
    if equal is None:
        return "y"
    for run, curve in equal.curves.items():
        color = shades.get(run, PATCH_COLORS[1])
        axes.plot(*mean_curve(curve).T, color=color, marker="o", ms=3, lw=1.5, label=run)
    for run, start, end in equal.best:
        color = shades.get(run, PATCH_COLORS[1])
        axes.axvspan(start, end, ymax=0.03, color=color, lw=0)
    axes.legend(frameon=False, fontsize=8.5, title="bottom: lowest FID")
    return "xy"


def _draw_ratios(axes: Axes, study: pd.DataFrame) -> None:
    """The ratio of FIDs of each pair of neighbours with its interval, and the verdict."""
    steps = compare_sizes(study)
    for place, step in enumerate(steps):
        mean, low, high = np.exp(step.comparison[:3])
        bar = None if np.isnan(low) else [[mean - low], [high - mean]]
        color = GRAY if step.verdict == "undecided" else "black"
        axes.errorbar(mean, place, xerr=bar, fmt="o", color=color, capsize=3)
        axes.annotate(step.verdict, (mean, place), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8.5)
    axes.axvline(1, color=GRAY, lw=1)
    axes.set_yticks(range(len(steps)), [f"{step.smaller} → {step.larger}" for step in steps])
    axes.margins(y=0.25)
    axes.invert_yaxis()


def run_colors(table: pd.DataFrame, colors: Sequence[str], highlight: str) -> dict[str, str]:
    """A color for each run of a table: of sizes, of other patches and recipes, of the model under test."""
    others = (str(run) for run in table.run.unique() if run != MODEL)
    return dict.fromkeys(others, PATCH_COLORS[1]) | size_colors(study_of(table), colors) | {MODEL: highlight}


def size_colors(study: pd.DataFrame, colors: Sequence[str]) -> dict[str, str]:
    """A color for each size at the main patch, interpolated between the given ones."""
    sizes = [str(run) for run in study[study.patch == main_patch(study)].run.unique()]
    ramp = matplotlib.colors.LinearSegmentedColormap.from_list("sizes", [*colors] * (1 + (len(colors) == 1)))
    return {run: matplotlib.colors.to_hex(ramp(i / max(1, len(sizes) - 1))) for i, run in enumerate(sizes)}


def _draw_scaling(
    axes: Axes,
    table: pd.DataFrame,
    scaling: Scaling,
    shades: Mapping[str, str],
    highlight: str,
    floors: Mapping[str, float],
) -> None:
    """Final FID of all trainings against one kind of compute."""
    column, factor, *_ = scaling.axis
    _draw_points(axes, scaling, shades)
    for fit, dashes in zip(scaling.fits, ("--", ":"), strict=False):
        _draw_law(axes, scaling, fit, dashes)
    model = table[table.run == MODEL].dropna(subset=column)  # the training compute of a pretrained model is unknown
    axes.scatter(factor * model[column], model.fid, color=highlight, marker="*", s=150, zorder=4, label=MODEL)
    _draw_given(axes, table, column, factor)
    doubtful = table[(table.warnings != "") & table[column].notna()]
    if len(doubtful):
        places = factor * doubtful[column], doubtful.fid
        axes.scatter(*places, color="black", marker="x", s=45, zorder=5, label="with a warning")
    for (name, fid), style in zip(floors.items(), ((0, (1, 1)), (0, (4, 2))), strict=False):
        axes.axhline(fid, color=GRAY, lw=1, ls=style, label=f"{name}: {fid:.2g}")
    if len(scaling.points.runs) or len(model):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    shown = [*table.fid, *floors.values()]
    axes.set_ylim(min(shown) / 1.6, max(shown) * 2.5)  # intervals may exceed it
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")


def _draw_given(axes: Axes, table: pd.DataFrame, column: str, factor: float) -> None:
    """Other models' samples: at their cost or, if it is unknown, at the right edge."""
    for row in given_of(table).to_dict("records"):
        known = not np.isnan(cost := float(row[column]))
        transform = axes.transData if known else axes.get_yaxis_transform()
        place = (factor * cost if known else 1.0), row["fid"]
        axes.plot(*place, "v", color="#555555", ms=7, clip_on=False, zorder=4, transform=transform)
        offset: dict[str, Any] = {"xytext": (-8, 5), "textcoords": "offset points", "ha": "right"}
        axes.annotate(row["run"], place, xycoords=transform, fontsize=9, **offset)


def _draw_points(axes: Axes, scaling: Scaling, shades: Mapping[str, str]) -> None:
    """Points of all seeds, means with their standard deviation."""
    for run, cost, fids in zip(*scaling.points, strict=True):
        color = shades.get(run, PATCH_COLORS[1])
        axes.scatter(np.full(len(fids), cost), fids, color=color, s=14, alpha=0.55, zorder=3, linewidths=0)
        deviation = fids.std(ddof=1) if len(fids) > 1 else 0.0
        bar = np.array([[min(deviation, 0.9 * fids.mean())], [deviation]])
        axes.errorbar(cost, fids.mean(), bar, fmt="o", color=color, ms=7.5, capsize=3, zorder=3)
        axes.annotate(run, (cost, fids.mean()), xytext=(8, 5), textcoords="offset points", fontsize=9)


def _draw_law(axes: Axes, scaling: Scaling, fit: Fit, style: str) -> None:
    """A law; of the first one also its band and the forecast."""
    law, forecast, grid = fit.law, fit.forecast, scaling.grid
    low, high = law.exponent_interval
    label = f"{fit.title}: exponent {law.exponent:.2f} [{low:.2f}, {high:.2f}], r {law.correlation:.2f}, n {law.n}"
    axes.plot(grid, law(grid), color=GRAY, lw=1.2, ls=style, label=label)
    if fit is not scaling.fits[0]:
        return
    axes.fill_between(grid, *law.band(grid), color=GRAY, alpha=0.15, lw=0)
    if forecast is not None:
        bar = np.abs(np.array([[forecast.low], [forecast.high]]) - forecast.predicted)
        place, label = scaling.points.costs.max() * 1.08, f"{forecast.run}, predicted from the other runs"
        options: dict[str, Any] = {"fmt": "D", "mfc": "white", "color": "#555555", "ms": 5, "capsize": 3}
        axes.errorbar(place, forecast.predicted, bar, label=label, **options)


def _draw_curves(axes: Axes, curves: Curves, colors: Mapping[str, str], style: str = "-") -> None:
    for run, color in colors.items():
        own = [
            pd.Series(*curve["fid"].T[::-1]) for (name, _), curve in curves.items() if name == run and "fid" in curve
        ]
        if not own:
            continue
        seeds = pd.concat(own, axis=1)
        axes.plot(seeds.index, seeds.mean(axis=1), style, color=color, marker="o", ms=3.5, lw=1.8, label=run)
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
    panels = figure.subplots(1, len(pictures), squeeze=False)[0]
    for axes, (title, picture) in zip(panels, pictures.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    return figure


VERDICTS = {"shows": "#2a7f62", "contradicted": "#b23a48", "undecided": GRAY}  # colors


def draw_claims(content: Mapping[str, Any]) -> Figure:
    """The ratio of each claim's arm and baseline with its interval, and a point for each seed of the arm.

    Args:
        content: see `gat.report.claims.summarize`.
    """
    claims = [claim for claim in content["claims"] if claim["logarithmic"]]
    figure = Figure(figsize=(10, 1.6 + 0.42 * len(claims)), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.axvline(1, color="black", lw=0.8)
    axes.axvspan(1 / 1.1, 1.1, color="black", alpha=0.06, lw=0)
    for place, claim in enumerate(claims):
        color = VERDICTS[claim["verdict"]]
        ratio, *ends = claim["interval"]
        if not np.isfinite(ratio):  # trainings diverged
            axes.annotate(claim["ratio"], (1, place), (6, 0), textcoords="offset points", va="center", color=color)
            continue
        usual = np.exp(np.log(claim["baseline_values"]).mean())
        axes.scatter(
            np.array(claim["arm_values"]) / usual, [place] * len(claim["arm_values"]), color=color, s=14, alpha=0.35
        )
        if np.isfinite(ends).all():
            axes.plot(ends, [place, place], color=color, lw=2)
        axes.scatter(
            [ratio], [place], color=color, s=44, zorder=3, marker=">" if claim["expected"] == "higher" else "<"
        )
    names = [f"{claim['arm']} / {claim['baseline']}: {MEASURES[claim['measure']]}" for claim in claims]
    axes.set_yticks(range(len(claims)), names)
    axes.invert_yaxis()
    for verdict, color in VERDICTS.items():
        axes.plot([], [], color=color, lw=2, label=verdict)
    label_axes(
        axes,
        "Ratios with 95% intervals; triangles point to where the claim expects them",
        "ratio of geometric means; shaded: within ±10%\ndots: each seed of the arm / geometric mean of the baseline",
        "",
        "x" if claims else "",
    )
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.05))
    return figure


def draw_analyses(content: Mapping[str, Any]) -> Figure:
    """The plots that go with claims: FID during training, FID against the learning rate, analyses of networks.

    Args:
        content: see `gat.report.claims.summarize`.
    """
    analyses = [one for one in content["analyses"] if one["plot"]]
    rows = max(1, (len(analyses) + 1) // 2)
    figure = Figure(figsize=(12.5, 4.3 * rows), layout="constrained", dpi=100)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, analysis in zip(panels, analyses, strict=False):
        plot = analysis["plot"]
        _draw_plot(axes, plot)
        label_axes(axes, analysis["title"], plot["x"], plot["y"], plot.get("logarithmic", ""))
        if plot["x"] == "width":
            widths = plot["series"][0]["x"]
            axes.set_xticks(widths, [f"{width:,}" for width in widths])
            axes.set_xticks([], minor=True)
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[len(analyses) :]:
        axes.set_axis_off()
    return figure


def _draw_plot(axes: Axes, plot: Mapping[str, Any]) -> None:
    """Series of an analysis as bars or lines, with standard deviations."""
    count = len(plot["series"])
    if plot["kind"] == "bar":
        longest = max((series["x"] for series in plot["series"]), key=len)
        long = max(map(len, longest)) > 3
        axes.set_xticks(range(len(longest)), longest, rotation=35 if long else 0, ha="right" if long else "center")
    for i, series in enumerate(plot["series"]):
        y, deviations, name = series["y"], [series["below"], series["above"]], series["name"]
        if plot["kind"] == "bar":
            places = np.arange(len(y)) + (i - (count - 1) / 2) * 0.8 / count
            axes.bar(places, y, 0.8 / count, yerr=deviations, label=name, capsize=2)
        else:
            style = "o--" if series.get("dash") == "dot" else "o-"
            axes.errorbar(series["x"], y, deviations, fmt=style, ms=4, capsize=3, label=name)
