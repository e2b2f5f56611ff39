"""Which trainings there are: params.yaml -> data/trainings.json; results of others are removed.

python -m stages tidy

`report` and `summary` depend on whole folders of results. What is left there of runs and seeds that params.yaml no
longer names would make them differ between clones. DVC's cache keeps it.
"""

import shutil
from pathlib import Path

from gat.config import Params
from gat.files import write_json
from stages import ABLATIONS, ANALYSES, RESULTS, SHOWCASE, TRAININGS


def main(params: Params) -> None:
    """Run the stage."""
    study = {f"{run}/seed-{seed}" for run in params.runs for seed in params.seeds}
    ablations = {training.folder for training in params.ablation_trainings}
    analyses = {f"{run}/seed-{seed}" for run in params.analyze.runs for seed in params.seeds}
    remove_others(RESULTS, study, "*/seed-*")
    remove_others(ABLATIONS, ablations, "*/seed-*")
    remove_others(ANALYSES, {f"{name}.json" for name in analyses}, "*/seed-*.json")
    remove_others(SHOWCASE, {*params.runs}, "*")
    write_json(TRAININGS, {"study": sorted(study), "ablations": sorted(ablations), "analyses": sorted(analyses)})


def remove_others(folder: Path, known: set[str], pattern: str) -> None:
    """Remove what the pattern finds in a folder but for the known names, and folders that are then empty."""
    for path in sorted(folder.glob(pattern)):
        if path.relative_to(folder).as_posix() not in known:
            print(f"removed {path}, which params.yaml no longer names; DVC's cache keeps it")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if path.parent != folder and not any(path.parent.iterdir()):
                path.parent.rmdir()
