"""Loads pretrained autoencoders from a folder or a hub."""

from pathlib import Path
from typing import Any

import torch

from gat.config import ParamsError
from gat.data.kinds import find_vae, loading


def fetch_vae(name: str, folder: Path, key: str = "vae.pretrained") -> None:
    """Save an autoencoder of a hub or of another folder in a folder, and check that it can be used.

    Args:
        name: a hub id or a folder; the autoencoder may be in its subfolder `vae`.
        folder: new.
        key: of params.yaml, for errors.

    Raises:
        ParamsError: it is of another kind, or cannot be read, or its weights are missing or not finite.
    """
    with loading(name, key):
        vae, missing = _load(name, find_vae(name, key))
    if missing:
        raise ParamsError(f"{key}: {name!r} lacks weights: {missing[0]} and {len(missing) - 1} more")
    if not all(bool(torch.isfinite(weights).all()) for weights in vae.parameters()):
        raise ParamsError(f"{key}: {name!r} has weights that are not finite")
    vae.save_pretrained(folder)


def _load(name: str, subfolder: str) -> tuple[Any, list[str]]:
    """An autoencoder, and the names of weights that its files lack."""
    from diffusers import AutoencoderKL

    errors = []
    for variant in (None, "fp16"):
        try:
            vae, loaded = AutoencoderKL.from_pretrained(
                name, subfolder=subfolder, variant=variant, torch_dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:
            errors.append(error)
        else:
            return vae, sorted(loaded["missing_keys"])
    raise errors[0]
