"""Processes that end with the one that started them."""

import ctypes
import os
import signal
import socket
import sys

import psutil

SLOT = "GAT_SLOT"  # set for stages that `stages.repro` runs side by side with others
LAUNCHED = "GAT_LAUNCHED"  # set for those of a stage that was started again: HOST:PID of what launches them
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Have Linux end this process when the one that started it dies, however it dies; at once if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    host, _, pid = os.environ.get(LAUNCHED, "").rpartition(":")
    if host == socket.gethostname() and not lives(int(pid)):
        sys.exit("what launched this process was killed")


def launched_by_this() -> str:
    """The value of `LAUNCHED` for processes that this one is going to launch."""
    return f"{socket.gethostname()}:{os.getpid()}"


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
