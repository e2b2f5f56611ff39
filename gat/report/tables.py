"""The study and its ablations as Markdown pages."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gat.report.columns import GAP, METRICS, RUN, SIZE, Column, mean_text
from gat.report.comparisons import compare_sizes
from gat.report.scaling_laws import Scaling
from gat.report.trainings import study_of

MEANS = "Values are means over seeds ± standard deviations."


def scaling_page(
    table: pd.DataFrame, scalings: Sequence[Scaling], floors: Mapping[str, float], notes: Sequence[str] = ()
) -> str:
    """The study as a Markdown page.

    Args:
        table: of all trainings, see `training_table`.
        scalings: the laws, see `fit_scaling`.
        floors: FIDs of reconstructions and of real images, by name.
        notes: paragraphs at the end.
    """
    lines = ["# The scaling study", "", runs_table(table), "", MEANS, ""]
    lines += [f"- {column.heading}: {column.explanation}" for column in _measured(table)] + [""]
    doubtful = table[table.warnings != ""]
    if len(doubtful):
        lines += ["## Warnings (!)", ""]
        lines += [f"- {row.run}, seed {row.seed}: {row.warnings}" for row in doubtful.itertuples()] + [""]
    if laws := [f"- {law_text(scaling)}" for scaling in scalings if scaling.law is not None]:
        lines += ["## Power laws", "", *laws, ""]
    if pairs := compare_sizes(study_of(table)):
        rows = [[a, b, one.text, "" if one.single else f"{one.errors:.2g}", one.verdict] for a, b, one in pairs]
        headings = ["from", "to", "FID", "sum of standard errors", "verdict"]
        lines += ["## Differences between runs", "", markdown_table(headings, rows), ""]
        lines += ["A difference is beyond seed noise if it exceeds the sum of the standard errors of both means.", ""]
    if floors:
        named = ", ".join(f"{name} {fid:.3g}" for name, fid in floors.items())
        lines += [f"FID floors, which no generator is expected to beat: {named}.", ""]
    return "\n".join([*lines, *(f"{note}\n" for note in notes)])


def runs_table(table: pd.DataFrame) -> str:
    """A row a run in Markdown: its size, and its measurements as mean ± standard deviation over seeds."""
    measured = _measured(table)
    headings = [RUN.title, *(column.title for column in SIZE), "seeds", *(column.title for column in measured)]
    rows = []
    for run, own in table.sort_values("gmacs").groupby("run", sort=False):
        name = f"{run} (!)" if (own.warnings != "").any() else run
        size = [column.text(own[column.key].iloc[0]) for column in SIZE]
        rows.append([name, *size, len(own), *(mean_text(own[column.key], column.format) for column in measured)])
    return markdown_table(headings, rows)


def _measured(table: pd.DataFrame) -> list[Column]:
    return [column for column in (*METRICS, GAP) if column.key in table]


def law_text(scaling: Scaling) -> str:
    """The law and the forecast of one kind of compute, in sentences."""
    law, forecast = scaling.law, scaling.forecast
    if law is None:
        return "A power law needs three runs of the study."
    low, high = law.exponent_interval
    text = (
        f"FID ≈ {law.factor:.3g} · C^{law.exponent:.3f} with C in {scaling.axis.name}. 95% confidence interval of the "
        f"exponent (bootstrap over runs and seeds): [{low:.2f}, {high:.2f}]. Pearson's r of log FID with log C: "
        f"{law.correlation:.3f}; of FID with log C: {law.correlation_linear:.3f}."
    )
    if forecast is not None:
        text += (
            f" The law fitted without {forecast.run} predicts FID {forecast.predicted:.3g} "
            f"[{forecast.low:.3g}, {forecast.high:.3g}] for it; measured: {forecast.measured:.3g}."
        )
    return text


def measurement_note(extractor: Mapping[str, Any], samples: int) -> str:
    """How the metrics were measured.

    Args:
        extractor: `name` and `mode`; of a classifier also its `accuracy` and the `scale` of its features.
        samples: of each training.
    """
    features = f"Features: {extractor['name']}, clean-fid mode {extractor['mode']}"
    if "accuracy" in extractor:
        features += (
            f", held-out accuracy {extractor['accuracy']:.3f}, standardized to mean 0 and variance 1 over the real "
            f"images (FID of unstandardized features is {extractor['scale'] ** 2:.3g} times as large)"
        )
    return f"{features}; {samples:,} samples per training."


def ablations_page(content: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """Ablations and analyses (see `gat.report.ablations.summarize`) as a Markdown page."""
    lines = ["# Ablations and analyses", "", MEANS, ""]
    if ablations := content["ablations"]:
        rows = [[one["name"], f"`{one['change']}`", one["fid"], one["compared"]] for one in ablations]
        lines += ["## Ablations", "", markdown_table(["ablation", "change", "FID", "baseline"], rows), ""]
        lines += [f"- {one['name']}: {one['verdict']}" for one in ablations]
        lines += [f"- {sentence}" for sentence in content["sentences"]] + [""]
    for analysis in content["analyses"]:
        lines += [f"## {analysis['title']}", "", analysis["text"], ""]
        lines += [markdown_table(analysis["columns"], analysis["rows"]), ""]
    return "\n".join([*lines, *(f"{note}\n" for note in notes)])


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table of cells as they are."""
    return pd.DataFrame(rows, columns=[*headings]).to_markdown(index=False, disable_numparse=True)
