"""What the ablations and analyses say: ablations/results/, analyses/, results/ -> ablations/summary.json and reports/.

python -m stages summary          (of ablations/dvc.yaml)

The files are in git and are no outs of DVC's, so that the report can depend on them and `dvc repro` runs no ablation.
"""

import json

from gat.config import Params, Training
from gat.files import atomic_write, write_json
from gat.report.ablations import (
    Ablation,
    analyses_content,
    change_of,
    draw_ablations,
    markdown,
    page_rows,
    scaled_apart,
)
from stages import ANALYSES, REPORTS, SUMMARY, ablations_key, results_of


def main(params: Params) -> None:
    """Run the stage."""

    def fids(run: str | None) -> list[float]:
        trainings = [Training(run, seed) for seed in params.seeds] if run else []
        return [results_of(params, training).read("metrics")["fid"] for training in trainings]

    ablations = []
    for name in params.ablations:
        baseline = params.baseline(name)
        ablations.append(Ablation(name, change_of(params.study[name]), fids(name), baseline, fids(baseline)))
    measured = []
    for run in params.analyze.runs:
        guided = params.recipe(run).loss.levels.schedule in ("exponential", "linear")
        about = {"baseline": params.baseline(run) if run in params.ablations else None, "guided": guided}
        paths = [ANALYSES / f"{run}/seed-{seed}.json" for seed in params.seeds]
        measured += [about | json.loads(path.read_text()) for path in paths]
    analyses = analyses_content(measured) if measured else []
    sentences = scaled_apart(ablations, params.study)
    write_json(
        SUMMARY,
        {
            "key": ablations_key(params),
            "ablations": page_rows(ablations),
            "sentences": sentences,
            "analyses": analyses,
        },
    )
    with atomic_write(REPORTS / "ablations.md") as path:
        path.write_text(markdown(ablations, sentences, analyses), encoding="utf-8")
    with atomic_write(REPORTS / "ablations.png") as path:
        draw_ablations(ablations, analyses, params.report.highlight).savefig(path, metadata={"Software": None})
