"""Processes that end with the one that started them."""

import ctypes
import signal
import sys

SLOT = "GAT_SLOT"  # set for stages that `stages.repro` runs side by side with others
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """Have Linux end this process when the one that started it dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
