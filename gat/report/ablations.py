"""What ablations and analyses say: comparisons with the runs that they change, in numbers, sentences and figures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gat.config import Run
from gat.report.figures import label_axes, mean_text, standard_errors

NOISE, SINGLE = "within the noise of the seeds", "one seed does not tell"
FIXED_RATE = "train.scale_lr_by_width=false"
# What the paper says of a change, by all keys that an ablation overrides, and their values.
CLAIMS = {
    frozenset({"loss.levels.schedule=none"}): "without noise guidance it is worse",
    frozenset({"loss.levels.schedule=linear"}): "a linear noise schedule is worse than the exponential one",
    frozenset({"loss.levels.schedule=resized"}): "resized images in place of noise are worse",
    frozenset({"repa.teacher=null"}): "without a teacher it is worse",
    frozenset({FIXED_RATE}): "a learning rate that is not its width's is worse",
}


class Ablation(NamedTuple):
    """A run that changes one thing of another, and the FIDs of both, a seed each."""

    name: str
    change: str  # such as loss.levels.schedule=none
    fids: list[float]
    baseline: str | None
    baseline_fids: list[float]

    @property
    def difference(self) -> float:
        """By how much its mean FID is larger."""
        return float(np.mean(self.fids) - np.mean(self.baseline_fids))

    @property
    def compared(self) -> str:
        """The run that it changes, with its FID."""
        return f"{self.baseline}: {mean_text(self.baseline_fids)}" if self.baseline else "none"

    @property
    def outcome(self) -> str:
        """`worse`, `better`, or what is to say of a difference that is none."""
        errors = standard_errors(self.fids, self.baseline_fids)
        if np.isnan(errors):
            return SINGLE
        if abs(self.difference) <= errors:
            return NOISE
        return "worse" if self.difference > 0 else "better"

    @property
    def verdict(self) -> str:
        """The outcome in a sentence, with whether the paper's claim shows."""
        if self.baseline is None:
            return "No run of its size is in the study."
        sign = "higher" if self.difference > 0 else "lower"
        text = f"FID {abs(self.difference):.3g} {sign} than {self.baseline}'s: {self.outcome}."
        claim = CLAIMS.get(self._changes)
        if claim is not None:
            shows = {"worse": "shows here", SINGLE: "cannot be told"}
            text += f" The paper's claim, that {claim}, {shows.get(self.outcome, 'does not show here')}."
        return text

    @property
    def _changes(self) -> frozenset[str]:
        """What CLAIMS has as keys; which fixed rate it is does not matter there."""
        leaves = frozenset(self.change.split(", "))
        rates = {one for one in leaves if one.startswith("train.learning_rate=")}
        return leaves - rates if FIXED_RATE in leaves else leaves


def change_of(run: Run) -> str:
    """What a run overrides, as keys and values."""

    def leaves(values: Mapping[str, Any], prefix: str) -> list[str]:
        found = []
        for key, value in values.items():
            name = f"{prefix}.{key}"
            found += leaves(value, name) if isinstance(value, Mapping) else [f"{name}={_text(value)}"]
        return found

    sections = {name: getattr(run, name) for name in ("loss", "train", "repa")}
    sections["discriminator"] = run.discriminator.model_dump(exclude_none=True)
    return ", ".join(leaf for name, values in sections.items() for leaf in leaves(values, name))


def _text(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def scaled_apart(ablations: Sequence[Ablation], runs: Mapping[str, Run]) -> list[str]:
    """Sentences on pairs of ablations that differ in nothing but which of the two networks is the larger one."""

    def others(run: Run) -> tuple[Any, ...]:
        return run.depth, run.patch, run.discriminator.depth, run.discriminator.patch, run.loss, run.train, run.repa

    sentences = []
    for a in ablations:
        for b in ablations:
            large_g, large_d = runs[a.name], runs[b.name]
            width, own = large_g.width, large_g.discriminator.width
            swapped = (own, width) == (large_d.width, large_d.discriminator.width)
            if not (swapped and own is not None and own < width and others(large_g) == others(large_d)):
                continue
            if a.baseline is None or b.baseline is None:
                continue
            outcome = Ablation("", "", b.fids, a.name, a.fids).outcome
            versus = "The larger discriminator alone against the larger generator alone"
            sentences.append(
                f"From {b.baseline} (FID {mean_text(b.baseline_fids)}) to {a.baseline} ({mean_text(a.baseline_fids)}): "
                f"with the larger generator alone {mean_text(a.fids)}, with the larger discriminator alone "
                f"{mean_text(b.fids)}. {versus}: {outcome}; the paper says that scaling D alone helps more."
            )
    return sentences


def page_rows(ablations: Sequence[Ablation]) -> list[dict[str, Any]]:
    """Ablations as the page reads them."""
    return [
        {
            "name": ablation.name,
            "change": ablation.change,
            "fid": mean_text(ablation.fids),
            "fids": ablation.fids,
            "baseline": ablation.baseline,
            "compared": ablation.compared,
            "baseline_fids": ablation.baseline_fids,
            "verdict": ablation.verdict,
        }
        for ablation in ablations
    ]


def analyses_content(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tables, sentences and plots of analyses, as the page reads them.

    Args:
        results: of each run and seed, what `stages/analyze.py` writes.
    """
    runs = list(dict.fromkeys(result["run"] for result in results))
    by_run = {run: [result for result in results if result["run"] == run] for run in runs}
    parts = [_layers(by_run)]
    with_discriminator = {run: own for run, own in by_run.items() if all("discriminator" in one for one in own)}
    if with_discriminator:
        parts.append(_discriminators(with_discriminator))
    stepped = {run: own for run, own in by_run.items() if all("steps" in one for one in own)}
    if stepped:
        parts += [_steps(stepped, when) for when in ("start", "later")]
    return parts


def _series(name: str, x: Sequence[Any], values: Sequence[Sequence[float]], **more: Any) -> dict[str, Any]:
    """A line of a plot: at each x the mean over seeds, with their standard deviation."""
    deviations = [float(np.std(own, ddof=1)) if len(own) > 1 else 0.0 for own in values]
    return {"name": name, "x": list(x), "y": [float(np.mean(own)) for own in values], "deviations": deviations, **more}


def _layers(by_run: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    rows, series, shares = [], [], dict[str, np.ndarray]()
    for run, own in by_run.items():
        use = {key: np.array([one["layers"][key] for one in own]).T for key in ("skipped", "cosine", "cka")}
        blocks = [str(i + 1) for i in range(len(use["skipped"]))]
        series.append(_series(run, blocks, use["skipped"].tolist()))
        early = use["skipped"][: (len(blocks) + 1) // 2].sum(0)
        shares[run] = early / use["skipped"].sum(0)
        rows += [
            [run, block, *(mean_text(use[key][i], 3) for key in ("skipped", "cosine", "cka"))]
            for i, block in enumerate(blocks)
        ]
    return {
        "title": "Which blocks of the generator matter",
        "text": "How far images move, in the extractor's features, when one block is left out, over the mean distance "
        "between two images: near 0 a block could be left out. Cosine and CKA compare a block's tokens before and "
        "after it. Share of the first half of the blocks (rounded up) in all movement: "
        + "; ".join(f"{run} {mean_text(own)}" for run, own in shares.items())
        + "."
        + _early_layers(by_run, shares),
        "columns": ["run", "block", "moved when skipped", "cosine", "CKA"],
        "rows": rows,
        "plot": {"kind": "bar", "x": "block", "y": "movement when skipped", "series": series},
    }


def _early_layers(by_run: Mapping[str, Sequence[Mapping[str, Any]]], shares: Mapping[str, np.ndarray]) -> str:
    """Whether runs use early blocks more than their ablations without guidance do, in sentences."""
    text = ""
    for run, own in by_run.items():
        for other, theirs in by_run.items():
            if theirs[0]["baseline"] == run and own[0]["guided"] and not theirs[0]["guided"]:
                shows = _larger(shares[run], shares[other])
                text += (
                    f" The paper's claim, that noise guidance makes early layers be used more, {shows}: {run} against "
                    f"{other}."
                )
    return text


def _larger(x: np.ndarray, y: np.ndarray) -> str:
    """Whether one mean is larger than another by more than their standard errors."""
    errors = standard_errors(x, y)
    if np.isnan(errors):
        return "cannot be told from one seed"
    return "shows here" if x.mean() - y.mean() > errors else "does not show here"


def _discriminators(by_run: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    keys = ("accuracy", "relative_accuracy", "relative_accuracy_on_samples", "cknna")
    rows = [
        [run, *(mean_text([one["discriminator"][key] for one in own], 3) for key in keys)]
        for run, own in by_run.items()
    ]
    first = next(iter(by_run.values()))[0]["discriminator"]
    return {
        "title": "What the discriminator knows",
        "text": "Share of training images whose own class has the discriminator's highest logit of all classes "
        f"(chance: {first['chance']:.3g}); the same of logits less their label's mean, which the losses leave free, of "
        "training images and of the generator's samples, which may well be below chance, as it is at their own label "
        "that they are told from reals; and the alignment (CKNNA) of [cls] with the features of the "
        f"{first['reference']}.",
        "columns": ["run", "accuracy", "relative", "relative, samples", "CKNNA"],
        "rows": rows,
        "plot": None,
    }


def _steps(by_run: Mapping[str, Sequence[Mapping[str, Any]]], when: str) -> dict[str, Any]:
    patches = [own[0]["patch"] for own in by_run.values()]
    patch = min(patches, key=lambda one: (-patches.count(one), one))  # that of most, as for laws
    same = {own[0]["width"]: own for own in reversed([*by_run.values()]) if own[0]["patch"] == patch}
    ordered = [same[width] for width in sorted(same)]
    widths = [own[0]["width"] for own in ordered]
    rules = {"with": "with the width rule", "without": "one rate for all"}
    rows, series, slopes, verdicts = [], [], [], []
    for network in ("generator", "discriminator"):
        by_rule = {}
        for rule, text in rules.items():
            values = [[one["steps"][rule][when][network] for one in own] for own in ordered]
            series.append(_series(f"{network}, {text}", widths, values, dash="solid" if rule == "with" else "dot"))
            rows.append([network, text, *(mean_text(own, 4) for own in values)])
            if len(widths) > 1:
                by_seed = [np.polyfit(np.log(widths), np.log(own), 1)[0] for own in zip(*values, strict=True)]
                by_rule[rule] = np.array(by_seed)
                slopes.append(f"{network}, {text}: {mean_text(by_seed)}")
        if by_rule:
            shows = _larger(by_rule["without"], by_rule["with"])
            verdicts.append(f"That it grows faster with the width without the rule {shows} for the {network}.")
    title = "at the start of training" if when == "start" else "later in training"
    return {
        "title": f"How far one optimizer step goes, {title}",
        "text": "Root mean square change of the generator's latents and of the discriminator's logits per step, by "
        "width. The paper scales the learning rate by 1/width to keep it the same for all widths."
        + (f" Exponents of a power law in width, 0 if it is the same: {'; '.join(slopes)}." if slopes else "")
        + "".join(f" {verdict}" for verdict in verdicts),
        "columns": ["network", "learning rate", *(f"width {width}" for width in widths)],
        "rows": rows,
        "plot": {"kind": "line", "x": "width", "y": "change per step", "series": series},
    }


def markdown(ablations: Sequence[Ablation], sentences: Sequence[str], analyses: Sequence[Mapping[str, Any]]) -> str:
    """All of it as a Markdown page."""
    lines = ["# Ablations and analyses", "", "Means over seeds ± their standard deviation.", ""]
    if ablations:
        lines += ["## One thing changed", ""]
        rows = [[one.name, f"`{one.change}`", mean_text(one.fids), one.compared] for one in ablations]
        lines += [_table(["ablation", "what differs", "FID", "compared with"], rows), ""]
        lines += [f"- {one.name}: {one.verdict}" for one in ablations]
        lines += [f"- {sentence}" for sentence in sentences] + [""]
    for analysis in analyses:
        lines += [f"## {analysis['title']}", "", analysis["text"], ""]
        lines += [_table(analysis["columns"], analysis["rows"]), ""]
    return "\n".join([*lines, "Made by `make ablations`.", ""])


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows]).to_markdown(
        index=False, disable_numparse=True
    )


def draw_ablations(ablations: Sequence[Ablation], analyses: Sequence[Mapping[str, Any]], color: str) -> Figure:
    """FIDs of the ablations beside those of their runs, and the analyses' plots."""
    plots = [analysis for analysis in analyses if analysis["plot"]]
    rows = 1 + (len(plots) + 1) // 2
    figure = Figure(figsize=(11.5, 4.3 * rows), layout="constrained", dpi=110)
    grid = figure.add_gridspec(rows, 2)
    axes = figure.add_subplot(grid[0, :])
    for place, one in enumerate(ablations):
        for fids, shade, marker in ((one.baseline_fids, "#8a8a8a", "|"), (one.fids, color, "o")):
            axes.scatter(fids, [place] * len(fids), color=shade, marker=marker, s=70 if marker == "|" else 26, zorder=3)
        axes.plot([min(one.fids), max(one.fids)], [place, place], color=color, lw=1.5, alpha=0.5)
    axes.set_yticks(
        range(len(ablations)), [one.name + (f" ({one.baseline})" if one.baseline else "") for one in ablations]
    )
    axes.invert_yaxis()
    title = "FID of ablations (points), and of the runs that they change (bars)"
    label_axes(axes, title, "FID", "", "x" if ablations else "")
    for place, analysis in enumerate(plots):
        axes = figure.add_subplot(grid[1 + place // 2, place % 2])
        _draw_plot(axes, analysis["plot"])
        plot = analysis["plot"]
        label_axes(axes, analysis["title"], plot["x"], plot["y"], "xy" if plot["kind"] == "line" else "")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_plot(axes: Axes, plot: Mapping[str, Any]) -> None:
    count = len(plot["series"])
    if plot["kind"] == "bar":
        longest = max((series["x"] for series in plot["series"]), key=len)
        axes.set_xticks(range(len(longest)), longest)
    for i, series in enumerate(plot["series"]):
        if plot["kind"] == "bar":
            places = np.arange(len(series["x"])) + (i - (count - 1) / 2) * 0.8 / count
            axes.bar(places, series["y"], 0.8 / count, yerr=series["deviations"], label=series["name"], capsize=2)
        else:
            style = "--" if series["dash"] == "dot" else "-"
            axes.errorbar(
                series["x"], series["y"], series["deviations"], fmt=f"o{style}", ms=4, capsize=3, label=series["name"]
            )
