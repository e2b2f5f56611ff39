"""Checkpoints of a training: whole files alone, whenever the program is killed."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from gat.training import Row, Trainer

KEPT = 2


def save_checkpoint(folder: Path, trainer: "Trainer", history: list["Row"]) -> None:
    """Write `step-N.safetensors` and drop all but the last two; a kill at any moment leaves whole files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{trainer.steps_done:08d}.safetensors"
    unfinished = path.with_suffix(".unfinished")
    metadata = {"step": str(trainer.steps_done), "history": json.dumps(history)}
    save_file({name: t.contiguous() for name, t in trainer.state().items()}, unfinished, metadata=metadata)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEPT]:
        old.unlink()


def load_checkpoint(folder: Path, trainer: "Trainer") -> tuple[list["Row"], list[str]]:
    """Put the newest whole checkpoint of `folder`, if any, into the trainer.

    Returns:
        The history it was saved with ([] without one), and a message for every broken file passed over.
    """
    messages = []
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, "pt", device=str(trainer.accelerator.device)) as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            messages.append(f"checkpoint {path} is broken ({error}) and passed over")
            continue
        trainer.load_state(tensors, int(metadata["step"]))
        return json.loads(metadata["history"]), messages
    return [], messages
