"""The Slurm files: what is in them exists, and an array's task ends, is signalled and is queued again as it should."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

FILES = sorted((ROOT / "docs").glob("*.sbatch"))
OPTIONS = {  # of sbatch
    *("job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "gpus-per-task", "cpus-per-task", "mem"),
    *("time", "requeue", "signal", "open-mode", "output", "array"),
}
SLURMS = {"scontrol", "srun", "sbatch"}  # its own commands
OTHERS = {"dvc", "torchrun", "python", "sed", "pkill", "date", "head", "wc", "make"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_options_commands_and_stages_exist(path):
    text = path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    assert {*re.findall(r"(?:#SBATCH|sbatch) --([a-z-]+)", text)} <= OPTIONS
    used = {*re.findall(r"(?:^|[|`(]|&&|\$\(|exec) *([a-z]+)\b(?= [-a-zA-Z\"$])", re.sub(r"(?m)^#.*", "", text), re.M)}
    commands = used - {"source", "export", "rm", "wait", "trap", "echo", "exit"}
    assert commands <= SLURMS | OTHERS
    assert all(shutil.which(command) for command in commands - SLURMS)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for named in re.findall(r"dvc repro ((?:[a-z]+ )+)", text):
        assert {*named.split()} <= {*stages, "in"}
    for module in re.findall(r"python -m stages\.?(\w*) ?(\w*)", text):
        assert (ROOT / f"stages/{module[0] or module[1]}.py").exists()


@pytest.fixture
def task(tmp_path):
    """Starts a task of the array, with a project of two trainings and commands that note how they are called."""
    commands = {
        "python": 'printf "train@A-0 evaluate@A-0\\ntrain@B-0 evaluate@B-0\\n"',
        "scontrol": 'echo "scontrol $*" >> calls',
        # DVC runs a stage, which saves a checkpoint when it is told to stop; DVC then fails.
        "dvc": 'echo "dvc $*" >> calls; bash -c \'trap "echo saved >> calls; exit 1" TERM; touch started; '
        "while true; do sleep 0.02; done'",
    }
    for name, content in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()

    def start(number: int) -> subprocess.Popen[str]:
        slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(number)}
        environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        script = ROOT / "docs/slurm-array.sbatch"
        return subprocess.Popen(["bash", script], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE)

    return start


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def test_a_task_that_is_told_to_stop_saves_and_is_queued_again(task, tmp_path):
    process = task(2)
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    wanted = "dvc --wait-for-lock repro --single-item train@B-0 evaluate@B-0"
    assert calls(tmp_path) == [wanted, "saved", "scontrol requeue 7_2"]


def test_a_task_too_many_does_nothing(task, tmp_path):
    process = task(3)
    assert "there is no training 3" in process.communicate(timeout=10)[0]
    assert process.returncode == 0
    assert not calls(tmp_path)
