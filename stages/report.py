"""The study's figures and tables: results/ -> reports/scaling.png, scaling.csv, scaling.md.

python -m stages.report
"""

import json

from gat.config import Params
from stages import EXTRACTOR, REPORTS, RESULTS, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    import pandas as pd

    from gat.report import draw_scaling, fit_power_law, markdown_table, study_of

    rows, curves = [], {}
    for run in params.runs:
        folder = RESULTS / run
        row: dict = {"overrides": params.settings(run).run.overrides}
        for part in ("run", "metrics", "evaluation"):
            row |= json.loads((folder / f"{part}.json").read_text())
        rows.append(row)
        curve = folder / "live/plots/metrics/fid.tsv"  # a pretrained run has none
        if curve.exists():
            curves[run] = pd.read_csv(curve, sep="\t")
    table = pd.DataFrame(rows).sort_values("gmacs")
    study = study_of(table)
    settings = params.report
    law = fit_power_law(study.gmacs, study.fid, settings.bootstrap) if len(study) >= 3 else None
    REPORTS.mkdir(exist_ok=True)
    figure = draw_scaling(table, curves, settings.colors, settings.highlight, settings.bootstrap)
    figure.savefig(REPORTS / "scaling.png", metadata={"Software": None})
    table.drop(columns="overrides").to_csv(REPORTS / "scaling.csv", index=False, float_format="%.6g")
    extractor = json.loads((EXTRACTOR / "extractor.json").read_text())
    features = f"Features: {extractor['name']}, clean-fid's mode {extractor['mode']}"
    if "accuracy" in extractor:
        features += f", held-out accuracy {extractor['accuracy']:.3f}"
    notes = [f"{features}; {params.evaluate.samples:,} samples a run.", "Made by `dvc repro`."]
    (REPORTS / "scaling.md").write_text(markdown_table(table, law, notes))


if __name__ == "__main__":
    run_stage(main)
