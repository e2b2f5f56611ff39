"""A trained model as a diffusers pipeline: class labels in, images out, in one step."""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from gat.data.vae import decode
from gat.gan.networks import Z_DIM, Generator

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class GATPipeline(DiffusionPipeline):
    """Class-conditional images in one step: `GATPipeline.from_pretrained(folder)(class_labels=[207])`.

    Args:
        generator: of latents.
        vae: their decoder.
        classes: names by label; None: those of the pipeline that the generator was in before, if any.
    """

    def __init__(self, generator: Generator, vae: AutoencoderKL, classes: list[str] | None = None) -> None:
        super().__init__()
        if classes is None:
            classes = getattr(generator, "class_names", None)
        generator.class_names = classes  # so that `GATPipeline(**pipeline.components)` knows them
        self.register_modules(generator=generator, vae=vae)
        self.register_to_config(classes=classes)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        truncation_psi: float = 0.0,
        guidance_scale: float = 1.0,
        num_images_per_label: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """Images of some labels.

        Args:
            class_labels: names of classes, or integers from 0 to the number of classes − 1.
            truncation_psi: 0 (off; in StyleGAN 1) to 1, towards its class's mean style: less variety, fewer failures.
            guidance_scale: above 1, away from the mean style of all classes.
            num_images_per_label: how many of each, one after the other.
            generator: random state, or one for each image.
            output_type: `pil`, `np` (float (B, H, W, 3) in [0, 1]), `pt` (the same as a tensor (B, 3, H, W)) or
                `latent` ((B, C, h, w), scaled).
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.

        Raises:
            ValueError: there is no label or no such class, generators and images differ in number, or an argument is
                out of its range.
        """
        labels = self._labels(class_labels, num_images_per_label)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: {output_type!r} is not allowed; allowed: {', '.join(OUTPUT_TYPES)}")
        if not 0 <= truncation_psi <= 1:
            raise ValueError(f"truncation_psi: {truncation_psi} is not allowed; allowed: 0 to 1")
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(f"generator: {len(generator)} of them are not one for each of {len(labels)} images")
        device, dtype = self.generator.w_avg.device, self.generator.dtype
        z = randn_tensor((len(labels), Z_DIM), generator=generator, device=device, dtype=dtype)
        latents = self.generator(z, torch.tensor(labels, device=device), truncation_psi, guidance_scale)
        images: np.ndarray | list[Any] | torch.Tensor = latents
        if output_type != "latent":
            pixels = decode(self.vae, latents)
            images = pixels.cpu().numpy() / 255.0
            images = self.numpy_to_pil(images) if output_type == "pil" else images
            images = pixels.permute(0, 3, 1, 2) / 255.0 if output_type == "pt" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, class_labels: int | str | Sequence[int | str], each: int) -> list[int]:
        """Labels of all images."""
        count, names = self.generator.config["classes"], self.config.classes or []
        wanted = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        labels = []
        for label in wanted:
            if isinstance(label, str):
                if label not in names:
                    near = difflib.get_close_matches(label, names, n=5) or names[:5] or ["integers; it has no names"]
                    raise ValueError(f"class_labels: {label!r} is not allowed; allowed are names such as {near}")
                label = names.index(label)
            if not 0 <= label < count:
                raise ValueError(f"class_labels: {label} is not allowed; allowed: 0 to {count - 1}")
            labels += [int(label)] * each
        if not labels:
            raise ValueError("class_labels, num_images_per_label: at least one image is needed")
        return labels
