"""A trained model as a folder to give away: runs/…/pipeline, results/… -> exports/…. Not in the graph.

python -m stages export RUN SEED [--push-to-hub USER/NAME]          (`model` needs no seed)

The pipeline with the code that it needs, a model card, samples and metrics; uploaded where asked.
"""

import argparse
import shutil
import subprocess

from gat.card import model_card, read_results
from gat.config import MODEL, Params, ParamsError
from gat.files import atomic_write
from stages import EXPORTS, RESULTS, RUNS, parse_training


def main(params: Params) -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(prog="python -m stages export")
    parser.add_argument("run", help=f"of the study, or {MODEL}")
    parser.add_argument("seed", nargs="?", help="of the training")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="upload to this repository of the hub")
    repository = parser.parse_args().push_to_hub
    training = parse_training(params)
    pipeline, results, out = RUNS / training.folder / "pipeline", RESULTS / training.folder, EXPORTS / training.folder
    for needed in (pipeline, results / "metrics.json"):
        if not needed.exists():
            raise ParamsError(f"run: {needed} is missing; first: dvc repro {training.stage('evaluate')}")
    with atomic_write(out) as folder:
        shutil.copytree(pipeline, folder)
        for name in ("samples.png", "metrics.json"):
            shutil.copy(results / name, folder)
        card = model_card(
            read_results(results),
            params.settings(training.run),
            params.data.source,
            params.data.resolution,
            commit(),
            f"dvc repro {training.stage('evaluate')}",
        )
        (folder / "README.md").write_text(card)
    print(f"{out}: the pipeline, its code and its model card")
    if repository is not None:
        from huggingface_hub import HfApi

        hub = HfApi()
        url = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=out, commit_message=f"GAT {training.folder}")
        print(url)


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
