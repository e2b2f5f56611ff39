"""The graph itself, in a copy of the project, on a profile small enough for minutes: what a user types."""

import io
import json
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
import torch
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard
from PIL import Image
from project import ALWAYS, SHARED, Project, ran, wait_for_end, without_commit

from gat.release.pipeline import GATPipeline
from gat.report.columns import METRICS

MODEL = ["train-model", "evaluate-model", "package-model"]
STAGES, RUNS = ("train", "evaluate", "package"), ("B-2", "B-4", "S-2")
STUDY, SHOWCASES = [f"{run}-0" for run in RUNS], [f"showcase@{run}" for run in RUNS]
OF_INCEPTION = {"sfid", "inception_score"}
KEPT = ("analyses.png", "claims.md", "claims.png", "samples.png", "scaling.csv", "scaling.md", "scaling.png")  # in git
WEIGHTS = "generator/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    return finished.duplicate(tmp_path_factory.mktemp("clone") / "project")


def stages_of(*names: str) -> list[str]:
    """Stages of all trainings of dvc.yaml."""
    return [*(f"{name}-model" for name in names), *(f"{name}@{training}" for name in names for training in STUDY)]


def test_repro_runs_every_stage_and_says_how_long_each_took(finished):
    output = (finished.folder / "output.txt").read_text()
    assert [line for line in output.splitlines() if re.match(r"(model|images|B-4-0): \d+ s$", line)]
    stages = [*ALWAYS, *SHARED, "samples@noise", *stages_of("train", "evaluate", "package"), *SHOWCASES]
    locked = yaml.safe_load((finished.folder / "dvc.lock").read_text())["stages"]
    assert sorted(locked) == sorted(stages)


def test_repro_makes_the_figure_and_the_tables_and_then_nothing(finished):
    table = pd.read_csv(finished.folder / "reports/scaling.csv")
    trainings = table[table.run != "noise"]
    assert sorted(zip(trainings.run, trainings.seed, strict=True)) == [(run, 0) for run in (*RUNS, "model")]
    columns = {"width", "depth", "patch", "params", "gmacs", "training_gmacs", "gap"}
    assert columns | {column.key for column in METRICS} - OF_INCEPTION <= {*table.columns}
    assert (table.fid > 0).all()
    assert table.fid.nunique() == 5
    assert (finished.folder / "reports/scaling.png").stat().st_size > 20_000
    assert "| B-4" in (finished.folder / "reports/scaling.md").read_text()
    kept = finished.type("git", "ls-files", "reports").stdout.split()
    assert kept == [f"reports/{name}" for name in KEPT]
    assert finished.would_run() == []


# A key, its new value, and the stages that then run. The report shows all keys but those of `compute`.
CHANGED = [
    ("report.highlight", "#00ff00", ["report"]),
    ("train.learning_rate", 1e-3, [*stages_of("train"), "report"]),
    ("model.width", 20, [*MODEL, "report"]),
    ("study.S-2.width", 4, [*(f"{stage}@S-2-0" for stage in STAGES), "report"]),
    ("metrics.labels", "uniform", ["reference", "report"]),
    ("evaluate.samples", 300, ["floors", *stages_of("evaluate"), "samples@noise", "report"]),
    ("seeds", [5, 0], ["tidy", *(f"{stage}@{run}-5" for stage in STAGES for run in RUNS), *SHOWCASES, "report"]),
    ("runs", ["S-2", "B-4"], ["tidy", "report"]),
    ("compute.micro_batch", 8, []),
]


@pytest.mark.parametrize(("key", "value", "stages"), CHANGED)
def test_a_key_reruns_what_depends_on_it_alone(key, value, stages, project):
    params = (project.folder / "params.yaml").read_text()
    project.set(key, value)
    changed = project.would_run()
    (project.folder / "params.yaml").write_text(params)
    assert changed == sorted(stages)


GRAPHS = {name: yaml.safe_load((ROOT / name).read_text())["stages"] for name in ("dvc.yaml", "claims/dvc.yaml")}


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_arms_are_trained_as_the_study_is(stage):
    study, arm = (
        {key: value for key, value in graph[stage].items() if key in ("cmd", "params", "deps", "outs")}
        for graph in GRAPHS.values()
    )
    assert study == yaml.safe_load(yaml.safe_dump(arm).replace("claims/results/", "results/"))


def test_claims_have_a_graph_of_their_own(project):
    """What they depend on they share; and no change of theirs makes `dvc repro` do anything."""
    assert project.would_run(graph="claims/dvc.yaml") == []
    params = (project.folder / "params.yaml").read_text()
    project.set("study.S-2-resized.loss", {"gamma": 0.2})
    changed = [f"claims/dvc.yaml:{stage}@S-2-resized-0" for stage in ("evaluate", "train")]
    assert project.would_run(graph="claims/dvc.yaml") == changed
    assert project.would_run() == ["report"]  # it shows params.yaml
    (project.folder / "params.yaml").write_text(params)
    done = project.type("dvc", "repro", "claims/dvc.yaml")
    assert ran(done.stdout) == ["claims/dvc.yaml:summary"]
    assert project.type("git", "status", "--porcelain", "--untracked-files=no", "reports", "claims").stdout == ""


def test_an_arm_that_diverges_is_reported(project):
    """Of S-2-taught nothing is known, and of its claim neither; S-2-resized is as it was."""
    project.set("study.S-2-taught.train", {"learning_rate": 1e30})
    done = project.type("dvc", "repro", "claims/dvc.yaml")
    stages = [f"claims/dvc.yaml:{stage}@S-2-taught-0" for stage in ("train", "evaluate", "analyze")]
    assert sorted(ran(done.stdout)) == sorted([*stages, "claims/dvc.yaml:summary"])
    assert json.loads((project.folder / "claims/results/S-2-taught/seed-0/metrics.json").read_text()) == {}
    page = " ".join((project.folder / "reports/claims.md").read_text().split())
    assert "CKNNA is unknown (1 of 1 diverged) for S-2-taught" in page
    assert "Not decided by one seed: FID is" in page
    project.type("dvc", "repro")  # its page, too
    project.type("git", "checkout", "--quiet", ".")


def test_wrong_value_stops_repro_in_a_fresh_clone(tmp_path):
    fresh = Project.copy(tmp_path / "fresh", "smoke.yaml")
    fresh.set("model.width", 50)
    before = sorted(path.name for path in fresh.folder.iterdir())
    done = fresh.type("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "model.width: 50 is not allowed" in done.stderr
    assert sorted(path.name for path in fresh.folder.iterdir()) == before


def test_reference_of_other_features_is_refused_in_one_line(project, tmp_path):
    np.savez(tmp_path / "adm.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    before = (project.folder / "data/reference.npz").read_bytes()
    project.set("metrics.reference", str(tmp_path / "adm.npz"))
    done = project.type("python", "-m", "stages", "reference", check=False)
    project.type("git", "checkout", "--quiet", "params.yaml")
    assert done.returncode == 1
    assert re.search(r"adm.npz .*2048 features.* metrics.extractor classifier has 64", done.stderr.splitlines()[-1])
    assert (project.folder / "data/reference.npz").read_bytes() == before


def stop_training(project, step: int, by: signal.Signals) -> str:
    """Train B-2 until it has saved a step, and end DVC and the training with a signal: what they had to say."""
    with subprocess.Popen(
        ["dvc", "repro", "--single-item", "--force", "train@B-2-0"],
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
    weights = project.folder / "runs/B-2/seed-0" / WEIGHTS
    undisturbed = weights.read_bytes()
    assert not list(project.folder.glob("checkpoints/*/*"))
    shutil.rmtree(project.folder / "runs/B-2/seed-0")
    assert "Traceback" not in stop_training(project, 3, signal.SIGHUP)  # its terminal is gone
    stop_training(project, 6, signal.SIGKILL)
    assert not weights.exists()
    project.type("dvc", "repro", "--single-item", "--force", "train@B-2-0")
    assert weights.read_bytes() == undisturbed
    assert not list(project.folder.glob("checkpoints/*/*"))


def stop_side_by_side(copy: Project, step: int, by: signal.Signals) -> None:
    """Start all trainings, end their parent with a signal once one has saved a step, and wait for all it started."""
    with subprocess.Popen(
        ["python", "-m", "stages.repro", "--jobs", "2"], cwd=copy.folder, env=copy.env, stdout=subprocess.DEVNULL
    ) as process:
        while not list(copy.folder.glob(f"checkpoints/*/step-{step:08}.safetensors")):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(by)
    wait_for_end(copy.folder)


@pytest.mark.thorough
def test_side_by_side_takes_all_it_started_along_and_goes_on(project, tmp_path):
    """Two trainings are stopped twice with what started them, and end in the bytes of an undisturbed run."""
    copy = project.duplicate(tmp_path / "copy")
    trainings = [copy.folder / "runs" / name / WEIGHTS for name in ("S-2/seed-0", "B-2/seed-0")]
    undisturbed = [weights.read_bytes() for weights in trainings]
    copy.replace(runs=["S-2", "B-2"], seeds=[0])
    shutil.rmtree(copy.folder / ".dvc/cache")
    for name in ("runs", "results"):
        shutil.rmtree(copy.folder / name)
    stop_side_by_side(copy, 3, signal.SIGTERM)
    stop_side_by_side(copy, 6, signal.SIGKILL)
    assert not all(weights.exists() for weights in trainings)
    copy.type("dvc", "repro", "--single-item", "train@S-2-0", "train@B-2-0")
    assert [weights.read_bytes() for weights in trainings] == undisturbed
    assert not list(copy.folder.glob("checkpoints/*/*"))


@pytest.mark.thorough
def test_failure_is_shown_and_ends_the_whole(project, tmp_path):
    copy = project.duplicate(tmp_path / "copy")
    copy.replace(runs=["S-2"], seeds=[0], train={"batch_size": 15}, compute={"micro_batch": 4})
    done = copy.type("python", "-m", "stages.repro", "--jobs", "1", check=False)
    assert done.returncode == 1
    assert len(re.findall(r"train\.batch_size: 15", done.stdout)) == 1  # no other training was started
    assert "failed" in done.stdout


def clone(project: Project, folder: Path, store: Path) -> Project:
    """A clone of what is committed, with the same remote."""
    project.type("git", "clone", "--quiet", str(project.folder), str(folder))
    second = Project(folder)
    second.type("dvc", "remote", "add", "--local", "--default", "store", str(store))
    return second


def test_a_second_clone_pulls_and_redraws_the_same_report(project, tmp_path):
    """Without training, whatever its user has set for figures; also once a run was removed, which it never had."""
    first = project.duplicate(tmp_path / "first")
    first.type("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    first.replace(runs=["S-2", "B-2"])
    assert sorted(ran(first.type("dvc", "repro").stdout)) == ["report", "teachers", "tidy"]
    assert not (first.folder / "results/B-4").exists()
    first.commit()
    first.type("dvc", "push")
    second = clone(first, tmp_path / "second", tmp_path / "store")
    second.type("dvc", "pull")
    assert second.would_run() == []
    before = reports(second)
    assert {*before} == {*KEPT, "index.html"}
    (tmp_path / "matplotlibrc").write_text("savefig.dpi: 30\nfont.size: 20\n")
    second.env |= {"MPLBACKEND": "module://of.a_notebook", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    assert ran(second.type("dvc", "repro", "--force", "--single-item", "report").stdout) == ["report"]
    assert reports(second) == before


def test_in_continuous_integration_nothing_runs_and_reports_stay(project, tmp_path):
    """By DVC's recipe for it, in a clone that has neither data nor results."""
    first = project.duplicate(tmp_path / "first")
    first.type("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    first.type("dvc", "push")
    second = clone(first, tmp_path / "second", tmp_path / "store")
    assert ran(second.type("dvc", "repro", "--pull", "--allow-missing").stdout) == []
    assert {path.name for path in (second.folder / "reports").glob("*.*")} >= {*KEPT}
    assert second.type("git", "status", "--porcelain", "reports").stdout == ""


@pytest.mark.thorough
def test_branches_that_each_trained_a_run_merge_without_training(project, tmp_path):
    """As docs/scale.md says."""
    merged = project.duplicate(tmp_path / "merged")
    size = {"width": 8, "depth": 4, "heads": 1, "patch": 4}
    for name in ("C-4", "D-4"):
        merged.type("git", "checkout", "--quiet", "-b", name, "main")
        merged.type("dvc", "checkout")
        merged.replace(study={name: size}, runs=[*RUNS, name])
        assert f"train@{name}-0" in ran(merged.type("dvc", "repro").stdout)
        merged.commit()
    merged.type("git", "merge", "C-4", check=False)
    merged.type("git", "checkout", "--ours", "dvc.lock", "reports", "params.yaml")
    merged.replace(study={"C-4": size}, runs=[*RUNS, "C-4", "D-4"])
    done = merged.type("dvc", "repro")
    assert "> python -m stages train" not in done.stdout
    table = pd.read_csv(merged.folder / "reports/scaling.csv")
    assert {"C-4", "D-4"} <= {*table.run}


def test_images_of_another_machine_are_not_asked_for(finished, tmp_path):
    """As in a clone whose dvc.lock names a folder that is not here."""
    second = finished.duplicate(tmp_path / "second")
    second.set("data.source", "/mnt/first/images")
    lock = second.folder / "dvc.lock"
    lock.write_text(lock.read_text().replace("data.source: mnist5k", "data.source: /mnt/first/images"))
    assert ran(second.type("dvc", "repro", "source").stdout) == []
    assert second.would_run() == ["report"]  # it shows params.yaml
    second.set("data.source", "/mnt/second/images")
    done = second.type("dvc", "repro", "source", check=False)
    assert done.returncode != 0
    assert "data.source: '/mnt/second/images' is not allowed; allowed: a file or folder that exists" in done.stderr


@pytest.mark.thorough
def test_a_clone_pulls_as_it_needs(project, tmp_path):
    first = project.duplicate(tmp_path / "first")
    first.type("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    first.type("dvc", "push")
    second = clone(first, tmp_path / "second", tmp_path / "store")
    assert ran(second.type("dvc", "repro", "--pull").stdout) == []
    assert second.would_run() == []


def reports(project: Project) -> dict[str, bytes]:
    """The files of reports/, but for the commit that the page names."""
    read = {path.name: path.read_bytes() for path in (project.folder / "reports").iterdir()}
    return {name: without_commit(data) if name == "index.html" else data for name, data in read.items()}


@pytest.mark.thorough
def test_experiments_go_to_another_clone(project, tmp_path):
    first = project.duplicate(tmp_path / "first")
    first.type("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    first.type("git", "clone", "--quiet", "--bare", str(first.folder), str(tmp_path / "hub"))
    first.type("git", "remote", "add", "origin", str(tmp_path / "hub"))
    first.type("dvc", "exp", "run", "--name", "wider", "--set-param", "model.width=16")
    fid = json.loads((first.folder / "results/model/metrics.json").read_text())["fid"]
    first.type("dvc", "exp", "push", "origin", "wider")
    second = Project(tmp_path / "second")
    first.type("git", "clone", "--quiet", str(tmp_path / "hub"), str(second.folder))
    second.type("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    second.type("dvc", "exp", "pull", "origin", "wider")
    second.type("dvc", "exp", "apply", "wider")
    second.type("dvc", "pull", "evaluate-model")
    assert json.loads((second.folder / "results/model/metrics.json").read_text())["fid"] == fid


@pytest.mark.thorough
def test_export_is_a_pipeline_with_a_card_and_no_path_of_this_machine(project):
    done = project.type("python", "-m", "stages", "export", "B-2", "0")
    assert "exports/B-2/seed-0" in done.stdout
    folder = project.folder / "exports/B-2/seed-0"
    card = ModelCard.load(folder / "README.md")
    metrics = json.loads((project.folder / "results/B-2/seed-0/metrics.json").read_text())
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        column.key: metrics[column.key] for column in METRICS if column.key in metrics
    }
    assert project.type("git", "rev-parse", "HEAD").stdout.strip() in card.text
    image = GATPipeline.from_pretrained(folder)(["7"], generator=torch.Generator().manual_seed(1)).images[0]
    picture = np.asarray(Image.open(folder / "samples.png"))  # a row a class, a column a seed
    side = image.height
    assert np.abs(np.asarray(image).astype(int) - picture[7 * side : 8 * side, side : 2 * side]).max() <= 1
    for path in folder.rglob("*"):
        assert path.is_dir() or str(project.folder).encode() not in path.read_bytes()
    assert project.would_run() == []
    project.set("train.learning_rate", 1e-3)
    stale = project.type("python", "-m", "stages", "export", "B-2", "0", check=False)
    project.type("git", "checkout", "--quiet", "params.yaml")
    assert stale.stderr.splitlines()[-1].startswith("params.yaml: run: train@B-2-0")


def test_experiment_retrains_the_model_under_test_alone(project):
    done = project.type("dvc", "exp", "run", "--name", "wider", "--set-param", "model.width=16")
    assert ran(done.stdout) == [*MODEL, "report"]
    table = pd.read_csv(project.folder / "reports/scaling.csv").set_index("run").loc[["model"]]
    assert table.width.tolist() == [16]
    rows = pd.read_csv(io.StringIO(project.type("dvc", "exp", "show", "--csv").stdout))
    fid = rows.assign(name=rows.Experiment.fillna(rows.rev)).set_index("name").fid
    assert fid["wider"] == pytest.approx(table.fid["model"], rel=1e-4)
    assert fid["main"] != fid["wider"]
    project.type("git", "checkout", "--quiet", ".")
    project.type("dvc", "checkout")


@pytest.mark.thorough
def test_dvc_shows_an_experiment_beside_the_baseline(project):
    project.type("dvc", "exp", "run", "--name", "narrower", "--set-param", "model.width=8")
    narrow = project.type(
        "script", "--quiet", "--command", "stty cols 120; dvc exp show --only-changed --no-pager", "/dev/null"
    ).stdout
    assert "narrower" in narrow
    assert max(map(len, strip_colors(narrow).splitlines())) <= 120
    changes = project.type("dvc", "metrics", "diff", "HEAD").stdout
    assert "fid" in changes
    assert "gmacs" in changes
    both = project.type("dvc", "plots", "diff", "main", "narrower").stdout
    page = Path(both.strip().removeprefix("file://")).read_text()
    drawn = [json.loads(values) for values in re.findall(r'"values": (\[[^\]]*\])', page)]
    (curve,) = [points for points in drawn if points and "fid" in points[0]]
    assert {point["rev"] for point in curve} == {"main", "narrower"}
    plots = project.type("dvc", "plots", "show").stdout
    page = Path(plots.strip().removeprefix("file://")).read_text()
    assert "FID of the model under test" in page
    assert "scaling.png" in page
    project.type("git", "checkout", "--quiet", ".")
    project.type("dvc", "checkout")


@pytest.mark.thorough
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
