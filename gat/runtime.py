"""The machine: devices, processes and threads."""

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin

from gat.config import Compute, ParamsError
from gat.files import atomic_write, lock

COLLECTIVE_TIMEOUT = timedelta(minutes=15)  # after which processes that wait for another one's share of a sum give up
PATIENCE = timedelta(days=1)  # for a process that downloads ImageNet, or for another program's training
PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # names in params.yaml and in Accelerate
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt


def cores() -> int:
    """Cores that this process may use, by its affinity and its container's quota; processes of a stage share them."""
    from joblib import cpu_count

    return max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def make_accelerator(compute: Compute = Compute(), precision: str | None = None) -> Accelerator:  # noqa: B008 (frozen)
    """An Accelerator for this machine. Precision is a setting of params.yaml, not of Accelerate.

    PyTorch uses `compute.threads` threads or, if that is null, this process's share of the cores.

    Args:
        compute: as in params.yaml.
        precision: in place of `compute.precision`, with which GPUs use TF32 for what is in float32.

    Raises:
        ParamsError: see `choose_precision`.
    """
    torch.set_num_threads(compute.threads or cores())
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        keep_memory()
    else:
        torch.set_float32_matmul_precision("high" if precision is None else "highest")  # on newer CPUs TF32, too
        torch.backends.cudnn.allow_tf32 = precision is None
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=PRECISIONS[choose_precision(precision or compute.precision)],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
        # The trainer accumulates itself; ACCELERATE_GRADIENT_ACCUMULATION_STEPS would scale its losses again.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.num_processes > 1:
        for timeout in (COLLECTIVE_TIMEOUT, PATIENCE):
            _host_group(timeout)  # now, when no process waits long for another
    return accelerator


def choose_precision(wanted: str) -> str:
    """`bf16` or `fp32`; `auto` is bf16 on GPUs that compute in it.

    Raises:
        ParamsError: this GPU does not compute in bf16.
    """
    on_gpu = torch.cuda.is_available()
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "auto":
        return "bf16" if has_bf16 else "fp32"
    if wanted == "bf16" and on_gpu and not has_bf16:
        raise ParamsError(f"compute.precision: {torch.cuda.get_device_name()} has no bf16; allowed: fp32, auto")
    return wanted


def keep_memory() -> None:
    """Have glibc's malloc keep freed memory for reuse.

    Requesting it from the kernel again for every large tensor takes up to a quarter of a training step on a CPU.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # not glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)


@cache
def _host_group(timeout: timedelta) -> dist.ProcessGroup:
    """All processes, for what they agree on without their GPUs."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)
    return group


def wait_for_everyone() -> None:
    """Wait until all processes are here, for up to a day."""
    if PartialState().num_processes > 1:
        dist.barrier(_host_group(PATIENCE))


@contextmanager
def main_process_first() -> Iterator[None]:
    """Accelerate's, but the others wait for up to a day."""
    is_main = PartialState().is_main_process
    if not is_main:
        wait_for_everyone()
    yield
    if is_main:
        wait_for_everyone()


def any_process(*conditions: bool) -> list[bool]:
    """For each condition, whether it is true on any process. Does not wait for GPUs."""
    if PartialState().num_processes == 1:
        return list(conditions)
    flags = torch.tensor(conditions, dtype=torch.int32)
    dist.all_reduce(flags, dist.ReduceOp.MAX, _host_group(COLLECTIVE_TIMEOUT))
    return [flag > 0 for flag in flags.tolist()]


@contextmanager
def exclusive(folder: Path) -> Iterator[Callable[[], bool]]:
    """Hold `gat.files.lock` for all processes of this program; only on the main one can its function return True."""
    state = PartialState()
    with lock(folder) if state.is_main_process else nullcontext(lambda: False) as awaited:
        wait_for_everyone()
        yield awaited


def publish(folder: Path, target: Path, keep: bool = False) -> None:
    """Move a complete folder to `target`, or copy it, once all processes have finished with it."""
    state = PartialState()
    wait_for_everyone()
    if state.is_main_process:
        with atomic_write(target) as temporary:
            (shutil.copytree if keep else shutil.move)(folder, temporary)
    wait_for_everyone()
