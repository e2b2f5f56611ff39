"""The study's figures, tables and page: results/, showcase/, claims/summary.json -> reports/.

python -m stages report

scaling.png, samples.png, scaling.csv, scaling.md, and index.html with all of it.
"""

import json
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from gat.config import Params, Training
from gat.files import atomic_write
from gat.report.claims import same_baselines
from gat.report.figures import draw_samples, draw_scaling, save
from gat.report.page import about_content, render_page, showcase_content, study_content
from gat.report.scaling_laws import equal_compute, fit_scaling
from gat.report.tables import measurement_note, scaling_page
from gat.report.trainings import smallest_and_largest, training_table
from stages import (
    ENCODER,
    EXTRACTOR,
    FLOORS,
    REALS,
    REPORTS,
    SHOWCASE,
    SUMMARY,
    address,
    claims_key,
    commit,
    results_of,
    results_of_samples,
)


def main(params: Params) -> None:
    """Run the stage."""
    settings, floors = params.report, json.loads(FLOORS.read_text())
    results = {training: results_of(params, training) for training in params.trainings}
    rows = [
        own.read() | {"changes_recipe": params.run(training.run).changes_recipe} for training, own in results.items()
    ]
    rows += [results_of_samples(name).read() | {"changes_recipe": True} for name in params.samples]
    table = training_table(rows)
    curves = {training: own.curves() for training, own in results.items()}
    scalings, equal = fit_scaling(table), equal_compute(table, curves)
    extractor, encoder = (
        json.loads(path.read_text()) for path in (EXTRACTOR / "extractor.json", ENCODER / "encoder.json")
    )
    note = measurement_note(extractor, encoder, params.evaluate.samples)
    look = settings.colors, settings.highlight, {name: own["fid"] for name, own in floors.items()}

    pictures = {"real": REALS}
    for run in smallest_and_largest(table):
        training = Training(run, params.seeds[0])
        pictures[f"{run}, seed {training.seed}"] = results[training].samples
    images = {title: np.asarray(Image.open(path)) for title, path in pictures.items()}
    save(draw_scaling(table, curves, scalings, equal, *look), REPORTS / "scaling.png")
    save(draw_samples(images), REPORTS / "samples.png")
    with atomic_write(REPORTS / "scaling.csv") as path:
        columns = table.drop(columns=["changes_recipe", "fid_sets"]).convert_dtypes()  # seeds stay whole numbers
        columns.to_csv(path, index=False, float_format="%.6g")
    with atomic_write(REPORTS / "scaling.md") as path:
        text = scaling_page(table, scalings, equal, floors, [note, "Made by `dvc repro`."])
        path.write_text(text, encoding="utf-8")

    commands = {"make repro": "the whole study", "dvc repro": "only what has changed"}
    trainings = {training: f"dvc repro {address(params, training, 'evaluate')}" for training in results}
    shown = {run: SHOWCASE / run for run in dict.fromkeys(table.run) if run in params.runs}
    content, assets = showcase_content(shown, table)
    content |= about_content(params, table, commit(), commands, trainings)
    content |= study_content(table, curves, scalings, equal, *look)
    content |= {"notes": [note]} | claims_content(params, table)
    with atomic_write(REPORTS / "index.html") as path:
        path.write_text(render_page(content, assets), encoding="utf-8")


def claims_content(params: Params, table: pd.DataFrame) -> dict[str, Any]:
    """The summary of claims, unless it is of other params, or of other results of their baselines."""
    summary: dict[str, Any] = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    if summary.get("key") == claims_key(params) and same_baselines(summary, table):
        return summary
    return {"claims": [], "rates": {}, "analyses": []}
