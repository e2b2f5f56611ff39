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
from project import Project

RUNS = ("B-2", "B-4", "S-2")
TRAIN, EVALUATE, PACKAGE = (
    {f"{stage}-model", *(f"{stage}@{run}-0" for run in RUNS)} for stage in ("train", "evaluate", "package")
)
MEASURED = EVALUATE | {"samples@noise", "floors", "statistics"}
SHOWCASE = {f"showcase@{run}" for run in RUNS}
GRAPHS = {name: yaml.safe_load((ROOT / name).read_text())["stages"] for name in ("dvc.yaml", "claims/dvc.yaml")}


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Project:
    return finished.duplicate(tmp_path_factory.mktemp("code") / "project")


# File, what stands there, what takes its place, and the stages that then run.
CHANGES = [
    ("gat/gan/losses.py", '"""The adversarial losses', '"""Losses', set()),
    ("gat/release/pipeline.py", "import difflib\n", "# Near names.\nimport difflib\n", set()),
    ("gat/gan/training.py", "training diverged between", "it diverged between", set()),  # the text of an error
    ("gat/config.py", "    highlight: Color\n", "    highlight: Color\n    dots: int = 0\n", set()),
    ("gat/gan/noise.py", "SIGMA_MIN = 0.01", "SIGMA_MIN = 0.02", TRAIN | EVALUATE),
    ("gat/gan/training.py", "w_avg()\n        self._update_ema()", "ema()\n        self._update_w_avg()", TRAIN),
    ("gat/gan/losses.py", "repa_weight: float = 1.0", "repa_weight: float = 2.0", TRAIN | EVALUATE),
    ("gat/sizes.py", "HEAD_SIZE = 64", "HEAD_SIZE = 32", None),  # read by way of gat/config.py
    ("gat/release/standalone.py", "digest_size=6", "digest_size=8", PACKAGE | SHOWCASE),
    ("gat/evaluation/metrics.py", "_OF_REALS = 3, 5", "_OF_REALS = 3, 6", MEASURED | {"reference", "encoder"}),
    ("gat/evaluation/measure.py", "progress: bool = True", "progress: bool = False", MEASURED),
    ("gat/study/cost.py", "/ 2 / 1e9", "/ 1e9", EVALUATE),
    ("gat/data/sources.py", 'EMBEDDED = "mnist5k"', 'EMBEDDED = "mnist"', {"images", "samples@noise"}),
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


# Keys that decide no result: `runs` says in which folder results are; of `data.source` source.json has the content.
NOT_DECLARED = {"runs"}, {"images": {"data.source"}}


def test_stages_read_the_keys_that_they_declare(finished):
    """Every command of both graphs, as tests/recorder saw it while the study ran."""
    recorded = {path.name: {*json.loads(path.read_text())} for path in finished.reads.iterdir()}
    stages = {name: stage for graph in GRAPHS.values() for name, stage in graph.items()}
    assert {command.split()[0] for command in recorded} == {re.sub("-(model|rates)$", "", name) for name in stages}
    for command, read in recorded.items():
        name, *training = command.split()
        kind = "-model" if training == ["model"] else "-rates" if "." in "".join(training) else ""
        stage = stages.get(name + kind) or stages[name]
        name = training[0] if training else ""
        stage = stage.get("do", stage)
        declared = [key.replace("${item.run}", name).replace("${key}", name) for key in stage.get("params", [])]
        hidden = {key for key in read if not any(key == own or key.startswith(f"{own}.") for own in declared)}
        assert hidden <= NOT_DECLARED[0] | NOT_DECLARED[1].get(command, set()), command


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
