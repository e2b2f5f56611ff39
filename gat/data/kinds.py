"""Which pretrained models can be used, by their configurations. Imports nothing heavy."""

from collections.abc import Mapping
from typing import Any

VAE = "AutoencoderKL"  # a class of diffusers
VAE_FOLDERS = ("", "vae")  # of a repository, in which it is
# Image encoders of transformers by `model_type`: the number of tokens before those of the patches, registers not
# included; None: a feature map.
PREFIX = {
    "clip_vision_model": 1,
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 1,
    "dinov3_vit": 1,
    "ijepa": 0,
    "resnet": None,
    "siglip_vision_model": 0,
    "vit": 1,
    "vit_mae": 1,
}
OF_IMAGES_AND_TEXTS = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}  # classes of their part for images


def vae_problem(config: Mapping[str, Any]) -> str | None:
    """Why an autoencoder with this `config.json` cannot be used; None if it can be."""
    kind = config.get("_class_name")
    if kind != VAE:
        return f"is {f'an {kind}' if kind else 'no model of diffusers'}; allowed: {VAE}"
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key):
            return f"has {key} {config[key]}; allowed: autoencoders whose latents are only scaled"
    return None


def encoder_problem(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> str | None:
    """Why an encoder cannot be used, by its `config.json` and `preprocessor_config.json`; None if it can be."""
    kind = config.get("model_type")
    if kind not in PREFIX and kind not in OF_IMAGES_AND_TEXTS:
        return f"is a {kind}; allowed: {', '.join(sorted({*PREFIX, *OF_IMAGES_AND_TEXTS}))}"
    if preprocessor is None:
        return "has no preprocessor_config.json, which says how its images are normalized"
    if missing := {"image_mean", "image_std"} - preprocessor.keys():
        return f"has no {' and '.join(sorted(missing))} for its images in preprocessor_config.json"
    return None
