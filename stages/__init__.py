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


def run_stage(stage: Callable[[Params], None]) -> None:
    """Check all of params.yaml, then run a stage; a wrong value ends the program with one line that says which."""
    try:
        stage(load_params())
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")


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

    `accelerate launch` gives a CPU process one thread unless told otherwise.
    """
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs

    torch.set_float32_matmul_precision("high")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    return Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=handlers)
