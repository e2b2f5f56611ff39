"""The teacher of each run: params.yaml, data/encoder -> data/teachers/RUN.

python -m stages teachers

Each folder has teacher.json, and a model in transformers' format if the run has a teacher.
"""

import hashlib

from gat.config import MODEL, Params
from gat.data.vision import fetch_vision_model
from gat.files import atomic_write, write_json
from stages import TEACHERS, teacher_folder


def main(params: Params) -> None:
    """Run the stage."""
    with atomic_write(TEACHERS) as folder:
        for name in (MODEL, *params.trained_runs, *params.rates.names):
            run, repa, target = params.run(name), params.repa_of(name), folder / teacher_folder(params, name).name
            key = params.key(name) if run.repa else ""
            if target.exists() or run.pretrained is not None:
                continue
            target.mkdir(parents=True)
            info = {"teacher": repa.teacher, "random_weights": repa.random_weights, "digest": None}
            if repa.teacher is not None:
                fetch_vision_model(repa.teacher, target, f"{key}.repa.teacher".lstrip("."), repa.random_weights)
                with (target / "model.safetensors").open("rb") as file:
                    info["digest"] = hashlib.file_digest(file, "blake2b").hexdigest()
            write_json(target / "teacher.json", info)
