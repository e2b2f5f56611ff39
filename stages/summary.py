"""What the claims come to: claims/results/, analyses/, results/ -> claims/summary.json and reports/.

python -m stages summary          (of claims/dvc.yaml)

The files are in git and are no outs of DVC's, so that the report can depend on them and `dvc repro` trains no arm.
"""

import json

import numpy as np
import pandas as pd

from gat.config import Params, Training
from gat.files import atomic_write, write_json
from gat.report.claims import Measured, summarize
from gat.report.figures import draw_analyses, draw_claims, save
from gat.report.tables import claims_page
from stages import ANALYSES, REPORTS, SUMMARY, claims_key, results_of


def main(params: Params) -> None:
    """Run the stage."""
    sides = [run for claim in params.claims.values() for run in (claim.arm, claim.baseline)]
    results = {run: [results_of(params, Training(run, seed)) for seed in params.seeds] for run in dict.fromkeys(sides)}
    analyses = {}
    for run in params.analyze.runs:
        paths = [ANALYSES / f"{run}/seed-{seed}.json" for seed in params.seeds]
        analyses[run] = [json.loads(path.read_text()) for path in paths]
    measured = Measured(
        {run: [one.read("metrics")["fid"] for one in own] for run, own in results.items()},
        {run: [one.curves()["fid"] for one in own] for run, own in results.items()},
        analyses,
    )
    content = summarize(params.claims, measured, rates_table(params))
    write_json(SUMMARY, {"key": claims_key(params)} | content)
    with atomic_write(REPORTS / "claims.md") as path:
        path.write_text(claims_page(content, ["Made by `make claims`."]), encoding="utf-8")
    save(draw_claims(content), REPORTS / "claims.png")
    save(draw_analyses(content), REPORTS / "analyses.png")


def rates_table(params: Params) -> pd.DataFrame:
    """The trainings of `rates`, for `gat.report.learning_rates`."""
    rows = []
    for training in params.rate_trainings:
        results, recipe = results_of(params, training), params.recipe(training.run)
        diverged = results.read("run")["diverged"]
        fid = np.nan if diverged else float(results.curves()["fid"][-1, 1])
        row = {"width": recipe.run.width, "rate": recipe.train.learning_rate, "seed": training.seed}
        rows.append(row | {"fid": fid, "diverged": diverged})
    return pd.DataFrame(rows)
