"""Processes that end with the one that started them."""

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import psutil

SLOT = "GAT_SLOT"  # set for stages that `stages.repro` runs side by side with others
LAUNCHED = "GAT_LAUNCHED"  # set for those of a stage that was started again: what launches them
PATIENCE_SECONDS = 300  # with a training that was told to stop: a large model's checkpoint takes its time
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Have Linux end this process when the one that started it dies, however it dies; at once if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    machine, _, pid = os.environ.get(LAUNCHED, "").rpartition(":")
    if machine == _machine() and not lives(int(pid)):
        sys.exit("what launched this process was killed")


def launched_by_this() -> str:
    """The value of `LAUNCHED` for processes that this one is going to launch."""
    return f"{_machine()}:{os.getpid()}"


def _machine() -> str:
    """Where a number of a process has its meaning: a host, or a container on it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}:{namespace.readlink() if namespace.is_symlink() else ''}"


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
