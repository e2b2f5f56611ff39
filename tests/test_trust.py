"""What is written survives kills, full disks, other programs and stages typed by hand, on the smoke profile."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL

import psutil
import pytest
from project import cached_files, contents, wait_for_end, without_commit

TORCHRUN = f"{Path(sys.executable).parent / 'torchrun'} --nproc_per_node 2"
TRAINED = ["runs/B-2/seed-0/generator", "runs/B-2/seed-0/discriminator", "results/B-2/seed-0/curves"]
KILLED = {
    "images": (["images"], "", ["data/images"]),
    "latents": (["latents"], "", ["data/latents"]),
    "training": (["train", "B-2", "0"], "", TRAINED),
    "training on two": (["train", "B-2", "0"], TORCHRUN, TRAINED),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", KILLED)
def test_kills_at_random_moments_change_no_byte(name, finished, tmp_path, request):
    """`pytest --kills 50` kills more often. Of two processes every other kill is of one alone, which ends the other."""
    stage, launch, outs = KILLED[name]
    copy = finished.duplicate(tmp_path / "copy", GAT_LAUNCH=launch)
    rng = random.Random(request.config.getoption("--kills"))
    copy.replace(train={"steps": 60, "eval_every": 30}, compute={"save_minutes": 0})

    def start() -> subprocess.Popen[bytes]:
        command = ["python", "-m", "stages", *stage]
        return subprocess.Popen(
            command, cwd=copy.folder, env=copy.env, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
        )

    begin = time.monotonic()
    assert start().wait() == 0
    seconds = time.monotonic() - begin
    want = {out: contents(copy.folder / out) for out in outs}
    kills = 0
    while kills < request.config.getoption("--kills"):
        process = start()
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is not None:  # complete: it begins anew
            continue
        workers = psutil.Process(process.pid).children() if launch and kills % 2 else []
        if workers:
            rng.choice(workers).kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        kills += process.wait(120) != 0  # a worker may have been at its end
        wait_for_end(copy.folder)
    assert start().wait() == 0
    assert {out: contents(copy.folder / out) for out in outs} == want
    assert not [path for path in copy.folder.rglob(".*") if "unfinished" in path.name or path.name.endswith(".old")]
    assert not list(copy.folder.glob("checkpoints/*"))


@pytest.mark.thorough
def test_two_programs_with_the_same_work_share_it(finished, tmp_path):
    """As queued experiments of one recipe do, with one folder for what is unfinished: no one spoils another's files."""
    copies = [finished.duplicate(tmp_path / name, GAT_CHECKPOINTS=str(tmp_path / "kept")) for name in ("one", "two")]
    for copy in copies:
        shutil.rmtree(copy.folder / "runs")
        shutil.rmtree(copy.folder / "data/latents")
    for stage in (["images"], ["latents"], ["train", "S-2", "0"]):
        command = ["python", "-m", "stages", *stage]
        started = [
            subprocess.Popen(command, cwd=copy.folder, env=copy.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for copy in copies
        ]
        for process in started:
            said = process.communicate()[0].decode()
            assert process.returncode == 0, said
    for name in ("data/images", "data/latents", "runs/S-2/seed-0/generator", "results/S-2/seed-0/curves"):
        want = contents(finished.folder / name)
        assert all(contents(copy.folder / name) == want for copy in copies), name
    assert not list((tmp_path / "kept").iterdir())


STAGES = ["images", "latents", "train B-2 0", "evaluate B-2 0", "package B-2 0", "report"]
AS_ORDINARY_USER = ("setpriv", "--bounding-set=-all")  # without root's right to write to what is read-only


@pytest.mark.thorough
def test_an_ordinary_user_replaces_the_caches_links(finished, tmp_path):
    """Whose outs are hard links to read-only files; tests/test_code.py does the same as root."""
    copy = finished.duplicate(tmp_path / "copy")
    if os.geteuid() == 0:
        copy.prefix = AS_ORDINARY_USER
        if copy.type("true", check=False).returncode != 0:
            pytest.skip("needs setpriv")
    copy.type("dvc", "config", "--local", "cache.type", "hardlink")
    copy.type("dvc", "checkout", "--relink")
    for path in copy.folder.glob(".dvc/cache/files/md5/*/*"):
        path.chmod(0o444)
    before = cached_files(copy)
    for stage in STAGES:
        copy.type("python", "-m", "stages", *stage.split())
    assert cached_files(copy) == before
    copy.type("dvc", "checkout", "--force")  # the page names the commit of now
    assert copy.would_run() == []


class SmallDisk:
    """A tmpfs of 1 MiB in the place of a folder, whose entries it has as links, with a few bytes left."""

    def __init__(self, folder: Path, left: int) -> None:
        self.folder, kept = folder, folder.with_name(f"{folder.name}-kept")
        folder.mkdir(exist_ok=True)
        shutil.copytree(folder, kept, symlinks=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True, capture_output=True)
        for path in kept.iterdir():
            (folder / path.name).symlink_to(path)
        disk = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - left))

    def grow(self) -> None:
        subprocess.run(["mount", "-o", "remount,size=512m", self.folder], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture(scope="module")
def disks(tmp_path_factory) -> Iterator[list[SmallDisk]]:
    """Small disks are appended, and unmounted in the end."""
    made: list[SmallDisk] = []
    try:
        SmallDisk(tmp_path_factory.mktemp("disk"), 0).unmount()
    except (subprocess.CalledProcessError, FileNotFoundError):
        pytest.skip("needs the right to mount a tmpfs")
    yield made
    for disk in made:
        disk.unmount()


def thorough(*values: str) -> object:
    return pytest.param(*values, marks=pytest.mark.thorough)


FULL = [
    thorough("train B-2 0", "checkpoints"),
    thorough("images", "checkpoints"),
    thorough("train B-2 0", "results/B-2/seed-0"),
]
FULL += [
    thorough(stage, "data") for stage in ("source", "images", "extractor", "reference", "vae", "latents", "floors")
]
FULL += [thorough("latents", "checkpoints"), thorough("train B-2 0", "runs/B-2/seed-0"), thorough("report", "reports")]
FULL += [thorough("evaluate B-2 0", "results/B-2/seed-0"), thorough("package B-2 0", "runs/B-2/seed-0")]
FULL += [thorough("showcase B-2 0", "showcase")]
OUTS = {
    "showcase": "showcase/B-2",
    "train": "runs/B-2/seed-0/generator",
    "package": "runs/B-2/seed-0/pipeline",
    "evaluate": "results/B-2/seed-0/metrics.json",
    "report": "reports",
}


@pytest.mark.parametrize(("stage", "place"), FULL)
def test_full_disk_is_one_line_and_nothing_is_lost(stage, place, finished, tmp_path, disks):
    copy, command = finished.duplicate(tmp_path / "copy"), ("python", "-m", "stages", *stage.split())
    out = copy.folder / OUTS.get(stage.split()[0], f"data/{stage}")
    if not out.exists():  # a file
        out = next(out.parent.glob(f"{out.name}.*"))
    want = snapshot(out)
    disks.append(
        disk := SmallDisk(copy.folder / place, 0 if place.startswith("results") or stage == "source" else 4096)
    )
    done = copy.type(*command, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "disk is full" in done.stderr.splitlines()[-1]
    assert snapshot(out) == want
    disk.grow()
    copy.type(*command)
    assert snapshot(out) == want


def snapshot(path: Path) -> dict[str, bytes]:
    """The bytes of a file or of all files of a folder, but for the commit that the page names."""
    files = contents(path) if path.is_dir() else {path.name: path.read_bytes()}
    files = {name: without_commit(data) if name == "index.html" else data for name, data in files.items()}
    return {name: data for name, data in files.items() if name != "filler"}
