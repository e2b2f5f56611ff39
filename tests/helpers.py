"""A small training that several tests run."""

import subprocess
import sys
from typing import Any

import torch
from accelerate import Accelerator
from conftest import ROOT
from torch import Tensor

from gat.config import Compute, Loss, Optimization
from gat.data.images import Images
from gat.data.latents import Latents, TrainingBatches
from gat.gan.networks import Discriminator, Generator
from gat.gan.repa import Teacher
from gat.gan.training import Trainer

SIZE = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 10}
LOSS = Loss(scale_gamma_by_pixels=False)
TRAIN = {"steps": 20, "batch_size": 16, "learning_rate": 0.0113, "scale_lr_by_width": False, "ema_decay": 0.9}


def make_trainer(
    accelerator: Accelerator,
    latents: Latents,
    style_gain: float = 0.1,
    teacher: Teacher | None = None,
    images: Images | None = None,
    compute: Compute = Compute(),  # noqa: B008
    **train: Any,
) -> tuple[Trainer, TrainingBatches]:
    """A trainer of tiny networks, and its data; `train` replaces values of `TRAIN`."""
    settings = Optimization(**(TRAIN | train))
    torch.manual_seed(0)
    head = {} if teacher is None else {"repa_dim": teacher.width, "projector_dim": 32}
    generator, discriminator = Generator(**SIZE, style_gain=style_gain), Discriminator(**SIZE, cmap_dim=32, **head)
    scale = latents.scaling_factor
    trainer = Trainer(accelerator, generator, discriminator, scale, settings, LOSS, compute, teacher=teacher)
    rank, processes = accelerator.process_index, accelerator.num_processes
    return trainer, TrainingBatches(latents, settings.batch_size, 0, rank, processes, images)


def relative_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Of all tensors together."""
    assert got.keys() == want.keys()
    flat_got, flat_want = (torch.cat([state[name].flatten().double() for name in want]) for state in (got, want))
    return ((flat_got - flat_want).norm() / flat_want.norm()).item()


def on_two_processes(script: str, *arguments: object) -> None:
    """Run a test file as a program on two processes."""
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script, *map(str, arguments)],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=True,
    )


def assert_states_equal(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Networks and EMA, each within a relative error."""
    for part in ("generator.", "discriminator.", "ema."):
        own, theirs = ({k: t for k, t in state.items() if k.startswith(part)} for state in (got, want))
        assert relative_error(own, theirs) < tolerance, part
