"""The stages of dvc.yaml, one module each, and the files that pass between them.

python -m stages NAME [RUN SEED] runs one; python -m stages.repro runs all, side by side.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from gat.config import MODEL, Params, ParamsError, Training
from gat.files import atomic_write

SOURCE = Path("data/source.json")
IMAGES = Path("data/images")
EXTRACTOR = Path("data/extractor")
REFERENCE = Path("data/reference.npz")
FLOORS, REALS = Path("data/floors.json"), Path("data/reals.png")
VAE = Path("data/vae")
LATENTS = Path("data/latents")
RUNS = Path("runs")  # RUN/seed-N and model, each with pipeline and discriminator
RESULTS = Path("results")  # of each training: live, run.json, metrics.json, evaluation.json, samples.png
ABLATIONS = Path("ablations/results")  # of each training of the ablations, as in RESULTS
ANALYSES = Path("analyses")  # RUN/seed-N.json
SUMMARY = Path("ablations/summary.json")  # of the ablations and analyses; committed, and no out of DVC's
SHOWCASE = Path("showcase")  # RUN, of its first seed: pictures and a video
REPORTS = Path("reports")
EXPORTS = Path("exports")  # RUN/seed-N, to give away
CHECKPOINTS = Path(os.environ.get("GAT_CHECKPOINTS", "checkpoints"))  # of unfinished stages; not an out of DVC's


def staging_dir(stage: str, *key: Any) -> Path:
    """Folder for the unfinished out of a stage, of the inputs that `key` identifies; after a kill it is resumed."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=10)
    return CHECKPOINTS / f"{stage}-{digest.hexdigest()}"


def code_of(stage: str) -> list[Path]:
    """The files of code that a stage depends on, as dvc.yaml names them."""
    deps = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    paths = [Path(dep) for dep in deps if dep.startswith(("gat/", "stages/"))]
    return [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]


def ablations_key(params: Params) -> str:
    """Identifies all params that decide the results of ablations and analyses, and of the runs that they are about."""
    names = [name for ablation in params.ablations for name in (ablation, params.baseline(ablation)) if name]
    names += [name for name in params.analyze.runs if name in params.trained]
    settings = [[section.model_dump() for section in params.settings(name)] for name in names]
    shared = params.model_dump(include={"data", "vae", "metrics", "evaluate", "seeds", "analyze", "ablations"})
    content = [shared, params.model.width, settings]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=10).hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, complete or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def results_of(params: Params, training: Training) -> Path:
    """The folder of a training's results."""
    return (ABLATIONS if training.run in params.ablations else RESULTS) / training.folder


def address(params: Params, training: Training, stage: str) -> str:
    """What `dvc repro` calls one of a training's stages."""
    return ("ablations/dvc.yaml:" if training.run in params.ablations else "") + training.stage(stage)


def read_results(folder: Path) -> dict[str, Any]:
    """All that is known of a training: its `run.json`, `metrics.json` and `evaluation.json` together."""
    parts = (folder / f"{part}.json" for part in ("run", "metrics", "evaluation"))
    return {key: value for path in parts for key, value in json.loads(path.read_text()).items()}


def parse_training(params: Params, *arguments: str) -> Training:
    """The training that the command line, or its arguments, name: a run of the study and a seed, or `model`.

    Raises:
        ParamsError: there is no such run, or no seed.
    """
    name, seed = (*(arguments or sys.argv[1:3]), "", "")[:2]
    params.settings(name)
    if name != MODEL and not seed.isdecimal():
        raise ParamsError(f"seed: {seed!r} is not allowed; allowed: a number after the run's name, such as {name} 0")
    return Training(name, params.model.seed if name == MODEL else int(seed))


def commit() -> str:
    """The checked-out commit, and whether files differ from it."""
    try:
        name, changes = (
            subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}, with uncommitted changes" if changes else name
