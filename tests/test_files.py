import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from gat.files import atomic_write, lock, replace


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_file_is_replaced_when_complete_and_kept_after_an_error(tmp_path):
    target = tmp_path / "deep/er/metrics.json"
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"deep/er/metrics.json": "new"}


def test_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "pipeline"
    for names in (("a", "b"), ("b", "c")):
        with atomic_write(target) as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text(name + names[0])
    assert contents(tmp_path) == {"pipeline/b": "bb", "pipeline/c": "cb"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_a_link_leads_to_is_never_written(tmp_path, link):
    """DVC's cache: outs may be hard or symbolic links to its files."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    cache.write_text("cached")
    cache.chmod(0o444)
    link(cache, out)
    with atomic_write(out) as temporary:
        temporary.write_text("new")
    assert (cache.read_text(), out.read_text(), out.is_symlink()) == ("cached", "new", False)


def test_folder_of_links_and_a_linked_folder_are_replaced_not_written(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "weights").write_text("cached")
    (tmp_path / "of-links").mkdir()
    os.link(cache / "weights", tmp_path / "of-links/weights")
    (tmp_path / "linked").symlink_to(cache)
    for name in ("of-links", "linked"):
        with atomic_write(tmp_path / name) as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("new")
    assert contents(tmp_path) == {"cache/weights": "cached", "of-links/weights": "new", "linked/weights": "new"}


def test_rest_of_a_killed_write_is_no_hindrance(tmp_path):
    """As a kill leaves it: the temporary file, and the old folder that was just moved aside."""
    target = tmp_path / "vae"
    with atomic_write(target) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        unfinished = temporary.name
    target.rename(tmp_path / unfinished)
    (tmp_path / ".vae.old").mkdir()
    with atomic_write(target) as temporary:
        temporary.mkdir()
        (temporary / "whole").write_text("whole")
    (tmp_path / ".vae.old").rmdir()
    assert contents(tmp_path) == {"vae/whole": "whole"}


def test_old_folder_is_put_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)

    def fail(source, target):
        target.mkdir()
        raise OSError("disk full")

    monkeypatch.setattr("gat.files.shutil.move", fail)
    with pytest.raises(OSError, match="disk full"):
        replace(tmp_path / "new", tmp_path / "old")
    assert contents(tmp_path) == {"new/weights": "new", "old/weights": "old"}


HOLDER = """
import sys, time
from pathlib import Path
from gat.files import lock

place, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with lock(place / "work") as awaited, (place / "log").open("a", buffering=1) as log:
    log.write(f"{name} begins\\n")
    time.sleep(seconds)
    log.write(f"{name} ends{', awaited' if awaited() else ''}\\n")
"""


def start(folder: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder), name, str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(folder: Path, line: str) -> None:
    deadline = time.monotonic() + 60
    while line not in ((folder / "log").read_text() if (folder / "log").exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_programs_wait_for_one_another_and_know_of_it(tmp_path):
    """Also for one that is killed; the last one leaves no file behind."""
    first = start(tmp_path, "first", 600)
    wait_for(tmp_path, "first begins")
    others = [start(tmp_path, name, 1.5) for name in ("second", "third")]
    assert all("waiting for it to end" in other.stdout.readline() for other in others)
    first.kill()
    first.wait()
    assert [other.wait(60) for other in others] == [0, 0]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "first begins"
    names = [line.split()[0] for line in lines[1:]]
    assert names in (["second"] * 2 + ["third"] * 2, ["third"] * 2 + ["second"] * 2)
    assert [line.split(" ", 1)[1] for line in lines[1:]] == ["begins", "ends, awaited", "begins", "ends"]
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_where_there_are_no_locks_it_says_so_and_goes_on(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock(tmp_path / "work") as awaited:
        assert not awaited()
    assert "this file system has no locks" in capsys.readouterr().out


def test_any_other_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match="broken"), lock(tmp_path / "work"):
        pass
