"""Files and folders that are written completely or not at all, and by one program at a time."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` for a new file or folder, which replaces `path` at the end.

    What was at `path` is never written to, since it may be a link into a cache. After an error or a kill it is as
    before, unless a kill came between the two renames that replace a folder: then it is in `.NAME.old`.

        with atomic_write(Path("metrics.json")) as temporary:
            temporary.write_text(…)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.unfinished{path.suffix}"), path.with_name(f".{path.name}.old")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # else a power failure could leave the new name with no content
        _remove(old)
        if (temporary.is_dir() or path.is_dir()) and os.path.lexists(path):  # a folder cannot be renamed over another
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        _remove(temporary)
        if old.exists() and not os.path.lexists(path):  # the second rename failed
            old.rename(path)
        raise
    _remove(old)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the disk is full.

    Libraries that cannot write raise OSError, SafetensorError, RuntimeError, …
    """
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json_text(content))


def json_text(content: object) -> str:
    """What `write_json` writes."""
    return json.dumps(content, indent=1) + "\n"


@contextmanager
def lock(path: Path) -> Iterator[Callable[[], bool]]:
    """Hold the lock of a path, after waiting for a program that holds it; it is released however this program ends.

    On a file system without locks it prints a warning and holds nothing.

    Yields:
        A function: whether another program is waiting for the lock, and can continue from what is then at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock does not tell its holder that others wait for it; so those hold a second one while they do.
    holder, waiter = (FileLock(f"{path}.{role}", fallback_to_soft=False) for role in ("lock", "waiting"))

    def awaited() -> bool:
        if not holder.is_locked:  # there are no locks
            return False
        try:
            with waiter.acquire(timeout=0):
                Path(waiter.lock_file).unlink(missing_ok=True)
                return False
        except Timeout:
            return True

    try:
        holder.acquire(timeout=0)
    except Timeout:
        print(f"another program is at work on {path}; waiting for it to finish", flush=True)
        with waiter:
            holder.acquire()
            Path(waiter.lock_file).unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{path}: this file system has no locks; do not start another program with the same work", flush=True)
    try:
        yield awaited
    finally:
        if holder.is_locked:
            Path(holder.lock_file).unlink(missing_ok=True)  # programs that wait for it make a new one
            holder.release()
