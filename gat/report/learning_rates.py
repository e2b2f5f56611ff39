"""FID against the learning rate for several widths: by which power of the width the best rate falls.

The paper's rule is 1/width, a power of 1 (section 4.2); with one best rate for all widths it is 0.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, stats

from gat.report.columns import mean_text
from gat.report.comparisons import ALPHA, Verdict

NEAR = 4.0  # a rate is near the minimum with at most this many times the lowest FID of its width
SHARP = 10.0  # of the transition to the plateau, in 1 / log FID
STARTS = (0.0, 1.0)  # powers from which the fit starts, besides that of the lowest points
RULE, MARGIN = 1.0, 0.5  # the paper's power, and how far from it the interval may reach


class RatesFit(NamedTuple):
    """log FID = a(width) + c(width) · (log rate − b + power · log width)², by least squares near the minima.

    At rates below the best one it is the smooth minimum of this and log `plateau`, the same for all widths.
    """

    power: float
    low: float  # Student's 95% interval
    high: float
    best: Mapping[int, float]  # rate at the fitted minimum, by width
    plateau: float | None  # FID; None with fewer than two trainings on it
    trainings: int

    @property
    def text(self) -> str:
        """The power with its interval."""
        return f"{self.power:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def verdict(self) -> Verdict:
        """On the paper's rule: shown if the interval lies within `RULE` ± `MARGIN`, contradicted if it lies outside."""
        if self.low >= RULE - MARGIN and self.high <= RULE + MARGIN:
            return "shows"
        return "contradicted" if self.high < RULE - MARGIN or self.low > RULE + MARGIN else "undecided"

    def content(self) -> dict[str, Any]:
        """As JSON."""
        interval = [self.power, self.low, self.high]
        best = {str(width): rate for width, rate in self.best.items()}
        leads = {"shows": "It holds here", "contradicted": "It does not hold here", "undecided": "Not decided"}
        sentence = (
            f"{leads[self.verdict]}: the fitted best learning rate is proportional to width^−q with q = {self.text}; "
            f"the rule has q = {RULE:g}."
        )
        numbers = {"interval": interval, "text": self.text, "verdict": self.verdict, "best": best}
        return numbers | {"trainings": self.trainings, "sentence": sentence}


def lowest(table: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean FID over seeds, infinite if one diverged: a row for each width, a column for each rate."""
    values = table.assign(fid=np.log(table.fid.where(~table.diverged, np.inf)))
    return values.pivot_table(index="width", columns="rate", values="fid", aggfunc="mean").apply(np.exp)


class _Model(NamedTuple):
    """The parabolas and the plateau, of values `[*a, *c, b, power, log plateau]`, at some trainings."""

    place: np.ndarray  # (N,) of each training's width in `log_widths`
    log_rates: np.ndarray  # (N,)
    log_fids: np.ndarray  # (N,)
    log_widths: np.ndarray  # (W,)

    def minima(self, values: np.ndarray) -> np.ndarray:
        """Log of the best rate (W,)."""
        b, power, _ = values[-3:]
        return b - power * self.log_widths

    def parabola(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log FID (N,) without the plateau, and which trainings are at rates below the best."""
        a, c = values[:-3].reshape(2, -1)
        distance = self.log_rates - self.minima(values)[self.place]
        return a[self.place] + c[self.place] * distance**2, distance < 0

    def residuals(self, values: np.ndarray) -> np.ndarray:
        """Log FID (N,) of the model less that of the trainings."""
        parabola, below = self.parabola(values)
        capped = -np.logaddexp(-SHARP * parabola, -SHARP * values[-1]) / SHARP  # a smooth minimum
        return np.where(below, capped, parabola) - self.log_fids


def fit_rates(table: pd.DataFrame) -> RatesFit | None:
    """Fit the best rate's power of the width, by least squares from three starts: another minimum may be lower.

    Args:
        table: a row for each training: `width`, `rate`, `seed`, `fid` and `diverged`.

    Returns:
        None if the trainings do not determine the power: with one width, with fewer than three rates near the minimum
        of a width, with a width of which a training diverged at every rate, with too few trainings, or if no fit
        converges to parabolas that have their minima among the rates.
    """
    means = lowest(table)
    best_rate, least = means.idxmin(axis=1), means.min(axis=1)
    mean = means.stack().reindex(pd.MultiIndex.from_frame(table[["width", "rate"]])).to_numpy()
    is_near = mean <= NEAR * least[table.width].to_numpy()
    is_below = (table.rate < best_rate[table.width].to_numpy()).to_numpy()
    near, fitted = table[is_near & ~table.diverged], table[(is_near | is_below) & ~table.diverged]
    widths = sorted({*table.width})
    count = len(widths)
    if count < 2 or any(near.rate[near.width == width].nunique() < 3 for width in widths):
        return None
    if not np.isfinite(least).all():  # one of the seeds diverged at every rate
        return None
    if len(near) <= 2 * count + 3:
        return None
    places = np.searchsorted(widths, fitted.width)
    model = _Model(places, np.log(fitted.rate.to_numpy()), np.log(fitted.fid.to_numpy()), np.log(widths))
    if (found := _best_fit(model, np.log(means.columns.to_numpy(float)), np.log(least), np.log(best_rate))) is None:
        return None
    parabola, below = model.parabola(found.x)
    has_plateau = np.sum(below & (parabola > found.x[-1])) >= 2
    slopes = found.jac if has_plateau else found.jac[:, :-1]
    if np.linalg.matrix_rank(slopes / np.linalg.norm(slopes, axis=0).clip(1e-300)) < slopes.shape[1]:
        return None
    freedom = len(fitted) - slopes.shape[1]
    inverse = np.linalg.inv(np.linalg.qr(slopes).R)  # its rows' norms are the standard errors, but for the noise
    error = np.linalg.norm(inverse[2 * count + 1]) * (2 * found.cost / freedom) ** 0.5
    power, reach = float(found.x[-2]), float(stats.t.ppf(1 - ALPHA / 2, freedom) * error)
    best = dict(zip(widths, np.exp(model.minima(found.x)).tolist(), strict=True))
    level = float(np.exp(found.x[-1])) if has_plateau else None
    return RatesFit(power, power - reach, power + reach, best, level, len(fitted))


def _best_fit(
    model: _Model, log_rates: np.ndarray, log_least: ArrayLike, log_best: ArrayLike
) -> optimize.OptimizeResult | None:
    """The fit with the least squares among those whose parabolas have minima among the rates; None without any.

    Args:
        model: of the trainings.
        log_rates: (R,) all rates.
        log_least: (W,) of the lowest FIDs, where the fit starts.
        log_best: (W,) of their rates.
    """
    least, best = np.asarray(log_least, float), np.asarray(log_best, float)
    highest = model.log_fids[model.log_rates == model.log_rates.min()].max()

    def is_valid(found: optimize.OptimizeResult) -> bool:
        minima, curvatures = model.minima(found.x), found.x[:-3].reshape(2, -1)[1]
        inside = log_rates.min() <= minima.min() and minima.max() <= log_rates.max()
        return bool(found.success and (curvatures > 0).all() and inside)

    starts = [
        [*least, *([0.4] * len(least)), (best + power * model.log_widths).mean(), power, highest]
        for power in (-np.polyfit(model.log_widths, best, 1)[0], *STARTS)
    ]
    fits = [optimize.least_squares(model.residuals, start, x_scale="jac") for start in starts]
    return min(filter(is_valid, fits), key=lambda fit: fit.cost, default=None)


UNKNOWN = {
    "verdict": "undecided",
    "text": "",
    "sentence": "These trainings do not determine the power.",
}


def rates_content(table: pd.DataFrame, fit: RatesFit | None) -> list[dict[str, Any]]:
    """A title, a text, a table and a plot of FID against the rate, and against rate × width, as JSON."""
    means = lowest(table)
    stable = (means <= NEAR * means.min(axis=1).to_numpy()[:, None]) & np.isfinite(means)
    rows = []
    for width, own in table.groupby("width"):
        cells = [
            mean_text(at.fid[~at.diverged]) + " diverged" * bool(at.diverged.any()) for _, at in own.groupby("rate")
        ]
        fitted = "" if fit is None else f"{fit.best[int(str(width))]:.3g}"
        some = stable.columns[stable.loc[width].to_numpy()]  # none if a training diverged at every rate
        more = "≥ " * bool(len(some) and some.max() == means.columns.max())  # the largest of all
        best = [f"{means.loc[width].idxmin():g}", fitted, f"{more}{some.max():g}"] if len(some) else [""] * 3
        rows.append([str(width), *cells, *best])

    def plot(times_width: bool) -> dict[str, Any]:
        series = []
        for width in means.index:
            finite = means.loc[width][np.isfinite(means.loc[width])]
            x = [float(rate * (width if times_width else 1)) for rate in finite.index]
            none = [0.0] * len(x)
            series.append({"name": f"width {width}", "x": x, "y": [*map(float, finite)], "above": none, "below": none})
        label = "learning rate × width" if times_width else "learning rate"
        return {"kind": "line", "x": label, "y": "FID", "logarithmic": "xy", "series": series}

    text = (
        "FID at the end of short trainings at each learning rate, the same rates for all widths; points are geometric "
        "means over seeds. Rates are for a batch of 512, as in params.yaml. Best: the rate of the lowest point, and "
        "the minimum of a parabola fitted to log FID. "
        f"Largest stable: the largest rate at which nothing diverged and FID is at most {NEAR:g} times the lowest."
    )
    if fit is not None:
        text += (
            f" A fit to the {fit.trainings} trainings at rates within that factor, or below the best, gives a best "
            f"rate proportional to width^−q with q = {fit.text}; the paper's rule has q = 1, one rate for all widths "
            "q = 0. "
        )
        if fit.plateau is not None:
            text += f"Below the best rates the fit has a plateau at an FID of {fit.plateau:.3g}. "
        text += "The verdict has a criterion of its own, and is not among those that Holm's procedure corrects."
    rates = [f"{rate:g}" for rate in means.columns]
    return [
        {
            "title": "FID against the learning rate",
            "text": text,
            "columns": ["width", *rates, "best", "best, fitted", "largest stable"],
            "rows": rows,
            "plot": plot(times_width=False),
        },
        {
            "title": "FID against learning rate × width",
            "text": "By the paper's rule the minima would coincide here.",
            "columns": [],
            "rows": [],
            "plot": plot(times_width=True),
        },
    ]
