"""Pretrained image encoders in the format of the library transformers: which kinds, their inputs and their tokens.

Importing that library takes seconds, so that only functions that need it do.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gat.config import ParamsError
from gat.data.kinds import OF_IMAGES_AND_TEXTS, PREFIX, check_encoder, input_size, loading


class VisionModel:
    """A frozen image encoder.

    Args:
        folder: written by `fetch_vision_model`.
        device: where it runs.
        dtype: of its weights and outputs.

    Attributes:
        model: from the library transformers.
        size: side of its input images.
        mean, std: (1, 3, 1, 1) that normalize images in [0, 1].
        width: dimensions of its features.
        grid: number of patches along a side.

    Raises:
        ValueError: it takes no images of this size, or its patches are no square.
    """

    def __init__(
        self, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        from transformers import AutoModel
        from transformers.image_processing_base import ImageProcessingMixin
        from transformers.utils import logging

        logging.disable_progress_bar()  # of reading the file, not of downloads
        self.model = AutoModel.from_pretrained(folder, dtype=dtype).to(device).eval().requires_grad_(False)
        config = self.model.config
        self.width: int = config.hidden_sizes[-1] if config.model_type == "resnet" else config.hidden_size
        settings, _ = ImageProcessingMixin.get_image_processor_dict(str(folder))
        self.size = input_size(settings)
        statistics = torch.tensor([settings["image_mean"], settings["image_std"]], device=device)
        self.mean, self.std = statistics[:, None, :, None, None].unbind()
        with torch.no_grad():
            _, patches = features_of(self.model, torch.zeros(1, 3, self.size, self.size, device=device, dtype=dtype))
        self.grid = round(patches.shape[1] ** 0.5)
        if self.grid**2 != patches.shape[1]:
            raise ValueError(f"its {patches.shape[1]} patches are no square")


def untrained_vision_model(folder: str | Path) -> tuple[nn.Module, int]:
    """A model like that in a folder, with random weights, and the side of its input images."""
    from transformers import AutoConfig, AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    settings, _ = ImageProcessingMixin.get_image_processor_dict(str(folder))
    config: Any = AutoConfig.from_pretrained(folder)
    return AutoModel.from_config(getattr(config, "vision_config", config)), input_size(settings)


def features_of(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, d) and patches (B, T, d), row by row, of normalized images (B, 3, H, W).

    The features are the [cls] token after the last normalization, or without one the mean over the patches.
    """
    config: Any = model.config
    order = {}
    if config.model_type == "vit_mae":  # which sorts its patches by random numbers
        count = (config.image_size // config.patch_size) ** 2
        order["noise"] = torch.arange(count, device=pixels.device).expand(len(pixels), -1)
    output: Tensor = model(pixel_values=pixels, **order).last_hidden_state
    if output.ndim == 4:
        return output.mean((2, 3)), output.flatten(2).transpose(1, 2)
    prefix = PREFIX[config.model_type] or 0
    patches = output[:, prefix + (getattr(config, "num_register_tokens", None) or 0) :]
    return output[:, 0] if prefix else patches.mean(1), patches


def fetch_vision_model(name: str, folder: Path, key: str, random_weights: bool = False) -> None:
    """Save a pretrained encoder of a hub or of another folder in a folder, and check that it can be used.

    Args:
        name: a hub id or a folder.
        folder: new.
        key: of params.yaml, for errors.
        random_weights: instead of its own.

    Raises:
        ParamsError: it is of another kind, does not say how its images are normalized, cannot be read or used, or its
            weights are missing or not finite.
    """
    import transformers
    from transformers import AutoConfig, AutoModel
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.utils import logging

    logging.disable_progress_bar()

    def refuse(why: str) -> ParamsError:
        return ParamsError(f"{key}: {name!r} {why}")

    missing: list[str] = []
    with loading(name, key):
        settings = check_encoder(name, key)
        config = AutoConfig.from_pretrained(name)
        kind = config.model_type
        if random_weights:
            part = getattr(config, "vision_config", config) if kind in OF_IMAGES_AND_TEXTS else config
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModel.from_config(part)
        else:
            loader: Any = getattr(transformers, OF_IMAGES_AND_TEXTS.get(kind, "AutoModel"))
            model, loaded = loader.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
            missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
    if missing:
        raise refuse(f"lacks weights: {missing[0]} and {len(missing) - 1} more")
    if not all(bool(torch.isfinite(weights).all()) for weights in model.parameters()):
        raise refuse("has weights that are not finite")
    if kind == "vit_mae":
        model.config.mask_ratio = 0.0
    model.save_pretrained(folder)
    ImageProcessingMixin(**settings).save_pretrained(folder)
    try:
        VisionModel(folder)
    except Exception as error:  # of its own code, for images of this size
        raise refuse(f"cannot be used: {' '.join(str(error).split())[:300]}") from None
