"""What makes a stage run again: changed code does, changed words do not. And stages declare the keys that they read."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from project import Project, cached_files

TRAININGS = [f"{run}-{seed}" for run in ("B-2", "B-4", "S-2") for seed in (0, 1)]
TRAIN = {"train-model", *(f"train@{name}" for name in TRAININGS)}
EVALUATE = {"evaluate-model", *(f"evaluate@{name}" for name in TRAININGS)}
PACKAGE = {"package-model", *(f"package@{name}" for name in TRAININGS)}
SHOWCASE = {f"showcase@{run}" for run in ("B-2", "B-4", "S-2")}
GRAPHS = {name: yaml.safe_load((ROOT / name).read_text())["stages"] for name in ("dvc.yaml", "ablations/dvc.yaml")}


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    return finished.duplicate(tmp_path_factory.mktemp("code") / "project")


# File, what stands there, what takes its place, and the stages that then run.
CHANGES = [
    ("gat/gan/losses.py", '"""The adversarial losses', '"""Losses', set()),
    ("gat/release/pipeline.py", "import difflib\n", "# Near names.\nimport difflib\n", set()),
    ("gat/gan/training.py", "training diverged between", "it diverged between", set()),  # the text of an error
    ("gat/config.py", "    bootstrap: PositiveInt\n", "    bootstrap: PositiveInt\n    dots: int = 0\n", set()),
    ("gat/gan/noise.py", "SIGMA_MIN = 0.01", "SIGMA_MIN = 0.02", TRAIN),
    ("gat/gan/training.py", "w_avg()\n        self._update_ema()", "ema()\n        self._update_w_avg()", TRAIN),
    ("gat/gan/losses.py", "repa_weight: float = 1.0", "repa_weight: float = 2.0", TRAIN),
    ("gat/sizes.py", "HEAD_SIZE = 64", "HEAD_SIZE = 32", None),  # read by way of gat/config.py
    ("gat/release/standalone.py", "digest_size=6", "digest_size=8", PACKAGE | SHOWCASE),
    ("gat/evaluation/metrics.py", "NEIGHBOURS = 3", "NEIGHBOURS = 4", EVALUATE | {"reference"}),
    ("gat/study/cost.py", "/ 2 / 1e9", "/ 1e9", EVALUATE),
    ("gat/data/sources.py", 'EMBEDDED = "mnist5k"', 'EMBEDDED = "mnist"', {"images"}),
    ("gat/report/template/page.css", "body {", "body { margin: 1px;", {"report"}),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "stages"), CHANGES)
def test_code_reruns_what_it_decides_and_words_rerun_nothing(file, old, new, stages, project):
    path = project.folder / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    changed = {*project.would_run(code=True)}
    path.write_text(text)
    if stages is None:
        assert changed >= TRAIN
    else:
        assert changed == stages


def test_formatting_and_bytecode_rerun_nothing(project):
    files = [project.folder / name for name in ("gat/gan/networks.py", "gat/data/vae.py", "stages/train.py")]
    texts = [file.read_text() for file in files]
    project.type("ruff", "format", "--isolated", "--line-length", "70", *map(str, files))
    assert all(file.read_text() != text for file, text in zip(files, texts, strict=True))
    compiled = project.folder / "gat/gan/__pycache__/losses.cpython-311.pyc"
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(b"other")
    assert project.would_run(code=True) == []
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)


def test_code_of_a_stage_is_known_in_a_second_without_heavy_imports(project):
    script = (
        "import sys, stages.code as code; code.code_of('train'); print({'torch', 'pandas', 'scipy'} & {*sys.modules})"
    )
    assert project.type("python", "-c", script).stdout.strip() == "set()"


STAGES = ["source", "code", "tidy", "images", "extractor", "reference", "vae", "latents", "floors", "train S-2 0"]
STAGES += ["evaluate S-2 0", "package S-2 0", "showcase S-2 0", "evaluate model", "package model", "report"]
STAGES += ["train S-2-resized 0", "evaluate S-2-resized 0", "analyze S-2 0", "summary"]
WHERE_RESULTS_ARE = "ablations"  # the list says in which folder results are, and decides none


def test_stages_read_the_keys_that_they_declare_and_leave_the_cache_as_it_is(finished, tmp_path):
    """Run by hand, in one process, where outs are hard links to files of DVC's cache."""
    copy = finished.duplicate(tmp_path / "copy", PYTHONPATH=".")
    copy.type("dvc", "config", "--local", "cache.type", "hardlink")
    copy.type("dvc", "checkout", "--relink")
    assert (copy.folder / "data/reference.npz").stat().st_nlink == 2
    before = cached_files(copy)
    output = copy.type("python", str(ROOT / "tests/reads.py"), *STAGES).stdout
    for command, read in json.loads(output.splitlines()[-1]).items():
        name, *training = command.split()
        graph = GRAPHS["ablations/dvc.yaml" if "S-2-resized" in training or name == "summary" else "dvc.yaml"]
        stage = graph.get(f"{name}-model" if training == ["model"] else name) or GRAPHS["ablations/dvc.yaml"][name]
        declared = [key.replace("${item.run}", training[0] if training else "") for key in stage.get("params", [])]
        hidden = {key for key in read if not any(key == own or key.startswith(f"{own}.") for own in declared)}
        assert hidden <= {WHERE_RESULTS_ARE}, command
    assert cached_files(copy) == before
    copy.type("dvc", "checkout", "--force")
    copy.type("git", "checkout", "--quiet", "reports")  # of a commit with changes, as the page says
    assert copy.would_run() == []


def imported(path: Path) -> set[Path]:
    """The files of gat/ that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("gat"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = [ROOT / name.replace(".", "/") for name in names]
    return {file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()}


def test_packages_depend_one_way():
    """data, gan, evaluation, study; no module imports itself by way of others; gat/ knows neither stages nor DVC."""
    order = ("data", "gan", "evaluation", "study")
    for file in sorted((ROOT / "gat").rglob("*.py")):
        package = file.parent.name
        for other in imported(file):
            if package in order and other.parent.name in order and other.name != "results.py":
                assert order.index(other.parent.name) <= order.index(package), (file, other)
        reached, new = set(), imported(file)
        while new:
            reached |= new
            new = {other for module in new for other in imported(module)} - reached
        assert file not in reached
        assert not re.search(r"^\s*(from|import) (stages|dvc)\b", file.read_text(), re.MULTILINE), file


def test_the_lock_names_no_stage_that_the_graph_no_longer_has():
    for graph in GRAPHS:
        listed = subprocess.run(
            [Path(sys.executable).parent / "dvc", "stage", "list", "--name-only", graph],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        locked = yaml.safe_load((ROOT / graph).with_suffix(".lock").read_text())["stages"]
        assert {name.split(":")[-1] for name in listed} >= locked.keys(), graph
