"""What the claims come to: claims/results/, analyses/, results/ -> claims/summary.json and reports/.

python -m stages summary          (of claims/dvc.yaml)

With names in the environment variable `GAT_CLAIMS`, as `make claims CLAIMS=…` sets it, it is of these claims alone. The
files are in git and are no outs of DVC's, so that the report can depend on them and `dvc repro` trains no arm.
"""

import json
import os

import numpy as np
import pandas as pd

from gat.config import Params, Training
from gat.files import atomic_write, write_json
from gat.report.claims import Measured, has_diverged, runs_content, summarize
from gat.report.figures import draw_analyses, draw_claims, save
from gat.report.tables import claims_page
from stages import ANALYSES, CLAIMS, RATES_CLAIM, REPORTS, SUMMARY, claims_key, results_of, runs_of


def main(params: Params) -> None:
    """Run the stage."""
    known = [*params.claims, RATES_CLAIM]
    chosen = os.environ.get(CLAIMS, "").split() or known
    runs, analyzed = runs_of(params, chosen)
    files = {run: [results_of(params, Training(run, seed)) for seed in params.seeds] for run in runs}
    results = {run: [one.read() for one in own] for run, own in files.items()}
    analyses = {}
    for run in analyzed:
        read = [json.loads((ANALYSES / f"{run}/seed-{seed}.json").read_text()) for seed in params.seeds]
        if trained := [one for one in read if not has_diverged(one)]:
            analyses[run] = trained
    measured = Measured(
        {run: [np.inf if has_diverged(one) else one["fid"] for one in own] for run, own in results.items()},
        {
            run: [file.curves()["fid"] for file, one in zip(files[run], own, strict=True) if not has_diverged(one)]
            for run, own in results.items()
        },
        analyses,
    )
    claims = {name: claim for name, claim in params.claims.items() if name in chosen}
    rates = rates_table(params) if RATES_CLAIM in chosen else None
    content = summarize(claims, measured, rates, len(params.claims))
    if runs:
        content["analyses"].insert(0, runs_content({run: params.recipe(run) for run in runs}, results))
    write_json(SUMMARY, {"key": claims_key(params)} | content)
    with atomic_write(REPORTS / "claims.md") as path:
        command = "make claims" + ("" if [*chosen] == known else f' CLAIMS="{" ".join(chosen)}"')
        path.write_text(claims_page(content, [f"Made by `{command}`."]), encoding="utf-8")
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
