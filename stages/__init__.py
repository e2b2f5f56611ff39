"""The stages of dvc.yaml, a script each, and what they all begin with."""

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gat.config import MODEL, Compute, Params, ParamsError, Training, load_params

if TYPE_CHECKING:
    from accelerate import Accelerator

IMAGES = Path("data/images")
EXTRACTOR = Path("data/extractor")
REFERENCE = Path("data/reference.npz")
FLOORS, REALS = Path("data/floors.json"), Path("data/reals.png")
VAE = Path("data/vae")
LATENTS = Path("data/latents")
RUNS = Path("runs")  # RUN/seed-N/pipeline and model/pipeline
RESULTS = Path("results")  # beside those: live, run.json, metrics.json, evaluation.json, samples.png
REPORTS = Path("reports")
SLOT = "GAT_SLOT"  # set for stages that `stages.repro` runs side by side with others
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LAUNCHED = "GAT_LAUNCHED"  # set for the processes of a stage that started itself again
PATIENCE = timedelta(days=1)  # of processes that wait for another, which may be fetching ImageNet
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
CHECKPOINTS = Path(os.environ.get("GAT_CHECKPOINTS", "checkpoints"))  # of unfinished runs; not an out of DVC's


def run_stage(stage: Callable[[Params], None], distributed: bool = False) -> None:
    """Check all of params.yaml, then run a stage; a wrong value or Ctrl-C ends the program with one line.

    A `distributed` stage starts itself again under `accelerate launch` where Accelerate is configured or there are
    several GPUs, or under the command that `GAT_LAUNCH` holds: what dvc.yaml runs is then the same on every machine.
    """
    try:
        params = load_params()
        if SLOT in os.environ:
            end_with_parent()
        launcher = os.environ.get("GAT_LAUNCH")
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
        if distributed and not _launched() and (launcher or _many_devices()):
            module = sys.modules["__main__"].__spec__
            os.environ[LAUNCHED] = "1"
            command = shlex.split(launcher or "accelerate launch")
            if not launcher and SLOT in os.environ:
                command += ["--main_process_port", "0"]  # a free one, for the slots must not meet
            if not launcher and precision:  # which `accelerate launch` would overwrite
                command += ["--mixed_precision", precision]
            command += ["-m", module.name if module else "", *sys.argv[1:]]
            os.execvp(command[0], command)
        stage(params)
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; run it again and it goes on from what it saved", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)


def end_with_parent() -> None:
    """Have Linux end this process when the one that started it dies, however it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _launched() -> bool:
    return "LOCAL_RANK" in os.environ or LAUNCHED in os.environ


def _many_devices() -> bool:
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file).exists() or torch.cuda.device_count() > 1


def workplace(stage: str, *key: Any) -> Path:
    """Where a stage keeps what it has done so far of what `key` defines; it survives a kill, and `publish` moves it."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=10)
    return CHECKPOINTS / f"{stage}-{digest.hexdigest()}"


def publish(folder: Path, out: Path) -> None:
    """Make a folder the out of a stage, once every process has finished with it."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.move(folder, out)
    state.wait_for_everyone()


def training_named(params: Params) -> Training:
    """The training that the command line names, by a run of the study and a seed, or as `model`.

    Raises:
        ParamsError: there is no such run, or no seed.
    """
    name, seed = (*sys.argv[1:3], "", "")[:2]
    params.settings(name)
    if name != MODEL and not seed.isdecimal():
        raise ParamsError(f"seed: {seed!r} is not allowed; allowed: a number after the run's name, such as {name} 0")
    return Training(name, params.model.seed if name == MODEL else int(seed))


def make_accelerator(compute: Compute | None = None) -> "Accelerator":
    """Accelerate as the machine's own configuration has it, with TF32 on a GPU, on a CPU with `compute.threads`.

    Where that is null a process takes its share of the cores (`accelerate launch` gives it one). A CPU's memory is kept
    once the system has given it, since asking again for every large tensor costs up to a quarter of a training step.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    torch.set_float32_matmul_precision("high")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = compute.threads if compute is not None else None
    torch.set_num_threads(threads or max(1, cores // local))
    if sys.platform == "linux" and not torch.cuda.is_available():
        with contextlib.suppress(OSError, AttributeError):  # a C library other than glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_MAX, 0)
            libc.mallopt(M_TRIM_THRESHOLD, -1)
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=PATIENCE)]
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers)
