"""The state of a source, by which DVC knows whether its images have changed."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo
from pyarrow import feather

from gat.config import ParamsError
from gat.data import fingerprint as module
from gat.data.fingerprint import fingerprint
from gat.files import json_text
from stages import SOURCE
from stages.source import last_fingerprint


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


class Clone:
    """A DVC project without its images, whose dvc.lock has their state, of a source."""

    def __init__(self, folder: Path, source: str, state: dict[str, object]) -> None:
        Repo.init(str(folder), no_scm=True)
        self.content = json_text(state)
        digest = hashlib.md5(self.content.encode()).hexdigest()
        self.cached = folder / f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}"
        self.cached.parent.mkdir(parents=True)
        self.cached.write_text(self.content)
        stage = {"cmd": "true", "params": ["data.source"], "outs": [str(SOURCE)]}
        outs = [{"path": str(SOURCE), "hash": "md5", "md5": digest, "size": len(self.content)}]
        locked = {"cmd": "true", "params": {"params.yaml": {"data.source": source}}, "outs": outs}
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"source": stage}}))
        (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"source": locked}}))
        (folder / "data").mkdir()
        self.out = folder / SOURCE


LAST = {"files": 2, "digest": "0123"}


@pytest.mark.parametrize("source", ["photos", "./photos"])
def test_a_source_of_another_machine_has_the_state_in_dvc_lock(source, tmp_path, monkeypatch):
    """Not a newer one that the file has. It may be written as a hub id is."""
    clone = Clone(tmp_path, source, LAST)
    monkeypatch.chdir(tmp_path)
    assert last_fingerprint(source) == LAST
    clone.out.write_text(json_text(LAST | {"files": 3}))
    assert last_fingerprint(source) == LAST
    clone.cached.write_text(json_text(LAST | {"files": 4}))  # by a program that wrote to a link to it
    for _ in range(2):
        with pytest.raises(ParamsError, match=rf"^data\.source: '{source}' is not allowed; allowed: a file or folder"):
            last_fingerprint(source)
        clone.cached.unlink(missing_ok=True)
    clone.out.write_text(clone.content)
    assert last_fingerprint(source) == LAST


def test_a_hub_id_has_no_state_but_its_name(tmp_path, monkeypatch):
    clone = Clone(tmp_path, "org/photos", {"source": "org/photos"})
    monkeypatch.chdir(tmp_path)
    clone.cached.unlink()
    assert last_fingerprint("org/photos") is None
    assert last_fingerprint("org/others") is None
    with pytest.raises(ParamsError, match=r"^data\.source: '\./others' is not allowed"):
        last_fingerprint("./others")
