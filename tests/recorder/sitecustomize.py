"""Writes which keys of params.yaml each `python -m stages …` reads, in a file of the folder that READS names.

Python imports it at the start of every process with this folder and the project's on its PYTHONPATH.
"""

import atexit
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENTRIES = ("study", "samples")  # of which a stage reads one by its name


def record() -> None:
    """Have every key that is read from params.yaml from now on written when this process ends."""
    from gat import config

    base, load = config._Section, config.load_params
    get = base.__getattribute__
    recipe = config.Params.recipe
    keys: dict[int, str] = {}
    read: set[str] = set()
    kept: list[Any] = []  # sections whose id is a key

    def sections(section: Any, key: str = "") -> Iterator[tuple[int, str]]:
        """Every section, with its key; but no default, which entries of the study share."""
        if section is not config.Run.model_fields["discriminator"].default:
            yield id(section), key
        for name, value in vars(section).items():
            own = f"{key}.{name}" if key else name
            for last, part in value.items() if isinstance(value, dict) else [("", value)]:
                if isinstance(part, base):
                    yield from sections(part, f"{own}.{last}" if last else own)

    def note(section: Any, name: str) -> None:
        if id(section) in keys:
            read.add(f"{keys[id(section)]}.{name}".strip("."))

    def getattribute(section: Any, name: str) -> Any:
        value = get(section, name)
        if name in ("model_dump", "__iter__"):
            note(section, "")
        elif name in type(section).model_fields and not isinstance(value, base) and name not in ENTRIES:
            note(section, name)
        return value

    def iterate(section: Any) -> Any:
        note(section, "")
        return iter(vars(section).items())

    def load_and_record() -> Any:
        params = load()
        read.clear()  # what validation has read
        keys.update(sections(params))
        return params

    def recipe_and_record(params: Any, name: str) -> Any:
        """A run's overrides make sections anew."""
        made = recipe(params, name)
        for key in ("loss", "train", "repa"):
            kept.append(getattr(made, key))
            keys.update(sections(kept[-1], key))
        return made

    def unrecorded(check: Callable[..., None]) -> Callable[..., None]:  # it may stop a stage, and decides no result
        def checked(*arguments: Any, **more: Any) -> None:
            before = {*read}
            check(*arguments, **more)
            read.intersection_update(before)

        return checked

    def write() -> None:
        found = sorted(key for key in read if key and not key.startswith("compute"))
        Path(os.environ["READS"], " ".join(sys.orig_argv[3:])).write_text(json.dumps(found))

    base.__getattribute__, base.__iter__ = getattribute, iterate
    config.load_params, config.Params.recipe = load_and_record, recipe_and_record
    for name in ("check_files", "check_latent_size"):
        setattr(config.Params, name, unrecorded(getattr(config.Params, name)))
    atexit.register(write)


if sys.orig_argv[1:3] == ["-m", "stages"]:
    record()
