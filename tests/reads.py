"""Runs stages in one process, and prints which keys of params.yaml each of them reads.

python tests/reads.py 'train S-2 0' …          (in a project's folder)
"""

import importlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from gat import config
from gat.config import Params, load_params

Section = config._Section
# Of sections that a run's overrides have made anew.
OVERRIDDEN = {"Loss": "loss", "Levels": "loss.levels", "Augment": "loss.augment"} | {
    "Optimization": "train",
    "Repa": "repa",
}


def sections(section: Any, key: str = "") -> Iterator[tuple[int, str]]:
    """Every section of params.yaml, with its key; but no default, which entries of the study share."""
    if section is not config.Run.model_fields["discriminator"].default:
        yield id(section), key
    for name, value in vars(section).items():
        own = f"{key}.{name}" if key else name
        for last, part in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(part, Section):
                yield from sections(part, f"{own}.{last}" if last else own)


def record(params: Params, read: set[str]) -> None:
    """Have every key that is read from now on added to a set."""
    keys, get = dict(sections(params)), Section.__getattribute__

    def note(section: Any, name: str) -> None:
        key = keys.get(id(section), OVERRIDDEN.get(type(section).__name__))
        if key is not None:
            read.add(f"{key}.{name}".strip("."))

    def getattribute(section: Any, name: str) -> Any:
        value = get(section, name)
        if name in ("model_dump", "__iter__"):
            note(section, "")
        elif name in type(section).model_fields and not isinstance(value, Section) and name != "study":
            note(section, name)
        return value

    def iterate(section: Any) -> Any:
        note(section, "")
        return iter(vars(section).items())

    Section.__getattribute__ = getattribute
    Section.__iter__ = iterate
    Params.check_latent_size = lambda *_: None  # it stops a stage, and decides no result


if __name__ == "__main__":
    params, read, found = load_params(), set[str](), {}
    record(params, read)
    for command in sys.argv[1:]:
        read.clear()
        sys.argv[1:] = command.split()[1:]
        importlib.import_module(f"stages.{command.split()[0]}").main(params)
        found[command] = sorted(key for key in read if key and not key.startswith("compute"))
    print(json.dumps(found))
