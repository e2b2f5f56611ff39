"""The study's figures: the power law, the three panels of the scaling figure, the tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

matplotlib.use("Agg")

MODEL = "model"  # the run under test, set apart from the study's


class PowerLaw(NamedTuple):
    """y ≈ factor · x^exponent, fitted to the logarithms.

    `low` and `high` bound the exponent with 95 % confidence; `correlation` is that of the logarithms.
    """

    factor: float
    exponent: float
    low: float
    high: float
    correlation: float


def fit_power_law(x: ArrayLike, y: ArrayLike, resamplings: int = 2000, seed: int = 0) -> PowerLaw:
    """Least squares on logarithms; the interval is the middle 95 % of fits to resampled points.

    Raises:
        ValueError: fewer than three points.
    """
    log_x, log_y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    if len(log_x) < 3:
        raise ValueError(f"a power law needs three points or more, not {len(log_x)}")
    exponent, intercept = np.polyfit(log_x, log_y, 1)
    rng = np.random.default_rng(seed)
    slopes = []
    for _ in range(resamplings):
        pick = rng.integers(len(log_x), size=len(log_x))
        if np.ptp(log_x[pick]) > 0:
            slopes.append(np.polyfit(log_x[pick], log_y[pick], 1)[0])
    low, high = np.percentile(slopes, [2.5, 97.5])
    correlation = np.corrcoef(log_x, log_y)[0, 1]
    return PowerLaw(float(np.exp(intercept)), float(exponent), float(low), float(high), float(correlation))


def study_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the study proper, by cost: not the model under test, no run that overrides losses or training."""
    return table[(table.run != MODEL) & ~table.overrides].sort_values("gmacs")


def draw_scaling(
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    colors: Sequence[str],
    highlight: str,
    resamplings: int = 2000,
) -> Figure:
    """The paper's figure: FID against steps by size, and by patch; final FID against GMACs with its power law.

    Args:
        table: a row a run with `run`, `width`, `depth`, `patch`, `gmacs`, `fid`, and `overrides` (bool).
        curves: by run, a frame with `step` and `fid`.
        colors: from the smallest size to the largest, interpolated where there are more sizes.
        highlight: colour of the model under test.
        resamplings: behind the exponent's interval.
    """
    study = study_of(table)
    figure = Figure(figsize=(13.5, 4.2), layout="constrained", dpi=150)
    by_size, by_patch, by_cost = figure.subplots(1, 3)
    finest = study.patch.min()
    sizes = study[study.patch == finest]
    ramp = matplotlib.colors.LinearSegmentedColormap.from_list("sizes", list(colors)) if len(colors) > 1 else None
    shade = {
        run: matplotlib.colors.to_hex(ramp(i / max(1, len(sizes) - 1))) if ramp else colors[0]
        for i, run in enumerate(sizes.run)
    }

    _curves(by_size, curves, list(sizes.run), shade)
    if MODEL in curves:
        _curves(by_size, curves, [MODEL], {MODEL: highlight}, style="--")
    _label(by_size, "(a) FID by size", "training step", "FID")

    shapes = study.groupby(["width", "depth"]).patch.nunique()
    if (shapes > 1).any():
        width, depth = shapes[shapes > 1].index[-1]
        same = study[(study.width == width) & (study.depth == depth)].sort_values("patch")
        patch_colors = dict(zip(same.run, ["#1f3a7a", "#d98c3f", "#7f9f5f", "#8c6fb0"], strict=False))
        _curves(by_patch, curves, list(same.run), patch_colors)
    _label(by_patch, "(b) FID by patch", "training step", "FID")

    for row in study.itertuples():
        color = shade.get(row.run, "#d98c3f")
        by_cost.scatter(row.gmacs, row.fid, color=color, s=52, zorder=3)
        by_cost.annotate(row.run, (row.gmacs, row.fid), xytext=(7, 5), textcoords="offset points", fontsize=9)
    tested = table[table.run == MODEL]
    by_cost.scatter(tested.gmacs, tested.fid, color=highlight, marker="*", s=150, zorder=4, label="model under test")
    if len(study) >= 3:
        law = fit_power_law(study.gmacs, study.fid, resamplings)
        x = np.geomspace(study.gmacs.min() / 1.3, study.gmacs.max() * 1.3, 50)
        exponents = f"exponent {law.exponent:.2f} [{law.low:.2f}, {law.high:.2f}]"
        label = f"FID ∝ GMACs$^{{{law.exponent:.2f}}}$\n{exponents}\ncorrelation {law.correlation:.2f}"
        by_cost.plot(x, law.factor * x**law.exponent, color="#888888", lw=1.2, ls="--", label=label)
    by_cost.set_xscale("log")
    by_cost.margins(x=0.18)
    by_cost.legend(frameon=False, fontsize=9, loc="best")
    _label(by_cost, "(c) FID by compute", "generator GMACs", "final FID")
    return figure


def _curves(
    axes: Axes, curves: Mapping[str, pd.DataFrame], runs: Sequence[str], colors: Mapping[str, str], style: str = "-"
) -> None:
    for run in runs:
        curve = curves[run]
        axes.plot(curve.step, curve.fid, style, color=colors[run], marker="o", ms=3.5, lw=1.8, label=run)
    axes.legend(frameon=False, fontsize=9)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, yscale="log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1.5, 0.6)))
    axes.grid(alpha=0.25, which="both", lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(11)


def markdown_table(table: pd.DataFrame, law: PowerLaw | None, notes: Sequence[str] = ()) -> str:
    """The study as a Markdown page: a row a run, the power law, what else there is to know."""
    columns = {
        "run": "run",
        "width": "width",
        "depth": "depth",
        "patch": "patch",
        "params": "params (M)",
        "gmacs": "GMACs",
        "train_gflops": "training GFLOPs",
        "fid": "FID",
        "kid": "KID",
        "precision": "precision",
        "recall": "recall",
        "images_per_second": "images/s",
    }
    shown = table.assign(params=table.params / 1e6)[[*columns]].rename(columns=columns)
    formats = ("", "d", "d", "d", ".3f", ".3g", ".3g", ".1f", ".4g", ".3f", ".3f", ".0f")
    lines = ["# The scaling study", "", shown.to_markdown(index=False, floatfmt=formats), ""]
    if law is not None:
        lines += [
            f"FID ≈ {law.factor:.3g} · GMACs^{law.exponent:.3f} over the study's runs; the exponent's 95 % bootstrap "
            f"interval is [{law.low:.2f}, {law.high:.2f}], the correlation of log FID with log GMACs "
            f"{law.correlation:.3f}.",
            "",
        ]
    return "\n".join([*lines, *(note + "\n" for note in notes)])
