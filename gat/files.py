"""Files and folders that are written whole or not at all, and by one program at a time."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks say


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


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, complete or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


@contextmanager
def lock(path: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock of a path, after waiting for any program that does; it is free again however this one ends.

    On a file system without locks it says so, and holds nothing.

    Yields:
        A function: is another program waiting for the lock? It can then go on from what this one leaves at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".queue", ".lock")]
    # The next program waits for `holder` with `queue` in its hands.
    queue, holder = (FileLock(file, fallback_to_soft=False) for file in files)

    def awaited() -> bool:
        try:
            with queue.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            return False

    def acquire(part: FileLock) -> None:
        try:
            part.acquire(timeout=0)
        except Timeout:
            print(f"another program is at work on {path}; waiting for it to end", flush=True)
            part.acquire()

    try:
        try:
            acquire(queue)
            acquire(holder)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            print(f"{path}: this file system has no locks; start no other program with the same work", flush=True)
        queue.release()
        yield awaited
        if not awaited():
            for file in files:
                file.unlink(missing_ok=True)
    finally:
        queue.release()
        holder.release()
