"""The study and its claims as Markdown pages."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from gat.report.claims import MEASURES
from gat.report.columns import GAP, METRICS, RUN, SIZE, Column, mean_text
from gat.report.comparisons import ALPHA, compare, compare_sizes, trend
from gat.report.scaling_laws import EqualCompute, Fit, PowerLaw, Scaling, fids_at
from gat.report.trainings import main_patch, study_of

MEANS = (
    "Values are means over seeds ± standard deviations. Laws and ratios below take geometric means, and training "
    "curves have fewer samples a point, so that their FIDs differ a little."
)


def scaling_page(
    table: pd.DataFrame,
    scalings: Sequence[Scaling],
    equal: EqualCompute | None,
    floors: Mapping[str, Mapping[str, float]],
    notes: Sequence[str] = (),
) -> str:
    """The study as a Markdown page.

    Args:
        table: of all trainings, see `training_table`.
        scalings: the laws, see `fit_scaling`.
        equal: see `equal_compute`.
        floors: metrics of reconstructions and of real images, by name.
        notes: paragraphs at the end.
    """
    lines = ["# The scaling study", "", runs_table(table), "", MEANS, ""]
    lines += [f"- {column.heading}: {column.explanation}" for column in _measured(table)] + [""]
    doubtful = table[table.warnings != ""]
    if len(doubtful):
        lines += ["## Warnings (!)", ""]
        names = doubtful.run + [f", seed {seed:.0f}" * (seed == seed) for seed in doubtful.seed]
        lines += [f"- {name}: {warnings}" for name, warnings in zip(names, doubtful.warnings, strict=True)] + [""]
    if laws := [f"- {text}" for scaling in scalings for text in law_texts(scaling)]:
        lines += ["## Power laws", "", LAWS, "", *laws, ""]
    if equal is not None:
        lines += ["## Equal training compute", "", equal_text(table, equal), ""]
    lines += sizes_section(study_of(table))
    if text := sampling_text(table):
        lines += ["## Noise of sampling and of seeds", "", text, ""]
    if floors:
        lines += ["## Floors", "", floors_table(floors), "", FLOORS_NOTE, ""]
    return "\n".join([*lines, *(f"{note}\n" for note in notes)])


def runs_table(table: pd.DataFrame) -> str:
    """A row a run in Markdown: its size, and its measurements as mean ± standard deviation over seeds."""
    measured = _measured(table)
    headings = [RUN.title, *(column.title for column in SIZE), "seeds", *(column.title for column in measured)]
    rows = []
    for run, own in table.sort_values("gmacs").groupby("run", sort=False):
        name = f"{run} (!)" if (own.warnings != "").any() else run
        size = [column.text(own[column.key].iloc[0]) for column in SIZE]
        rows.append(
            [name, *size, own.seed.count() or "", *(mean_text(own[column.key], column.format) for column in measured)]
        )
    return markdown_table(headings, rows)


def sampling_text(table: pd.DataFrame) -> str:
    """How much log FID varies between sets of samples of one training, and between seeds; empty if it is unknown."""

    def deviation(groups: Iterable[ArrayLike]) -> float:
        """Pooled over groups of as many degrees of freedom as they have."""
        logs = [own for own in (np.log(np.asarray(group, float)) for group in groups) if len(own) > 1]
        squares = sum(((own - own.mean()) ** 2).sum() for own in logs)
        return float((squares / sum(len(own) - 1 for own in logs)) ** 0.5) if logs else float("nan")

    sets = deviation(table.get("fid_sets", pd.Series(dtype=object)).dropna())
    by_run = [own.to_numpy() for _, own in table.groupby("run").fid if len(own) > 1]
    if sets != sets:
        return ""
    each = [deviation([own]) for own in by_run]
    compared = (
        f"; between seeds of one run: {deviation(by_run):.3f} (by run: {min(each):.3f} to {max(each):.3f})"
        if each
        else ""
    )
    return f"Standard deviation of log FID, pooled: between sets of samples of one training: {sets:.3f}{compared}."


FLOORS_NOTE = (
    "Metrics of reconstructions and of real images, measured as those of samples are. With as many samples, a "
    "generator of perfect images would have about the values of real images; with more of them, FID falls and coverage "
    "rises, so that both compare with the table above only at the same number."
)


def floors_table(floors: Mapping[str, Mapping[str, float]]) -> str:
    """A row a floor in Markdown, with all of its metrics."""
    shown = [column for column in METRICS if any(column.key in own for own in floors.values())]
    rows = [
        [name, f"{own['samples']:,.0f}", *(column.text(own.get(column.key)) for column in shown)]
        for name, own in floors.items()
    ]
    return markdown_table(["images", "number", *(column.title for column in shown)], rows)


def _measured(table: pd.DataFrame) -> list[Column]:
    return [column for column in (*METRICS, GAP) if column.key in table]


def sizes_section(study: pd.DataFrame) -> list[str]:
    """The comparisons of neighbouring sizes and patches, and the trend over all sizes, as lines of Markdown."""
    steps = compare_sizes(study)
    if not steps:
        return []
    rows = [[one.smaller, one.larger, one.comparison.text, one.comparison.p_text, one.verdict] for one in steps]
    table = markdown_table(["from", "to", "FID ratio", "p", "a larger model or a finer patch lowers FID"], rows)
    return [
        "## Differences between runs",
        "",
        table,
        "",
        COMPARED,
        "",
        *([f"{text}\n"] if (text := trend_text(study)) else []),
    ]


COMPARED = (
    'Ratio: of geometric means over seeds, with Welch\'s 95% interval; it and p are of this comparison alone. "Shows": '
    'the interval excludes 1 on the claimed side; "contradicted": it excludes 1 on the other, or lies within ±10% of '
    '1; otherwise "undecided". For verdicts, intervals are wider, by Holm\'s procedure for the number of claims, so '
    "that a claim can be undecided although its 95% interval excludes 1; the chance of any wrong verdict is at most "
    f"{ALPHA:.0%} if logarithms are normal over seeds, which fails where some trainings begin to learn late."
)


def trend_text(study: pd.DataFrame) -> str:
    """Whether FID falls from size to size, over all seeds together; empty with fewer than three sizes."""
    sizes = study[study.patch == main_patch(study)].sort_values(["gmacs", "seed"])
    groups = {str(run): own.fid.to_numpy() for run, own in sizes.groupby("run", sort=False)}
    if len(groups) < 3:
        return ""
    tested = trend(list(groups.values()))
    p = f"p = {tested.p:.1g}" if tested.p >= 1e-4 else "p < 0.0001"  # as few of the permutations are as ordered
    return (
        f"Trend over {', '.join(groups)}: {tested.ordered:g} of {tested.pairs} pairs of trainings of different sizes "
        "have the lower FID in the larger one; Jonckheere–Terpstra test, one-sided, by permutation: "
        f"{p}. It tests the trend, not each step."
    )


LAWS = (
    "Fitted to the geometric means over seeds of all runs that override nothing, each as one point, with 95% intervals "
    "by Student's t and, of r, by Fisher's z. The discriminator grows with the generator, and the learning rate falls "
    "with the width, so that they describe the whole recipe."
)


def equal_text(table: pd.DataFrame, equal: EqualCompute) -> str:
    """Which run is best at which training compute, in sentences."""
    spans = [f"{run} up to {_number(end)} GMACs" for run, _, end in equal.best[:-1]] + [equal.best[-1][0] + " beyond"]
    best = ", ".join(spans) if len(spans) > 1 else equal.best[0][0]
    if never := [run for run in equal.curves if run not in {run for run, _, _ in equal.best}]:
        best += f"; {', '.join(never)} nowhere"
    text = (
        "FIDs are those of the training curves: geometric means over seeds, interpolated, and after a run's end its "
        f"last one. Lowest at equal training compute: {best}."
    )
    study = study_of(table)
    sizes = [str(run) for run in study[study.patch == main_patch(study)].run.unique() if run in equal.curves]
    for smaller, larger in pairwise(sizes):
        gmacs, *fids = equal.curves[smaller][-1]
        if (others := fids_at(equal.curves[larger], gmacs)) is not None:
            means = [f"{run} {stats.gmean(own):.3g}" for run, own in ((smaller, fids), (larger, others))]
            ratio = compare(others, fids).text
            text += f" At {smaller}'s final {_number(gmacs)} GMACs: {', '.join(means)}, a ratio of {ratio}."
    return text


def _number(value: float) -> str:
    """With three digits, such as 2,910."""
    return f"{float(f'{value:.3g}'):,.10g}"


def law_texts(scaling: Scaling) -> list[str]:
    """Each law of one kind of compute, with its forecast, in sentences."""
    return [law_text(fit, scaling.axis.name) for fit in scaling.fits]


def law_text(fit: Fit, compute: str) -> str:
    """A law and its forecast in sentences."""
    law, forecast, floor = fit.law, fit.forecast, fit.floor
    (low, high), linear = law.correlation_interval, law.correlation_linear_interval
    text = (
        f"{fit.title.capitalize()}, {law.n} runs: FID ≈ {law.factor:.3g} · C^{law.exponent:.2f} with C in {compute}; "
        f"exponent {_exponent(law)}. Pearson's r of log FID with log C: {law.correlation:.3f} [{low:.2f}, {high:.2f}]; "
        f"of FID with log C: {law.correlation_linear:.3f} [{linear[0]:.2f}, {linear[1]:.2f}]."
    )
    if fit.unflagged is not None:
        text += f" Without flagged trainings: exponent {_exponent(fit.unflagged)}."
    if floor is not None:
        text += (
            f" With a floor: FID ≈ {floor.floor:.2f} [{floor.floor_interval[0]:.2f}, {floor.floor_interval[1]:.2f}] + "
            f"a · C^b, b {floor.exponent:.2f} [{floor.exponent_interval[0]:.2f}, {floor.exponent_interval[1]:.2f}]."
        )
    if forecast is not None:
        wide = "; the interval is too wide to test the law" * (forecast.high > 100 * forecast.low)
        text += (
            f" The law fitted without {forecast.run} predicts FID {forecast.predicted:.3g} "
            f"[{forecast.low:.3g}, {forecast.high:.3g}] for it{wide}; measured: {forecast.measured:.3g}."
        )
    return text


def _exponent(law: PowerLaw) -> str:
    low, high = law.exponent_interval
    return f"{law.exponent:.2f} [{low:.2f}, {high:.2f}]"


def measurement_note(extractor: Mapping[str, Any], encoder: Mapping[str, Any], samples: int) -> str:
    """How the metrics were measured.

    Args:
        extractor: `name` and `mode`; of a classifier also its `accuracy` and the `scale` of its features.
        encoder: its `name`, None without one, and its `accuracy`.
        samples: of each training.
    """
    features = f"Features: {extractor['name']}, clean-fid mode {extractor['mode']}"
    if "accuracy" in extractor:
        features += (
            f", held-out accuracy {extractor['accuracy']:.3f}, each of mean 0 and, on average, of variance 1 over the "
            f"real images (FID of the features as they are is {extractor['scale'] ** 2:.3g} times as large)"
        )
    if encoder["name"] is not None:
        features += f"; encoder: {encoder['name']}"
    if encoder["accuracy"] is not None:
        features += f", whose ten nearest neighbours tell the class of {encoder['accuracy']:.1%} of other images"
    return f"{features}; {samples:,} samples per training."


def claims_page(content: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Claims and analyses (see `gat.report.claims.summarize`) as a Markdown page."""
    how = (
        "[docs/claims.md](../docs/claims.md) says how, and what was known before. In the first two tables values are "
        "geometric means over seeds (arithmetic ones if one is not positive), with the lowest and the highest in "
        "parentheses; elsewhere, means ± standard deviations. Bars in plots of analyses are standard deviations, on a "
        "logarithmic axis those of logarithms. FID during training is of fewer samples than FID."
    )
    lines = ["# The paper's claims, tested", "", how, ""]
    rows = []
    for one in (claims := content["claims"]):
        ratio = f"{one['arm']} / {one['baseline']}: {one['ratio']}"
        rows.append([one["text"], one["paper"], ratio, f"**{one['verdict']}**", one["sentence"]])
    if rates := content["rates"]:
        rule = "The best learning rate is proportional to 1/width"
        rows.append([rule, "the rule is used for all sizes", "", f"**{rates['verdict']}**", rates["sentence"]])
    if rows:
        lines += [markdown_table(["claim", "the paper", "ratio, 95%", "here", "what was found"], rows), ""]
    if claims:
        keys = ("name", "arm", "arm_text", "baseline", "baseline_text", "measure", "expected", "ratio", "p", "verdict")
        values = [[MEASURES[one[key]] if key == "measure" else one[key] for key in keys] for one in claims]
        headings = ["claim", "arm", "arm's value", "baseline", "baseline's value", "measure", "expected", "ratio", "p"]
        lines += ["![Ratios with intervals](claims.png)", ""]
        lines += ["## Comparisons", "", markdown_table([*headings, "verdict"], values), "", COMPARED, ""]
    if content["analyses"]:
        lines += ["![FID during training, learning rates, analyses](analyses.png)", ""]
    for analysis in content["analyses"]:
        lines += [f"## {analysis['title']}", "", *([analysis["text"], ""] if analysis["text"] else [])]
        lines += [markdown_table(analysis["columns"], analysis["rows"]), ""] if analysis["rows"] else []
    return "\n".join([*lines, *(f"{note}\n" for note in notes)])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table of cells as they are."""
    return pd.DataFrame(rows, columns=[*headings]).to_markdown(index=False, disable_numparse=True)
