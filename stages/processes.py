"""What processes need to start, and how those that this project starts end: with the process that started them."""

import ctypes
import fcntl
import getpass
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import psutil

SLOT = "GAT_SLOT"  # set where other stages run on the same machine, as under `stages.repro`
LAUNCHED = "GAT_LAUNCHED"  # set for the processes of a stage that relaunched itself: MACHINE:PID of their launcher
PATIENCE_SECONDS = 300  # for an interrupted training to write its checkpoint, which takes minutes for a large model
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def check_user() -> None:
    """Check that this user id has a name, before PyTorch asks for it.

    Raises:
        SystemExit: it has none.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        sys.exit("this user id has no name here, which PyTorch needs; set one: export USER=me")


def end_with_parent() -> None:
    """On Linux, have this process sent SIGTERM when its parent dies, even by SIGKILL.

    The kernel watches the thread that started this process, not the parent as a whole; it must live as long.

    Raises:
        SystemExit: the launcher is dead already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    machine, _, pid = os.environ.get(LAUNCHED, "").rpartition(":")
    if machine == _machine() and not is_alive(int(pid)):
        sys.exit("the launcher of this process was killed")


def launched_by_this() -> str:
    """The value of `LAUNCHED` for processes that this one is going to launch."""
    return f"{_machine()}:{os.getpid()}"


def _machine() -> str:
    """Where a process ID is valid: the host, and the container on it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{namespace.readlink() if namespace.is_symlink() else ''}"


def is_alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_dvc(path: Path = Path(".dvc/tmp/lock")) -> None:
    """Wait until no process holds DVC's lock, and say which one does.

    `dvc repro` gives up if it does not get this lock within three seconds of a stage's end, and its next call discards
    what the stage has made.
    """
    with suppress(OSError), path.open() as file:  # there is no lock, or there are none on this file system
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip()
            print(
                f"waiting for process {holder}{_command(holder)}, which holds DVC's lock", file=sys.stderr, flush=True
            )
            fcntl.flock(file, fcntl.LOCK_SH)


def _command(pid: str) -> str:
    """The command of a process in parentheses, if it can be seen."""
    with suppress(psutil.Error, ValueError):
        return f" ({' '.join(psutil.Process(int(pid)).cmdline())})"
    return ""
