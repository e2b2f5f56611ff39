"""Lists the trainings in params.yaml and removes results of others: params.yaml -> data/trainings.json.

python -m stages tidy

`report` and `summary` depend on whole folders of results. Results of runs and seeds that params.yaml no longer lists
would make these folders differ between clones. They stay in DVC's cache. Their entries in dvc.lock are removed, too.
"""

import shutil
from pathlib import Path

from ruamel.yaml import YAML

from gat.config import Params
from gat.files import atomic_write, write_json
from stages import ANALYSES, ARMS, RESULTS, SHOWCASE, TRAININGS

LOCKS = (Path("dvc.lock"), Path("claims/dvc.lock"))


def main(params: Params) -> None:
    """Run the stage."""
    study, arms, analyses = (
        [(run, seed) for run in runs for seed in params.seeds]
        for runs in (params.runs, params.arms, params.analyze.runs)
    )
    rates = [(training.run, training.seed) for training in params.rate_trainings]
    remove_others(RESULTS, [f"{run}/seed-{seed}" for run, seed in study])
    remove_others(ARMS, [f"{run}/seed-{seed}" for run, seed in arms + rates])
    remove_others(ANALYSES, [f"{run}/seed-{seed}.json" for run, seed in analyses])
    remove_others(RESULTS, [f"{name}/samples" for name in params.samples], "*/samples")
    remove_others(SHOWCASE, params.runs, "*")
    known = {*params.runs, *params.samples, *(f"{run}-{seed}" for run, seed in study + arms + rates + analyses)}
    for path in LOCKS:
        remove_others_from_lock(path, known)
    named = {"study": study, "arms": arms, "rates": rates, "analyses": analyses, "samples": [*params.samples]}
    write_json(TRAININGS, named)


def remove_others(folder: Path, known: list[str], pattern: str = "*/seed-*") -> None:
    """Remove all matches of a pattern in a folder except for known names, and parent folders that are then empty."""
    for path in sorted(folder.glob(pattern)):
        if path.relative_to(folder).as_posix() not in known:
            print(f"removing {path}, which params.yaml no longer lists; it stays in DVC's cache")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if path.parent != folder and not any(path.parent.iterdir()):
                path.parent.rmdir()


def remove_others_from_lock(path: Path, known: set[str]) -> None:
    """Remove entries `STAGE@NAME` with an unknown NAME from a lock file, which DVC reads again before it writes it."""
    yaml = YAML()
    content = yaml.load(path) if path.exists() else {"stages": {}}
    dead = [stage for stage in content["stages"] if "@" in stage and stage.split("@")[1] not in known]
    for stage in dead:
        del content["stages"][stage]
    if dead:
        with atomic_write(path) as temporary:
            yaml.dump(content, temporary)
