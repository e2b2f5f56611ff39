"""Loads pretrained autoencoders from a folder or a hub."""

from pathlib import Path

import torch

from gat.config import ParamsError
from gat.data.kinds import VAE_FOLDERS, vae_problem


def fetch_vae(name: str, folder: Path, key: str = "vae.pretrained") -> None:
    """Save an autoencoder of a hub or of another folder in a folder, and check that it can be used.

    Args:
        name: a hub id or a folder; the autoencoder may be in its subfolder `vae`.
        folder: new.
        key: of params.yaml, for errors.

    Raises:
        ParamsError: it is of another kind, or its weights are missing or not finite.
    """
    from diffusers import AutoencoderKL

    reasons: list[str] = []
    for subfolder in VAE_FOLDERS:
        for variant in (None, "fp16"):
            try:
                config = AutoencoderKL.load_config(name, subfolder=subfolder)
                if problem := vae_problem(config):
                    reasons.insert(0, problem)
                    break
                vae, loaded = AutoencoderKL.from_pretrained(
                    name, subfolder=subfolder, variant=variant, torch_dtype=torch.float32, output_loading_info=True
                )
            except (OSError, ValueError) as error:
                reasons.append(f"cannot be read ({str(error).splitlines()[0]})")
                continue
            if missing := sorted(loaded["missing_keys"]):
                raise ParamsError(f"{key}: {name!r} lacks weights: {missing[0]} and {len(missing) - 1} more")
            if not all(bool(torch.isfinite(weights).all()) for weights in vae.parameters()):
                raise ParamsError(f"{key}: {name!r} has weights that are not finite")
            vae.save_pretrained(folder)
            return
    raise ParamsError(f"{key}: {name!r} {reasons[0]}")
