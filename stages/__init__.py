"""The stages of dvc.yaml, one module each, and the paths that pass between them.

python -m stages NAME [RUN SEED] runs one; python -m stages.repro runs all, side by side.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from gat.config import MODEL, Params, ParamsError, Training, load_params
from gat.study.results import Results

SOURCE = Path("data/source.json")
CODE = Path("data/code")  # a file for each stage
TRAININGS = Path("data/trainings.json")  # which trainings params.yaml names
IMAGES = Path("data/images")
EXTRACTOR = Path("data/extractor")
ENCODER = Path("data/encoder")
REFERENCE = Path("data/reference.npz")
STATISTICS = Path("data/statistics")  # of reals in other features than the reference's
FLOORS, REALS = Path("data/floors.json"), Path("data/reals.png")
WANTED_TEACHERS = Path("data/teachers.json")
TEACHERS = Path("data/teachers")  # a folder for each run, and RATES
VAE = Path("data/vae")
LATENTS = Path("data/latents")
RUNS = Path("runs")  # RUN/seed-N and model, each with generator, discriminator and pipeline
RESULTS = Path("results")  # RUN/seed-N and model, see gat.study.results
ARMS = Path("claims/results")  # the same of the arms of claims
ANALYSES = Path("analyses")  # RUN/seed-N.json
SUMMARY = Path("claims/summary.json")  # of claims and analyses; in git, not a DVC output
SHOWCASE = Path("showcase")  # RUN, of its first seed: pictures and a video
REPORTS = Path("reports")
EXPORTS = Path("exports")  # RUN/seed-N, with a model card
RATES = "rates.run"  # stands for all trainings of `rates`
RATES_CLAIM = "rates"  # the claim that they test
CLAIMS = "GAT_CLAIMS"  # environment variable: names of the claims to report; by default all
CHECKPOINTS = Path(os.environ.get("GAT_CHECKPOINTS", "checkpoints"))  # of unfinished stages; not a DVC output


def staging_dir(stage: str, *key: Any) -> Path:
    """Folder for the unfinished output of a stage with the inputs that `key` identifies, from which a rerun resumes."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=10)
    return CHECKPOINTS / f"{stage}-{digest.hexdigest()}"


def claims_key(params: Params) -> str:
    """Hash of all params that decide the results of arms, analyses and the runs that claims compare."""
    sides = [name for claim in params.claims.values() for name in (claim.arm, claim.baseline)]
    names = dict.fromkeys([*sides, *(name for name in params.analyze.runs if name in params.trained_runs)])
    recipes = [[section.model_dump() for section in params.recipe(name)] for name in [*names, *params.rates.names]]
    shared = params.model_dump(
        include={"data", "vae", "encoder", "metrics", "evaluate", "seeds", "claims", "rates", "analyze"}
    )
    content = [shared, params.model.width, recipes]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=10).hexdigest()


def runs_of(params: Params, claims: Iterable[str]) -> tuple[list[str], list[str]]:
    """The runs that some claims compare, and those whose analyses are reported with them."""
    own = [claim for name, claim in params.claims.items() if name in {*claims}]
    runs = [*dict.fromkeys(run for claim in own for run in (claim.baseline, claim.arm))]
    every = len(own) == len(params.claims)
    return runs, [run for run in params.analyze.runs if every or run in runs]


def locked_param(stage: str, key: str) -> Any:
    """The value of a params key in dvc.lock; None if the stage is not in it."""
    return _locked_stage(stage).get("params", {}).get("params.yaml", {}).get(key)


def locked_md5(stage: str, out: Path) -> str | None:
    """The MD5 of an out in dvc.lock; None if the stage is not in it."""
    return next((own["md5"] for own in _locked_stage(stage).get("outs", []) if own["path"] == str(out)), None)


def locked_values() -> set[str]:
    """All texts in dvc.lock, such as values of params from which results were made, here or on another machine."""
    return {*_strings(_lock())}


def _locked_stage(stage: str) -> dict[str, Any]:
    return (_lock() or {}).get("stages", {}).get(stage, {})


def _lock() -> dict[str, Any] | None:
    """dvc.lock; None if it is not YAML, such as with conflict markers, of which DVC says more."""
    path = Path("dvc.lock")
    try:
        content = yaml.load(path.read_bytes(), yaml.CSafeLoader) if path.exists() else {}
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None


def load_checked_params() -> Params:
    """params.yaml, in which every file that is named exists, or results were made from it on another machine.

    If dvc.lock cannot be read, files are not checked.

    Raises:
        ParamsError: see `gat.config.load_params` and `gat.config.Params.check_files`.
    """
    params = load_params()
    try:
        params.check_files()
    except ParamsError:
        if _lock() is not None:
            params.check_files(known=locked_values())
    return params


def _strings(value: Any) -> Iterator[str]:
    """All texts in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def is_arm(params: Params, run: str) -> bool:
    """Whether `claims/dvc.yaml` trains the run."""
    return run != MODEL and run not in params.runs


def teacher_folder(params: Params, run: str) -> Path:
    """The folder of a run's teacher, empty but for teacher.json if it has none."""
    return TEACHERS / (run if run == MODEL or run in params.study else RATES)


def results_of(params: Params, training: Training) -> Results:
    """The results of a training of either graph."""
    return Results((ARMS if is_arm(params, training.run) else RESULTS) / training.folder)


def results_of_samples(name: str) -> Results:
    """The results of another model's samples; they have no curves."""
    return Results(RESULTS / name / "samples")


def address(params: Params, training: Training, stage: str) -> str:
    """The name that `dvc repro` has for one of a training's stages."""
    stage += "-rates" if params.key(training.run) == RATES else ""
    return ("claims/dvc.yaml:" if is_arm(params, training.run) else "") + training.stage(stage)


def parse_training(params: Params, *arguments: str) -> Training:
    """The training that the command line or `arguments` name: a run of the study and a seed, or `model`.

    Raises:
        ParamsError: there is no such run, or no seed.
    """
    name, seed = (*(arguments or sys.argv[1:3]), "", "")[:2]
    params.run(name)
    if name != MODEL and not seed.isdecimal():
        raise ParamsError(f"seed: {seed!r} is not allowed; allowed: a number after the run's name, such as {name} 0")
    return Training(name, params.model.seed if name == MODEL else int(seed))


def commit() -> str:
    """The checked-out commit, and whether there are uncommitted changes."""
    try:
        name, changes = (
            subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}, with uncommitted changes" if changes else name
