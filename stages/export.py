"""A trained model as a folder to publish: runs/…/generator, data/, results/… -> exports/…. Not in the graph.

python -m stages export RUN SEED [--push-to-hub USER/NAME [--public]]          (`model` needs no seed)

The folder has the pipeline with its code, a model card, samples and metrics; `--push-to-hub` uploads it.
"""

import argparse
import json
import shutil
import subprocess

from huggingface_hub import HfApi

from gat.config import MODEL, Params, ParamsError, Training
from gat.files import atomic_write
from gat.release.card import model_card
from stages import EXPORTS, address, commit, parse_training, results_of
from stages.package import package


def main(params: Params) -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(prog="python -m stages export")
    parser.add_argument("run", help=f"a run of the study or an arm of a claim, or {MODEL}")
    parser.add_argument("seed", nargs="?", default="", help="the training's seed")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload the folder to this hub repository")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    arguments = parser.parse_args()
    training = parse_training(params, arguments.run, arguments.seed)
    check(params, training)
    results, out = results_of(params, training), EXPORTS / training.folder
    with atomic_write(out) as folder:
        package(params, training, folder)
        for name in ("samples.png", "metrics.json"):
            shutil.copy(results.folder / name, folder)
        card = model_card(
            results.read(),
            params.recipe(training.run),
            params.data.source,
            params.data.resolution,
            commit(),
            f"dvc repro {address(params, training, 'evaluate')}",
            params.metrics.reference,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    print(f"{out}: the pipeline, its code and its model card")
    if arguments.push_to_hub is not None:
        hub, name = HfApi(), arguments.push_to_hub
        url = hub.create_repo(name, exist_ok=True, private=not arguments.public)
        stale = ["*.py", "generator/*.py"]
        hub.upload_folder(repo_id=name, folder_path=out, commit_message=f"GAT {training.folder}", delete_patterns=stale)
        print(url)


def check(params: Params, training: Training) -> None:
    """Check that the training is of the study and was run here, with the current code and params.

    Raises:
        ParamsError: it was not; its model card would be wrong.
    """
    known = [other for other in (*params.trainings, *params.arm_trainings) if other.run == training.run]
    if training not in known:
        raise ParamsError(f"seed: {training.seed} is not allowed; allowed: {', '.join(str(t.seed) for t in known)}")
    if params.recipe(training.run).run.pretrained is not None:
        raise ParamsError(
            f"run: {training.run} is not allowed, since it is pretrained; allowed: runs that are trained here"
        )
    stages = [address(params, training, stage) for stage in ("train", "evaluate")]
    subprocess.run(["dvc", "repro", "--quiet", "--single-item", "code"], check=True)
    command = ["dvc", "status", "--json", *stages]
    changed = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    if changed:
        raise ParamsError(f"run: {', '.join(changed)} out of date; first run: dvc repro {stages[-1]}")
