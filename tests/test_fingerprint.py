"""The state of a source, by which DVC knows whether its images have changed."""

import os
import shutil
import time
from pathlib import Path

import pytest
from pyarrow import feather

from gat.config import ParamsError
from gat.data import fingerprint as module
from gat.data.fingerprint import fingerprint


@pytest.fixture
def source(tmp_path) -> Path:
    """Two files in a folder, made long ago."""
    folder = tmp_path / "source"
    for name in ("a/0.png", "b/deep/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, ns=(10**18, 10**18))
    return folder


def replace_unseen(path: Path, content: bytes) -> None:
    """By a file of the same name and times, as `cp -p` and `rsync -t` do."""
    status, new = path.stat(), path.with_name("new")
    new.write_bytes(content)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    new.rename(path)


@pytest.fixture
def settled(monkeypatch) -> None:
    """Files that were changed a moment ago count as unchanged since long; no program can set that time."""
    monkeypatch.setattr(module, "JUST_NOW", 0)


def test_it_changes_with_names_and_content_and_not_with_times_or_place(source, tmp_path):
    index = tmp_path / "index.arrow"
    first = fingerprint(str(source), index)
    assert first["files"] == 2
    os.utime(source / "a/0.png", ns=(5, 5))
    shutil.copytree(source, tmp_path / "copy")
    assert fingerprint(str(source), index) == fingerprint(str(tmp_path / "copy")) == first
    seen = [first]
    for change in (
        lambda: (source / "b/1.png").write_bytes(b"new"),
        lambda: (source / "b/1.png").rename(source / "b/2.png"),
        lambda: (source / "b/deep/0.png").write_bytes(b"B/DEEP/0.PNG"),  # of the same size
        lambda: replace_unseen(source / "a/0.png", b"A/0.PNG"),
        lambda: (source / "b/link.png").symlink_to("nowhere"),
        lambda: (source / "a/0.png").unlink(),
    ):
        change()
        own = fingerprint(str(source), index)
        assert own not in seen
        assert own == fingerprint(str(source))
        seen.append(own)
    assert fingerprint("mnist5k") == {"source": "mnist5k"}


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of files that are read, in the order in which they are."""
    names: list[str] = []
    compute = module._hash
    monkeypatch.setattr(module, "_hash", lambda file: (names.append(file.name), compute(file))[1])
    return names


def test_a_file_is_read_again_only_if_its_size_or_a_time_has_changed(source, tmp_path, settled, read):
    index = tmp_path / "index.arrow"
    fingerprint(str(source), index)
    first = fingerprint(str(source), index)
    assert len(read) == 2
    os.utime(source / "a/0.png", ns=(7, 7))
    assert fingerprint(str(source), index) == first
    assert len(read) == 3
    time.sleep(0.02)  # a kernel's clock has ticks
    replace_unseen(source / "a/0.png", b"A/0.PNG")
    assert fingerprint(str(source), index) != first
    assert len(read) == 4
    index.write_bytes(b"broken")
    fingerprint(str(source), index)
    assert len(read) == 6
    feather.write_feather(feather.read_table(index).drop_columns("changed"), index)  # of an earlier version
    fingerprint(str(source), index)
    assert len(read) == 8


def test_a_file_that_was_changed_just_now_is_read_again(source, tmp_path, read):
    """A file system with coarse times may miss the next change. Its time of modification is long ago."""
    for count in (2, 4):
        fingerprint(str(source), tmp_path / "index.arrow")
        assert len(read) == count


def test_an_index_that_cannot_be_written_is_no_error(source, tmp_path):
    (tmp_path / "file").touch()
    assert fingerprint(str(source), tmp_path / "file/index.arrow") == fingerprint(str(source))


def test_a_file_that_cannot_be_read_is_named(source, monkeypatch):
    def refuse(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(module, "_hash", refuse)
    with pytest.raises(ParamsError, match=r"^data\.source: .*0\.png cannot be read \(Permission denied\)"):
        fingerprint(str(source))


def test_many_files_take_as_long_to_check_as_to_list(tmp_path, settled):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(2000):
        (folder / f"{i}.png").write_bytes(bytes([i % 256]) * 2000)
        os.utime(folder / f"{i}.png", ns=(10**18, 10**18))
    index = tmp_path / "index.arrow"
    first = fingerprint(str(folder), index)
    start = time.process_time()
    assert fingerprint(str(folder), index) == first
    assert time.process_time() - start < 2
