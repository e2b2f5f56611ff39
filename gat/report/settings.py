"""Settings as they are shown to others: as YAML, without the folders of this machine."""

from pathlib import Path
from typing import Any

import yaml

from gat.config import Recipe


def plain_name(source: str) -> str:
    """A data source or teacher without the folders in which this machine has it."""
    path = Path(source).expanduser()
    return " ".join((path.name if path.exists() else source).split())


def without_folders(value: Any) -> Any:
    """Settings in which a path is only its last name."""
    if isinstance(value, dict):
        return {key: without_folders(own) for key, own in value.items()}
    return plain_name(value) if isinstance(value, str) and value.startswith((".", "/", "~")) else value


def as_yaml(settings: dict[str, Any]) -> str:
    """Settings in the form of params.yaml."""
    return yaml.safe_dump(without_folders(settings), sort_keys=False, allow_unicode=True)


def recipe_yaml(recipe: Recipe) -> str:
    """All settings of a training; what the run overrides is part of the other sections."""
    run = recipe.run.model_dump(exclude={"train", "loss", "repa"})
    others = {name: getattr(recipe, name).model_dump() for name in ("loss", "train", "repa")}
    return as_yaml({"run": run} | others)
