"""The scheduler of `python -m stages.repro`, with a shell script in the place of DVC. tests/test_graph.py runs DVC."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from conftest import ROOT
from dvc.repo import Repo
from project import Project
from zc.lockfile import LockFile

from gat.config import load_params
from stages.repro import Job, Scheduler, find_gpus, last_phases, make_phases, make_slots, slot_count, with_done

DVC = """#!/bin/sh
for name; do :; done
echo "running $name"
[ $name != fails ] || exit 1
[ $name = short ] || { trap "" INT; touch "$0.waits"; sleep 600; }
"""
RUN = """
import asyncio, sys
from stages.repro import Job, Scheduler
scheduler = Scheduler(1, [])
asyncio.run(scheduler.run([[Job([name]) for name in sys.argv[1:]]]))
"""


def run_jobs(folder: Path, *names: str) -> subprocess.Popen[str]:
    """Start jobs in one slot."""
    (folder / "dvc").write_text(DVC)
    (folder / "dvc").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, *names]
    return subprocess.Popen(command, env=environment, stdout=PIPE, text=True)


def test_no_job_starts_after_a_failure(tmp_path):
    said, _ = run_jobs(tmp_path, "short", "fails", "next").communicate(timeout=60)
    assert re.fullmatch(r"short: \d+ s\nrunning fails\nfails failed\n", said)


def test_second_interrupt_kills_what_ignores_the_first(tmp_path):
    process = run_jobs(tmp_path, "stubborn", "next")
    deadline = time.monotonic() + 60
    while not (tmp_path / "dvc.waits").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert "Ctrl-C again kills them" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == ""  # and `sleep`, whose output it would wait for


@pytest.mark.parametrize(
    ("jobs", "gpus", "slots"),
    [(None, "01", ["0", "1"]), (2, "01234", ["01", "234"]), (3, "01", ["0", "1", "0"]), (2, "", ["", ""])],
)
def test_slots_divide_gpus_or_share_them(jobs, gpus, slots):
    assert make_slots(slot_count(jobs, None, [*gpus]), [*gpus]) == [[*slot] for slot in slots]


def test_a_phase_of_few_jobs_has_all_gpus(monkeypatch):
    ran = []

    async def run(job: Job, gpus: list[str]) -> bool:
        ran.append((job.name, "".join(gpus)))
        await asyncio.sleep(0)  # the other slots start
        return True

    monkeypatch.setattr(Job, "run", run)
    phases = [["images"], ["reference", "latents", "teachers"], ["a", "b", "c", "d"], []]
    asyncio.run(Scheduler(4, [*"01234567"]).run([[Job([name]) for name in phase] for phase in phases]))
    assert ran[0] == ("images", "01234567")
    assert ran[1:4] == [("reference", "01"), ("latents", "234"), ("teachers", "567")]
    assert [gpus for _, gpus in ran[4:]] == ["01", "23", "45", "67"]


def test_claims_whose_trainings_are_done_are_reported_with_those_that_are_asked_for():
    params = load_params(ROOT / "profiles/smoke.yaml")
    taught = "claims/dvc.yaml:evaluate@S-2-taught-0"

    def asked(*changed: str) -> tuple[list[str], list[str]]:
        """What is reported if `resized` is asked for, and what runs before."""
        reported = with_done(params, {*changed}, ["resized"])
        return reported, [job.name for phase in make_phases(params, {*changed}, reported) for job in phase]

    assert asked() == (["resized", "aligned", "rates"], [])
    reported, ran = asked("claims/dvc.yaml:train@S-2-resized-0")
    assert (reported, ran) == (
        ["resized", "aligned", "rates"],
        ["S-2-resized-0", "analyze@S-2-0", "analyze@S-2-taught-0"],
    )
    assert asked(taught, "claims/dvc.yaml:train-rates@8-0.001-0") == (["resized"], [])
    assert asked("claims/dvc.yaml:analyze@S-2-0") == (["resized", "rates"], ["analyze@S-2-0"])  # of both baselines
    assert asked("vae")[0] == ["resized"]
    assert {"vae", "S-2-0", "S-2-resized-0"} < {*asked("vae")[1]}
    last = [[job.name for job in phase] for phase in last_phases(params, ["resized"])]
    assert last == [["summary"], ["dvc.yaml"]]


def test_status_is_the_last_state_of_a_progress_bar():
    output = "start\n\rtrain:  0%|  | 0/9\rtrain: 50%|█ | 4/9 [00:01<00:01]"
    job = Job(["train@S-2-0"], output=output.encode())
    assert (job.name, job.lines[0], job.status) == ("S-2-0", "start", "train: 50% 4/9 [00:01<00:01]")


@pytest.mark.parametrize(
    ("named", "there", "gpus"),
    [
        (None, 2, ["0", "1"]),
        ("1", 1, ["1"]),
        ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("0,7", 1, ["0"]),  # CUDA uses the list up to the first that there is not
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        ("", 0, []),
    ],
)
def test_gpus_are_those_that_there_are(named, there, gpus, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: there)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert find_gpus() == gpus


def merge(project: Project, source: str = "mnist5k") -> None:
    """As git leaves dvc.lock after a merge with conflicts, of a source that may not be here."""
    (project.folder / "dvc.lock").write_text("<<<<<<< HEAD\n")
    project.set("data.source", source)


BROKEN = {
    "conflict markers": (merge, "dvc.lock"),
    "conflict markers, and no source": (lambda project: merge(project, "/mnt/photos"), "dvc.lock"),
    "a broken graph": (lambda project: (project.folder / "dvc.yaml").write_text("stages: ["), "dvc.yaml"),
    "no git": (lambda project: shutil.rmtree(project.folder / ".git"), "git"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN)
def test_what_dvc_says_is_shown(change, said, tmp_path):
    project = Project.copy(tmp_path / "project", "smoke.yaml")
    change(project)
    done = project.type("python", "-m", "stages.repro", check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "is not allowed" not in done.stderr
    assert "Traceback" not in done.stderr


STATUS = """
from stages import repro
print(repro.run_dvc("status", "--json"))
"""


def test_what_holds_dvcs_lock_is_named_once(tmp_path):
    Repo.init(str(tmp_path), no_scm=True)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def status() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", STATUS]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=PIPE, stderr=PIPE, text=True)

    assert status().communicate(timeout=60) == ("b'{}\\n'\n", "")
    held = LockFile(str(tmp_path / ".dvc/tmp/lock"))
    process = status()
    said = process.stderr.readline()
    assert re.fullmatch(rf"waiting for process {os.getpid()} \(.+\), which holds DVC's lock\n", said)
    time.sleep(0.5)
    held.close()
    assert process.communicate(timeout=60) == ("b'{}\\n'\n", "")


def test_a_stage_ends_when_dvc_can_record_it(tmp_path):
    """DVC gives up after three seconds without its lock, and would make the outs of this stage again."""
    project = Project.copy(tmp_path / "project", "smoke.yaml")
    (project.folder / ".dvc/tmp").mkdir()
    held = LockFile(str(project.folder / ".dvc/tmp/lock"))
    environment = project.env | {"DVC_STAGE": "tidy"}
    command = [sys.executable, "-m", "stages", "tidy"]
    process = subprocess.Popen(command, cwd=project.folder, env=environment, stderr=PIPE, text=True)
    assert f"waiting for process {os.getpid()}" in process.stderr.readline()
    assert (project.folder / "data/trainings.json").exists()
    time.sleep(0.2)
    assert process.poll() is None
    held.close()
    assert (process.wait(timeout=30), process.stderr.read()) == (0, "")


def test_a_stage_whose_code_has_changed_since_its_hash_was_taken_does_not_run(tmp_path):
    """DVC would record what the changed code makes as made by the old one."""
    project = Project.copy(tmp_path / "project", "smoke.yaml", DVC_STAGE="tidy")
    project.type("python", "-m", "stages", "code")
    module = project.folder / "stages/tidy.py"
    module.write_text(f"# A comment changes nothing.\n{module.read_text()}")
    project.type("python", "-m", "stages", "tidy")
    module.write_text(f"{module.read_text()}\nFACTOR = 2\n")
    done = project.type("python", "-m", "stages", "tidy", check=False)
    assert done.returncode == 1
    assert done.stderr == "tidy: its code has changed since `dvc repro` started; run it again\n"
