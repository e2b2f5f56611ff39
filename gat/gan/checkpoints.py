"""Checkpoints of a training, written atomically."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gat.files import atomic_write

KEEP_LATEST = 2


class Checkpoint(NamedTuple):
    """State of a training after a number of steps."""

    step: int
    tensors: dict[str, Tensor]
    history: list[dict[str, Any]]  # rows of metrics logged so far
    window: dict[str, list[float]]  # metrics of the steps after the last row of means


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `step-N.safetensors` and delete all but the latest two."""
    texts = {"history": checkpoint.history, "window": checkpoint.window}
    metadata = {"step": str(checkpoint.step)} | {name: json.dumps(value) for name, value in texts.items()}
    with atomic_write(folder / f"step-{checkpoint.step:08d}.safetensors") as path:
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, path, metadata=metadata)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEEP_LATEST]:
        old.unlink()


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[Checkpoint | None, list[str]]:
    """The latest readable checkpoint of a folder, or None, and a message for every broken file that was skipped."""
    messages = []
    place = "cpu" if torch.device(device).type == "cpu" else str(device)  # CPU processes have "cpu:0"
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, "pt", device=place) as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            messages.append(f"skipping checkpoint {path}, which cannot be read ({error})")
            continue
        history, window = (json.loads(metadata[name]) for name in ("history", "window"))
        return Checkpoint(int(metadata["step"]), tensors, history, window), messages
    return None, messages
