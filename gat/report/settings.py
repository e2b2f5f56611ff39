"""Settings as they are shown to others: as YAML, without the folders of this machine."""

from pathlib import Path
from typing import Any

import yaml

from gat.config import Recipe


def plain_name(source: str) -> str:
    """A data source or teacher in one line; a path, which begins with `.`, `/` or `~`, is only its last name."""
    name = Path(source).absolute().name if source.startswith((".", "/", "~")) else source
    return " ".join(name.split())


def without_folders(value: Any) -> Any:
    """Settings with the plain names of all values."""
    if isinstance(value, dict):
        return {key: without_folders(own) for key, own in value.items()}
    return plain_name(value) if isinstance(value, str) else value


def as_yaml(settings: dict[str, Any]) -> str:
    """Settings in the form of params.yaml."""
    return yaml.safe_dump(without_folders(settings), sort_keys=False, allow_unicode=True)


def recipe_yaml(recipe: Recipe) -> str:
    """All settings of a training; what the run overrides is part of the other sections."""
    run = recipe.run.model_dump(exclude={"train", "loss", "repa"})
    others = {name: getattr(recipe, name).model_dump() for name in ("loss", "train", "repa")}
    return as_yaml({"run": run} | others)
