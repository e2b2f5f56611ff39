"""The study's figures and tables: results/ -> reports/scaling.png, samples.png, scaling.csv, scaling.md.

python -m stages.report
"""

import json

from gat.config import Params, Training
from stages import EXTRACTOR, FLOORS, REALS, REPORTS, RESULTS, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    from gat.report import draw_samples, draw_scaling, markdown_page, study_of

    rows, curves = [], {}
    for training in params.trainings:
        folder = RESULTS / training.folder
        row: dict = {"overrides": params.settings(training.run).run.overrides}
        for part in ("run", "metrics", "evaluation"):
            row |= json.loads((folder / f"{part}.json").read_text())
        rows.append(row)
        curve = folder / "live/plots/metrics/fid.tsv"  # a pretrained run has none
        if curve.exists():
            curves[training] = pd.read_csv(curve, sep="\t")
    table = pd.DataFrame(rows).sort_values(["gmacs", "run", "seed"])
    settings, floors = params.report, json.loads(FLOORS.read_text())
    REPORTS.mkdir(exist_ok=True)
    figure = draw_scaling(table, curves, settings.colors, settings.highlight, settings.bootstrap, floors)
    figure.savefig(REPORTS / "scaling.png", metadata={"Software": None})

    pictures, ranked = {"real": REALS}, study_of(table).run.unique()
    for run in dict.fromkeys([*ranked[:1], *ranked[-1:]]):  # the smallest and the largest
        training = Training(run, params.seeds[0])
        pictures[f"{run}, seed {training.seed}"] = RESULTS / training.folder / "samples.png"
    grids = draw_samples({title: np.asarray(Image.open(path)) for title, path in pictures.items()})
    grids.savefig(REPORTS / "samples.png", metadata={"Software": None})

    table.drop(columns="overrides").to_csv(REPORTS / "scaling.csv", index=False, float_format="%.6g")
    extractor = json.loads((EXTRACTOR / "extractor.json").read_text())
    features = f"Features: {extractor['name']}, clean-fid's mode {extractor['mode']}"
    if "accuracy" in extractor:
        features += (
            f", held-out accuracy {extractor['accuracy']:.3f}, of mean 0 and variance 1 over the reals (as they "
            f"came out of training, FID is {extractor['scale'] ** 2:.3g} times as large)"
        )
    notes = [f"{features}; {params.evaluate.samples:,} samples a training.", "Made by `dvc repro`."]
    (REPORTS / "scaling.md").write_text(markdown_page(table, floors, notes, settings.bootstrap))


if __name__ == "__main__":
    run_stage(main)
