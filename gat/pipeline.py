"""A trained model as a diffusers pipeline: class labels in, images out, in one step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from gat.data.vae import decode
from gat.gan.networks import Z_DIM, Generator


class GATPipeline(DiffusionPipeline):
    """Class-conditional images in one step: `GATPipeline.from_pretrained(folder)(class_labels=[207])`.

    Args:
        generator: of latents.
        vae: their decoder.
        classes: names by label.
    """

    def __init__(self, generator: Generator, vae: AutoencoderKL, classes: list[str] | None = None) -> None:
        super().__init__()
        self.register_modules(generator=generator, vae=vae)
        self.register_to_config(classes=classes)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        truncation_psi: float = 0.0,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any, ...]:
        """One image for each label.

        Args:
            class_labels: integers from 0 to the number of classes − 1.
            truncation_psi: 0 (off; in StyleGAN 1) to 1, towards its class's mean style: less variety, fewer failures.
            guidance_scale: above 1, away from the mean style of all classes.
            generator: random state, or one for each label.
            output_type: `pil`, `np` (float (B, H, W, 3) in [0, 1]) or `latent` ((B, C, h, w), scaled).
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.

        Raises:
            ValueError: a label is not a class of the model, or the output type is unknown.
        """
        classes = self.generator.config["classes"]
        if wrong := [label for label in class_labels if not 0 <= label < classes]:
            raise ValueError(f"class_labels: {wrong[0]} is not allowed; allowed: 0 to {classes - 1}")
        if output_type not in ("pil", "np", "latent"):
            raise ValueError(f"output_type: {output_type!r} is not allowed; allowed: pil, np, latent")
        device = self.generator.w_avg.device
        labels = torch.tensor(list(class_labels), device=device)
        z = randn_tensor((len(labels), Z_DIM), generator=generator, device=device, dtype=self.generator.dtype)
        latents = self.generator(z, labels, truncation_psi, guidance_scale)
        images: np.ndarray | list[Any] | torch.Tensor = latents
        if output_type != "latent":
            images = decode(self.vae, latents).cpu().numpy() / 255.0
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        return ImagePipelineOutput(images=images) if return_dict else (images,)
