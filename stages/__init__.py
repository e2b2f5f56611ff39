"""The stages of dvc.yaml, a script each, and what they all begin with."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gat.config import Params, ParamsError, load_params

if TYPE_CHECKING:
    from accelerate import Accelerator

IMAGES = Path("data/images")
EXTRACTOR = Path("data/extractor")
REFERENCE = Path("data/reference.npz")
VAE = Path("data/vae")
LATENTS = Path("data/latents")
RUNS = Path("runs")  # RUN/pipeline
RESULTS = Path("results")  # RUN/live, RUN/run.json, RUN/metrics.json, RUN/samples.png
REPORTS = Path("reports")
CHECKPOINTS = Path(os.environ.get("GAT_CHECKPOINTS", "checkpoints"))  # of unfinished runs; not an out of DVC's


def run_stage(stage: Callable[[Params], None], distributed: bool = False) -> None:
    """Check all of params.yaml, then run a stage; a wrong value ends the program with one line that says which.

    A `distributed` stage starts itself again under `accelerate launch` where Accelerate is configured or there are
    several GPUs: what dvc.yaml runs is then the same on every machine.
    """
    try:
        params = load_params()
        if distributed and not _launched() and _many_devices():
            module = sys.modules["__main__"].__spec__
            os.execvp("accelerate", ["accelerate", "launch", "-m", module.name if module else "", *sys.argv[1:]])
        stage(params)
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")


def _launched() -> bool:
    return "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def _many_devices() -> bool:
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file).exists() or torch.cuda.device_count() > 1


def run_named(params: Params) -> str:
    """The run named on the command line.

    Raises:
        ParamsError: there is no such run.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    params.settings(name)
    return name


def make_accelerator() -> "Accelerator":
    """Accelerate as the machine's own configuration has it, with all of a CPU's cores and TF32 on a GPU.

    (`accelerate launch` gives a CPU process one thread.)
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

    torch.set_float32_matmul_precision("high")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // local))
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers)
