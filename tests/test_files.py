import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from gat.files import atomic_write, lock


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_folder(path: Path, **files: str) -> None:
    with atomic_write(path) as temporary:
        temporary.mkdir()
        for name, text in files.items():
            (temporary / name).write_text(text)


def test_file_is_replaced_when_complete_and_kept_after_an_error(tmp_path):
    target = tmp_path / "deep/er/metrics.json"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"deep/er/metrics.json": "new"}


def test_folder_is_replaced_as_a_whole_by_a_folder_or_a_file(tmp_path):
    target = tmp_path / "pipeline"
    write_folder(target, a="1", b="1")
    write_folder(target, b="2", c="2")
    assert contents(tmp_path) == {"pipeline/b": "2", "pipeline/c": "2"}
    with atomic_write(target) as temporary:
        temporary.write_text("file")
    assert contents(tmp_path) == {"pipeline": "file"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_linked_files_and_folders_are_replaced_and_their_targets_kept(tmp_path, link):
    """Outs may be hard or symbolic links into DVC's cache."""
    cache = tmp_path / "cache"
    write_folder(cache, weights="cached")
    (cache / "weights").chmod(0o444)
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder/weights"):
        link(cache / "weights", tmp_path / name)
    (tmp_path / "linked").symlink_to(cache)
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("new")
    for name in ("folder", "linked"):
        write_folder(tmp_path / name, weights="new")
    want = {"cache/weights": "cached", "file": "new", "folder/weights": "new", "linked/weights": "new"}
    assert contents(tmp_path) == want
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    """A kill may leave the temporary folder, and the old one under another name."""
    target = tmp_path / "vae"
    with atomic_write(target) as temporary:
        temporary.mkdir()
    for name in (temporary.name, ".vae.old"):
        write_folder(tmp_path / name, half="half")
    write_folder(target, whole="whole")
    assert contents(tmp_path) == {"vae/whole": "whole"}
    assert list(tmp_path.iterdir()) == [target]


HOLDER = """
import sys, time
from pathlib import Path
from gat.files import lock

folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with lock(folder / "work") as awaited, (folder / "log").open("a", buffering=1) as log:
    log.write(f"{name} begins\\n")
    time.sleep(seconds)
    log.write(f"{name} ends{', awaited' if awaited() else ''}\\n")
"""


def start(folder: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder), name, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_programs_wait_for_a_lock_and_its_holder_knows(tmp_path):
    """Also after a kill; the last program leaves no lock files."""
    first = start(tmp_path, "first", 600)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    others = [start(tmp_path, name, 1.5) for name in ("second", "third")]
    assert all("waiting for it to finish" in other.stdout.readline() for other in others)
    first.kill()
    first.wait()
    assert [other.wait(60) for other in others] == [0, 0]
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    names, events = zip(*lines, strict=True)
    assert events == ("begins", "begins", "ends, awaited", "begins", "ends")
    assert names[1] == names[2] != names[3] == names[4]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_missing_locks_are_named_and_other_errors_raised(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    if number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)), lock(tmp_path / "work"):
            pass
    else:
        with lock(tmp_path / "work") as awaited:
            assert not awaited()
        assert "this file system has no locks" in capsys.readouterr().out
