"""The study's figures and tables: results/ -> reports/scaling.png, samples.png, scaling.csv, scaling.md.

python -m stages report
"""

import json
import shutil
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from gat.config import Params, Training
from gat.files import atomic_write
from gat.report import draw_samples, draw_scaling, markdown_page, study_of
from stages import EXTRACTOR, FLOORS, REALS, REPORTS, RESULTS, read_results


def main(params: Params) -> None:
    """Run the stage."""
    remove_results_of_others(params)
    settings, floors = params.report, json.loads(FLOORS.read_text())
    table = pd.DataFrame([row_of(params, training) for training in params.trainings])
    table = table.sort_values(["gmacs", "run", "seed"])
    curves = {}
    for training in params.trainings:
        path = RESULTS / training.folder / "live/plots/metrics/fid.tsv"
        if path.exists():  # a pretrained run has none
            curves[training] = pd.read_csv(path, sep="\t")
    figure = draw_scaling(table, curves, settings.colors, settings.highlight, settings.bootstrap, floors)
    with atomic_write(REPORTS / "scaling.png") as path:
        figure.savefig(path, metadata={"Software": None})
    with atomic_write(REPORTS / "samples.png") as path:
        draw_samples(pictures_of(params, table)).savefig(path, metadata={"Software": None})
    with atomic_write(REPORTS / "scaling.csv") as path:
        table.drop(columns="overrides").to_csv(path, index=False, float_format="%.6g")
    with atomic_write(REPORTS / "scaling.md") as path:
        path.write_text(markdown_page(table, floors, notes_of(params), settings.bootstrap), encoding="utf-8")


def remove_results_of_others(params: Params) -> None:
    """Remove the results of runs and seeds that params.yaml names no more; DVC's cache keeps them.

    The stage depends on all of `results/`, and would be changed in every clone that never had them.
    """
    known = {RESULTS / training.folder for training in params.trainings}
    for folder in sorted(RESULTS.glob("*/seed-*")):
        if folder not in known and (folder / "run.json").exists():
            print(f"removed {folder}, of no run and seed in params.yaml; DVC's cache keeps it")
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()


def row_of(params: Params, training: Training) -> dict[str, Any]:
    """All that is known of a training."""
    row = {"overrides": params.settings(training.run).run.overrides} | read_results(RESULTS / training.folder)
    row["warnings"] = "; ".join(row["warnings"])
    return row


def pictures_of(params: Params, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Real images and samples of the smallest and the largest model of the study, by title."""
    paths, runs = {"real": REALS}, study_of(table).run.unique()
    for run in dict.fromkeys([*runs[:1], *runs[-1:]]):
        training = Training(run, params.seeds[0])
        paths[f"{run}, seed {training.seed}"] = RESULTS / training.folder / "samples.png"
    return {title: np.asarray(Image.open(path)) for title, path in paths.items()}


def notes_of(params: Params) -> list[str]:
    """How the numbers were measured."""
    extractor = json.loads((EXTRACTOR / "extractor.json").read_text())
    features = f"Features: {extractor['name']}, clean-fid's mode {extractor['mode']}"
    if "accuracy" in extractor:
        features += (
            f", held-out accuracy {extractor['accuracy']:.3f}, of mean 0 and variance 1 over the reals (as they "
            f"came out of training, FID is {extractor['scale'] ** 2:.3g} times as large)"
        )
    return [f"{features}; {params.evaluate.samples:,} samples a training.", "Made by `dvc repro`."]
