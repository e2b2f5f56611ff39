"""Files and folders that are written whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Put a file or folder in the place of another one, if any, which is deleted.

    The old one is never written to, since it may be a link into a cache. An old folder is first moved aside, to
    `.NAME.old`, and moved back after an error.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and (target.exists() or target.is_symlink()):  # a folder cannot be renamed over another
        old = target.with_name(f".{target.name}.old")
        _remove(old)
        target.rename(old)
        try:
            shutil.move(source, target)
        except BaseException:
            _remove(target)
            old.rename(target)
            raise
        _remove(old)
    elif source.is_file() and target.is_dir():
        _remove(target)
        shutil.move(source, target)
    else:
        shutil.move(source, target)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or folder to; it takes the place of `path` when complete.

    A file is on the disk, not only in the system's memory, before it is renamed. After an error `path` is as it was
    before; after a kill, too, or, between the two renamings of a folder, it is in `.NAME.old`.

        with atomic_write(Path("metrics.json")) as temporary:
            temporary.write_text(…)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished{path.suffix}")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
