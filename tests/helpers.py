"""Changed params, a small training, and programs on two processes, for several files of tests."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
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


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = base.keys() & {key for key, value in changes.items() if isinstance(value, dict)}
    return base | {key: merged(base[key] or {}, value) if key in both else value for key, value in changes.items()}


def changed_params(changes: str, path: str = "params.yaml") -> dict[str, Any]:
    """The content of a file of parameters with some keys changed, those of a YAML text."""
    return merged(yaml.safe_load((ROOT / path).read_text()), yaml.safe_load(changes) or {})


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


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def save_vision_model(folder: Path, kind: str = "Dinov2", size: int = 224, **config: Any) -> Path:
    """A vision transformer of random weights, in transformers' own format."""
    import transformers
    from transformers.image_processing_base import ImageProcessingMixin

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 70, "patch_size": 14}
    sizes |= {"mlp_ratio": 2} if kind.startswith("Dinov2") else {"intermediate_size": 48}
    settings = getattr(transformers, f"{kind}Config")(**sizes | config)
    getattr(transformers, f"{kind}Model")(settings).save_pretrained(folder)
    ImageProcessingMixin(crop_size={"height": size, "width": size}, **IMAGENET).save_pretrained(folder)
    return folder


def save_teacher(folder: Path) -> Path:
    """A DINOv2 of random weights, as data/teachers has it."""
    return save_vision_model(folder)


def on_processes(count: int, script: str | Path, *arguments: object) -> None:
    """Run a test file as a program on several processes."""
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), script, *map(str, arguments)],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=True,
    )


def assert_states_equal(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Networks and EMA, each within a relative error."""
    assert got.keys() == want.keys()
    for part in ("generator.", "discriminator.", "ema."):
        own, theirs = (torch.cat([s[k].flatten() for k in want if k.startswith(part)]) for s in (got, want))
        assert (own - theirs).norm() < tolerance * theirs.norm(), part
