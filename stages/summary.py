"""What the ablations and analyses show: ablations/results/, analyses/, results/ -> ablations/summary.json and reports/.

python -m stages summary          (of ablations/dvc.yaml)

The files are in git and are no outs of DVC's, so that the report can depend on them and `dvc repro` runs no ablation.
"""

import json

from gat.config import Params, Training
from gat.files import atomic_write, write_json
from gat.report.ablations import Ablation, summarize
from gat.report.figures import draw_ablations, save
from gat.report.tables import ablations_page
from stages import ANALYSES, REPORTS, SUMMARY, ablations_key, results_of


def main(params: Params) -> None:
    """Run the stage."""

    def fids(run: str | None) -> list[float]:
        trainings = [Training(run, seed) for seed in params.seeds] if run else []
        return [results_of(params, training).read("metrics")["fid"] for training in trainings]

    ablations = []
    for name in params.ablations:
        baseline = params.baseline(name)
        ablations.append(Ablation(name, params.run(name), fids(name), baseline, fids(baseline)))
    analyses = []
    for run in params.analyze.runs:
        paths = [ANALYSES / f"{run}/seed-{seed}.json" for seed in params.seeds]
        analyses += [json.loads(path.read_text()) for path in paths]
    content = summarize(ablations, analyses)
    write_json(SUMMARY, {"key": ablations_key(params)} | content)
    with atomic_write(REPORTS / "ablations.md") as path:
        path.write_text(ablations_page(content, ["Made by `make ablations`."]), encoding="utf-8")
    save(draw_ablations(content, params.report.highlight), REPORTS / "ablations.png")
