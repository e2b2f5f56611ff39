"""The study's figures, tables and page: results/, showcase/, ablations/summary.json -> reports/.

python -m stages report

scaling.png, samples.png, scaling.csv, scaling.md, and index.html with all of it.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from gat.config import Params, Training
from gat.files import atomic_write
from gat.release.card import plain_name
from gat.report.figures import Curves, draw_samples, draw_scaling, markdown_page, study_of
from gat.report.page import lead_of, render_page, study_content
from stages import (
    EXTRACTOR,
    FLOORS,
    REALS,
    REPORTS,
    RESULTS,
    SHOWCASE,
    SUMMARY,
    ablations_key,
    address,
    commit,
    results_of,
)


def main(params: Params) -> None:
    """Run the stage."""
    remove_results_of_others(params)
    settings, floors = params.report, json.loads(FLOORS.read_text())
    table = pd.DataFrame([row_of(params, training) for training in params.trainings])
    table = table.sort_values(["gmacs", "run", "seed"])
    curves = {training: curves_of(training) for training in params.trainings}
    fids: Curves = {training: own["fid"] for training, own in curves.items() if "fid" in own}
    figure = draw_scaling(table, fids, settings.colors, settings.highlight, settings.bootstrap, floors)
    with atomic_write(REPORTS / "scaling.png") as path:
        figure.savefig(path, metadata={"Software": None})
    with atomic_write(REPORTS / "samples.png") as path:
        draw_samples(pictures_of(params, table)).savefig(path, metadata={"Software": None})
    with atomic_write(REPORTS / "scaling.csv") as path:
        table.drop(columns="overrides").to_csv(path, index=False, float_format="%.6g")
    with atomic_write(REPORTS / "scaling.md") as path:
        path.write_text(markdown_page(table, floors, notes_of(params), settings.bootstrap), encoding="utf-8")
    content, assets = page_of(params, table)
    content |= study_content(table, curves, settings.colors, settings.highlight, floors, settings.bootstrap)
    with atomic_write(REPORTS / "index.html") as path:
        path.write_text(render_page(content, assets), encoding="utf-8")


def remove_results_of_others(params: Params) -> None:
    """Remove the results of runs and seeds that params.yaml names no more; DVC's cache keeps them.

    The stage depends on all of `results/` and `showcase/`, and would be changed in every clone that never had them.
    """
    known = {RESULTS / training.folder for training in params.trainings}
    for folder in sorted(RESULTS.glob("*/seed-*")):
        if folder not in known and (folder / "run.json").exists():
            print(f"removed {folder}, of no run and seed in params.yaml; DVC's cache keeps it")
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
    for folder in sorted(SHOWCASE.glob("*")):
        if folder.name not in params.runs and (folder / "showcase.json").exists():
            shutil.rmtree(folder)


def row_of(params: Params, training: Training) -> dict[str, Any]:
    """All that is known of a training."""
    row = {"overrides": params.recipe(training.run).run.changes_recipe} | results_of(params, training).read()
    row["warnings"] = "; ".join(row["warnings"])
    return row


def curves_of(training: Training) -> dict[str, pd.DataFrame]:
    """What was logged in training, by metric; of a pretrained run nothing."""
    paths = (RESULTS / training.folder / "live/plots/metrics").glob("*.tsv")
    return {path.stem: pd.read_csv(path, sep="\t") for path in sorted(paths)}


def pictures_of(params: Params, table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Real images and samples of the smallest and the largest model of the study, by title."""
    paths, runs = {"real": REALS}, study_of(table).run.unique()
    for run in dict.fromkeys([*runs[:1], *runs[-1:]]):
        training = Training(run, params.seeds[0])
        paths[f"{run}, seed {training.seed}"] = RESULTS / training.folder / "samples.png"
    return {title: np.asarray(Image.open(path)) for title, path in paths.items()}


def page_of(params: Params, table: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Path]]:
    """What the page shows beside the study's figures, and the files that it embeds."""
    order = [run for run in dict.fromkeys(table.run) if run in params.runs]
    showcases = {run: json.loads((SHOWCASE / run / "showcase.json").read_text()) for run in order}
    assets: dict[str, Path] = {
        f"{run}/{path.name}": path
        for run in order
        for path in sorted((SHOWCASE / run).iterdir())
        if path.suffix in (".webp", ".mp4")
    }
    summary = json.loads(SUMMARY.read_text()) if SUMMARY.exists() else {}
    if summary.get("key") != ablations_key(params) or not of_the_same_runs(summary, table):
        summary = {}  # of other params, or of other results of the runs that the ablations change
    content: dict[str, Any] = {
        "title": f"How GANs of transformers scale on {plain_name(params.data.source)}",
        "lead": lead_of(table, params.data.resolution),
        "notes": notes_of(params)[:1],
        "commit": commit(),
        "params": as_yaml(params.model_dump(exclude={"compute"})),
        "trainings": [{**training._asdict(), "text": settings_text(params, training)} for training in params.trainings],
        "ablations": summary.get("ablations"),
        "sentences": summary.get("sentences", []),
        "analyses": summary.get("analyses"),
        "showcases": showcases or None,
        "live": None,
    }
    if showcases:
        first = next(iter(showcases.values()))
        content["showcase_seed"] = first["seed"]
        content["exact"] = all(shown["exact"] for shown in showcases.values())
        content["class_options"] = list(enumerate(first["names"]))
        content["inside_runs"] = [(run, run) for run in order]
        able = [run for run in order if showcases[run]["live"]]
        best = table[table.run.isin(able) & (table.seed == params.seeds[0])].sort_values("fid").run
        if len(best):
            run = str(best.iloc[0])
            assets["generator.onnx"] = SHOWCASE / run / "generator.onnx"
            content["live"] = {
                "run": run,
                "side": showcases[run]["side"],
                "names": showcases[run]["all_names"],
                "noise": showcases[run]["noise"],
            }
        for shown in showcases.values():
            shown.pop("noise", None)
    return content, assets


def of_the_same_runs(summary: dict[str, Any], table: pd.DataFrame) -> bool:
    """Whether a summary of the ablations compares them with the FIDs that the table has."""
    return all(
        np.allclose(sorted(own["baseline_fids"]), sorted(table.fid[table.run == own["baseline"]]))
        for own in summary["ablations"]
        if own["baseline"] is not None
    )


def as_yaml(settings: dict[str, Any]) -> str:
    """Settings as params.yaml has them, but for this machine's folders."""
    return yaml.safe_dump(without_folders(settings), sort_keys=False, allow_unicode=True)


def without_folders(value: Any) -> Any:
    """Settings without the folders in which this machine has things."""
    if isinstance(value, dict):
        return {key: without_folders(own) for key, own in value.items()}
    return plain_name(value) if isinstance(value, str) and value.startswith((".", "/", "~")) else value


def settings_text(params: Params, training: Training) -> str:
    """How to make a training again, and with what."""
    sections = {name: value.model_dump() for name, value in params.recipe(training.run)._asdict().items()}
    return f"dvc repro {address(params, training, 'evaluate')}\n\n{as_yaml(sections)}"


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
