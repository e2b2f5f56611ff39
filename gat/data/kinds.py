"""Which pretrained models can be used, by their configurations. Imports nothing heavy.

A model is a folder or a hub id, and `key` the key of params.yaml that names it.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from gat.config import ParamsError
from gat.files import is_disk_full

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
ENCODERS = sorted({*PREFIX, *OF_IMAGES_AND_TEXTS})


def vae_problem(config: Mapping[str, Any]) -> str | None:
    """Why an autoencoder with this `config.json` cannot be used; None if it can be."""
    kind = config.get("_class_name")
    if kind != VAE:
        return f"is {f'an {kind}' if kind else 'no model of diffusers'}; allowed: {VAE}"
    for key in ("in_channels", "out_channels"):
        if config.get(key, 3) != 3:
            return f"has {key} {config[key]}; allowed: 3"
    scale = config.get("scaling_factor", 1)  # without one, diffusers has that of Stable Diffusion
    if not _is_number(scale) or scale <= 0:
        return f"has scaling_factor {scale}; allowed: a number above 0"
    for key in ("shift_factor", "latents_mean", "latents_std"):
        if config.get(key):
            return f"has {key} {config[key]}; allowed: autoencoders whose latents are only scaled"
    return None


def encoder_problem(config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None) -> str | None:
    """Why an encoder cannot be used, by its `config.json` and `preprocessor_config.json`; None if it can be."""
    kind = config.get("model_type")
    if kind not in ENCODERS:
        return f"is {f'a {kind}' if kind else 'no model of transformers'}; allowed: {', '.join(ENCODERS)}"
    channels = (config.get("vision_config") or config).get("num_channels", 3)
    if channels != 3:
        return f"has num_channels {channels}; allowed: 3"
    if preprocessor is None:
        return "has no preprocessor_config.json, which says how its images are normalized"
    if missing := {"image_mean", "image_std"} - preprocessor.keys():
        return f"has no {' and '.join(sorted(missing))} for its images in preprocessor_config.json"
    for key, allowed in (("image_mean", "three numbers"), ("image_std", "three numbers above 0")):
        values = preprocessor[key]
        fits = isinstance(values, list) and len(values) == 3 and all(map(_is_number, values))
        if not fits or (key == "image_std" and min(values) <= 0):
            return f"has {key} {values} in preprocessor_config.json; allowed: {allowed}"
    for key in ("do_rescale", "do_normalize"):
        if preprocessor.get(key) is False:
            return f"has {key} false in preprocessor_config.json; allowed: true"
    factor = preprocessor.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or not math.isclose(factor, 1 / 255, rel_tol=0.01):
        return f"has rescale_factor {factor} in preprocessor_config.json; allowed: 1/255"
    try:
        input_size(preprocessor)
    except ValueError as error:
        return str(error)
    return None


def input_size(preprocessor: Mapping[str, Any]) -> int:
    """The side of an encoder's images, in pixels, by its `preprocessor_config.json`.

    Raises:
        ValueError: it has none.
    """
    size = own = preprocessor.get("crop_size") or preprocessor.get("size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if not _is_number(size) or size < 1:
        raise ValueError(
            f"has the size {own} for its images in preprocessor_config.json; allowed: crop_size or size, a number or "
            "one with height or shortest_edge"
        )
    return int(size)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_encoder(name: str, key: str) -> dict[str, Any]:
    """The `preprocessor_config.json` of an encoder whose configuration says that it can be used.

    Raises:
        ParamsError: it says that it cannot be used, or is no JSON.
        Exception: of the hub, if it cannot be reached.
    """
    config = read_config(name, "config.json", key)
    if config is None:
        raise ParamsError(f"{key}: {name!r} has no config.json; allowed: a model in transformers' format")
    preprocessor = read_config(name, "preprocessor_config.json", key)
    if (problem := encoder_problem(config, preprocessor)) is not None or preprocessor is None:
        raise ParamsError(f"{key}: {name!r} {problem}")
    return preprocessor


def find_vae(name: str, key: str) -> str:
    """The subfolder of a model with an autoencoder whose configuration says that it can be used.

    Raises:
        ParamsError: there is none, or a configuration is no JSON.
        Exception: of the hub, if it cannot be reached.
    """
    problems, errors = [], []
    for folder in VAE_FOLDERS:
        try:
            config = read_config(name, f"{folder}/config.json".lstrip("/"), key)
        except ParamsError:
            raise
        except Exception as error:  # without a network, the hub's cache may have the other folder
            errors.append(error)
            continue
        if config is not None and (problem := vae_problem(config)) is None:
            return folder
        problems += [] if config is None else [problem]
    if errors and not problems:
        raise errors[0]
    missing = "has no config.json; allowed: a model in diffusers' format"
    raise ParamsError(f"{key}: {name!r} {problems[0] if problems else missing}")


def read_config(name: str, file: str, key: str) -> dict[str, Any] | None:
    """A JSON file of a model; None if the model has none.

    Raises:
        ParamsError: it is no JSON.
        Exception: of the hub, if it cannot be reached or has no such model.
    """
    path = Path(name) / file
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        cached = try_to_load_from_cache(name, file)
        try:
            path = Path(cached if isinstance(cached, str) else hf_hub_download(name, file))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # it could not be asked for
                raise
            return None
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ParamsError(f"{key}: {name!r} cannot be read ({file}: {error})") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{key}: {name!r} cannot be read ({file} is no JSON object)")
    return content


@contextmanager
def loading(name: str, key: str) -> Iterator[None]:
    """Turns whatever loading a model raises into one line that names it; but a full disk is not the model's fault.

    Raises:
        ParamsError: something was raised.
    """
    try:
        yield
    except ParamsError:
        raise
    except Exception as error:  # libraries raise OSError, SafetensorError, UnpicklingError, …
        if is_disk_full(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ParamsError(f"{key}: {name!r} cannot be read ({type(error).__name__}: {reason})") from None
