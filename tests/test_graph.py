"""The graph itself, in a copy of the project, on a profile small enough for minutes: what a user types."""

import io
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from project import Project, ran

from gat.study import TRAINING_CODE

TRAIN, EVALUATE = "train@model", "evaluate@model"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The project after `dvc repro` on the smoke profile, committed."""
    project = Project.copy(tmp_path_factory.mktemp("clone") / "project", "smoke.yaml")
    output = project.type("dvc", "repro").stdout
    runs = ("model", "S-2", "B-2", "B-4")
    stages = ["images", "extractor", "reference", "vae", "latents", "report"]
    stages += [f"{stage}@{run}" for stage in ("train", "evaluate") for run in runs]
    assert sorted(ran(output)) == sorted(stages)
    project.commit()
    return project


def test_repro_makes_the_figure_and_the_tables(project):
    table = pd.read_csv(project.folder / "reports/scaling.csv")
    assert sorted(table.run) == ["B-2", "B-4", "S-2", "model"]
    assert {"width", "depth", "patch", "params", "gmacs", "fid", "kid", "precision", "recall"} <= {*table.columns}
    assert (table.fid > 0).all()
    assert (project.folder / "reports/scaling.png").stat().st_size > 20_000
    assert "| B-4" in (project.folder / "reports/scaling.md").read_text()
    kept = project.type("git", "ls-files", "reports").stdout.split()
    assert kept == ["reports/scaling.csv", "reports/scaling.md", "reports/scaling.png"]


def test_repro_again_runs_nothing_within_five_seconds(project):
    begin = time.monotonic()
    output = project.type("dvc", "repro").stdout
    assert ran(output) == []
    assert "up to date" in output
    assert time.monotonic() - begin < 5


def test_a_change_reruns_what_depends_on_it_alone(project):
    """A plot's colour the report; the learning rate all trainings and no latents; the model its own two stages."""
    params = (project.folder / "params.yaml").read_text()
    trainings = [f"train@{run}" for run in ("B-2", "B-4", "S-2", "model")]
    for key, value, stages in (
        ("report.highlight", "#00ff00", ["report"]),
        ("train.learning_rate", 1e-3, trainings),
        ("model.width", 20, [TRAIN]),
        ("study.S-2.width", 4, ["train@S-2"]),
        ("evaluate.samples", 300, ["evaluate@B-2", "evaluate@B-4", "evaluate@S-2", EVALUATE]),
        ("compute.compile", "blocks", []),
    ):
        project.set(key, value)
        assert project.would_run() == sorted(stages), key
        (project.folder / "params.yaml").write_text(params)
    assert project.would_run() == []


def test_training_depends_on_the_code_that_defines_it(project):
    graph = yaml.safe_load((project.folder / "dvc.yaml").read_text())
    deps = {dep for dep in graph["stages"]["train"]["do"]["deps"] if dep.startswith("gat/")}
    assert deps == {f"gat/{module}.py" for module in TRAINING_CODE}


def test_wrong_value_stops_repro_within_five_seconds(project, tmp_path):
    fresh = Project(tmp_path / "fresh")
    shutil.copytree(
        project.folder, fresh.folder, ignore=shutil.ignore_patterns("data", "runs", "results", ".git", "dvc.lock")
    )
    shutil.rmtree(fresh.folder / ".dvc/cache", ignore_errors=True)
    shutil.rmtree(fresh.folder / ".dvc/tmp", ignore_errors=True)
    fresh.type("git", "init", "--quiet")
    fresh.set("model.width", 50)
    before = sorted(path.name for path in fresh.folder.iterdir())
    begin = time.monotonic()
    done = fresh.type("dvc", "repro", check=False)
    assert time.monotonic() - begin < 5
    assert done.returncode != 0
    assert "params.yaml: model.width: 50 is not allowed; allowed: multiples of 4" in done.stderr
    assert sorted(path.name for path in fresh.folder.iterdir()) == before


def test_reference_of_other_features_is_refused_in_one_line(project, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    before = (project.folder / "data/reference.npz").read_bytes()
    project.set("metrics.reference", str(tmp_path / "adm.npz"))
    done = project.type("python", "-m", "stages.reference", check=False)
    project.type("git", "checkout", "--quiet", "params.yaml")
    assert done.returncode == 1
    assert "adm.npz is about 2048 features, metrics.extractor classifier has 64" in done.stderr.splitlines()[-1]
    assert (project.folder / "data/reference.npz").read_bytes() == before


def stop_training(project, step: int, by: signal.Signals) -> str:
    """Train B-2 until it has saved a step, and end DVC and the training with a signal: what they had to say."""
    with subprocess.Popen(
        ["dvc", "repro", "--single-item", "--force", "train@B-2"],
        cwd=project.folder,
        env=project.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background would ignore it
    ) as process:
        while not list(project.folder.glob(f"checkpoints/*/step-{step:08}.safetensors")):
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, by)
        return process.communicate()[1]


def test_killed_training_resumes_to_the_same_bytes(project):
    """Ctrl-C, kill -9 half-way, then `dvc repro`: the generator's file is that of a run nobody disturbed."""
    weights = project.folder / "runs/B-2/pipeline/generator/diffusion_pytorch_model.safetensors"
    undisturbed = weights.read_bytes()
    assert not list(project.folder.glob("checkpoints/*/*"))
    shutil.rmtree(project.folder / "runs/B-2")
    said = stop_training(project, 3, signal.SIGINT)
    assert "interrupted; run it again and it goes on from what it saved" in said
    assert "Traceback" not in said
    stop_training(project, 6, signal.SIGKILL)
    assert not weights.exists()
    project.type("dvc", "repro", "--single-item", "--force", "train@B-2")
    assert weights.read_bytes() == undisturbed
    assert not list(project.folder.glob("checkpoints/*/*"))
    assert project.type("dvc", "repro").returncode == 0


def test_experiment_retrains_the_model_under_test_alone(project):
    done = project.type("dvc", "exp", "run", "--name", "wider", "--set-param", "model.width=16")
    assert ran(done.stdout) == [TRAIN, EVALUATE, "report"]
    table = pd.read_csv(project.folder / "reports/scaling.csv").set_index("run")
    assert table.width["model"] == 16
    rows = pd.read_csv(io.StringIO(project.type("dvc", "exp", "show", "--csv").stdout))
    fid = rows.assign(name=rows.Experiment.fillna(rows.rev)).set_index("name").fid
    assert fid["wider"] == pytest.approx(table.fid["model"], rel=1e-4)
    assert fid["main"] != fid["wider"]
    narrow = project.type(
        "script", "--quiet", "--command", "stty cols 120; dvc exp show --only-changed --no-pager", "/dev/null"
    ).stdout
    assert "wider" in narrow
    assert max(map(len, strip_colors(narrow).splitlines())) <= 120
    changes = project.type("dvc", "metrics", "diff", "HEAD").stdout
    assert "fid" in changes
    assert "gmacs" in changes
    plots = project.type("dvc", "plots", "show").stdout
    page = Path(plots.strip().removeprefix("file://")).read_text()
    assert "FID of the model under test" in page
    assert "scaling.png" in page
    project.type("git", "checkout", "--quiet", ".")
    project.type("dvc", "checkout")


def test_queued_experiments_finish(project):
    project.type("dvc", "exp", "run", "--queue", "--name", "a", "--set-param", "model.width=8")
    project.type("dvc", "exp", "run", "--queue", "--name", "b", "--set-param", "model.width=24")
    project.type("dvc", "queue", "start")
    for _ in range(300):
        status = project.type("dvc", "queue", "status").stdout
        if status.count("Success") + status.count("Failed") == 2:
            break
        time.sleep(1)
    assert status.count("Success") == 2, status


def strip_colors(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
