"""The teacher of each run: data/teachers.json, data/encoder -> data/teachers/RUN.

python -m stages teachers

Each folder has teacher.json, and a model in transformers' format if the run has a teacher.
"""

import hashlib
import json
from typing import Any

from gat.config import Params
from gat.data.vision import fetch_vision_model
from gat.files import atomic_write, write_json
from stages import TEACHERS, WANTED_TEACHERS


def main(_: Params) -> None:
    """Run the stage."""
    wanted: dict[str, dict[str, Any]] = json.loads(WANTED_TEACHERS.read_text())
    with atomic_write(TEACHERS) as folder:
        for run, info in wanted.items():
            target, key = folder / run, info.pop("key")
            target.mkdir(parents=True)
            digest = None
            if info["teacher"] is not None:
                fetch_vision_model(info["teacher"], target, key, info["random_weights"])
                with (target / "model.safetensors").open("rb") as file:
                    digest = hashlib.file_digest(file, "blake2b").hexdigest()
            write_json(target / "teacher.json", info | {"digest": digest})
