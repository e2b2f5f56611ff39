"""The machine: devices, processes and threads."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin

from gat.config import Compute
from gat.files import atomic_write, lock

PROCESS_GROUP_TIMEOUT = timedelta(days=1)  # processes may wait for one that downloads ImageNet
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota; processes of a stage share them."""
    from joblib import cpu_count

    return max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def make_accelerator(compute: Compute = Compute(), mixed_precision: str | None = None) -> Accelerator:  # noqa: B008
    """An Accelerator with the machine's own configuration; with TF32 on GPUs.

    PyTorch uses `compute.threads` threads or, if that is null, this process's share of the cores.

    Args:
        compute: frozen.
        mixed_precision: `no`, `bf16` or `fp16` in place of the machine's own.
    """
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(compute.threads or cores())
    if not torch.cuda.is_available():
        keep_memory()
    handlers = [
        DistributedDataParallelKwargs(broadcast_buffers=False),
        InitProcessGroupKwargs(timeout=PROCESS_GROUP_TIMEOUT),
    ]
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=mixed_precision,
        kwargs_handlers=handlers,
        # The trainer accumulates itself; ACCELERATE_GRADIENT_ACCUMULATION_STEPS would scale its losses again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def keep_memory() -> None:
    """Have glibc's malloc keep freed memory for reuse.

    Requesting it from the kernel again for every large tensor takes up to a quarter of a training step on a CPU.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # not glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)


@contextmanager
def exclusive(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold `gat.files.lock` for all processes of this program; only on the main one can its function return True."""
    state = PartialState()
    with lock(folder) if state.is_main_process else nullcontext(lambda: False) as awaited:
        state.wait_for_everyone()
        yield awaited


def publish(folder: Path, target: Path, keep: bool = False) -> None:
    """Move a complete folder to `target`, or copy it, once all processes have finished with it."""
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        with atomic_write(target) as temporary:
            (shutil.copytree if keep else shutil.move)(folder, temporary)
    state.wait_for_everyone()
