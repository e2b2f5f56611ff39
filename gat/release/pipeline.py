"""A trained model as a diffusers pipeline: from class labels to images in one step."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from gat.data.pixels import decode
from gat.gan.networks import Z_DIM, Generator
from gat.release.standalone import write_standalone

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


class GATPipeline(DiffusionPipeline):
    """Class-conditional generation in one step: `GATPipeline.from_pretrained(folder)(class_labels=[207])`.

    Args:
        generator: `Generator` of latents.
        vae: the autoencoder whose decoder turns latents into images.
        classes: class names by label; None: those of the pipeline that the generator was part of before, if any.
    """

    # `ModelMixin`, since a folder's generator is of the class in its own file; `Optional`, for diffusers 0.35.
    def __init__(
        self,
        generator: ModelMixin,
        vae: AutoencoderKL,
        classes: Optional[list[str]] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        if classes is None:
            classes = getattr(generator, "class_names", None)
        generator.class_names = classes  # which `GATPipeline(**pipeline.components)` reads
        self.register_modules(generator=generator, vae=vae)
        self.register_to_config(classes=classes)

    def save_pretrained(self, save_directory: str | Path, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write a folder that carries its own code, as custom components of diffusers.

        `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` then needs only torch and diffusers.

        Raises:
            ValueError: `push_to_hub` is set, which would upload the folder before its code is in it.
        """
        if push_to_hub:
            raise ValueError("push_to_hub: True is not allowed; instead call pipeline.push_to_hub(repo_id)")
        super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        code = {
            "_class_name": write_standalone(folder, "pipeline", type(self)),
            "generator": write_standalone(folder / "generator", "networks", type(self.generator)),
        }
        for path in (folder / self.config_name, folder / "generator/config.json", folder / "vae/config.json"):
            config = json.loads(path.read_text()) | (code if path.name == self.config_name else {})
            config.pop("_name_or_path", None)  # a path of this machine
            path.write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, source: str | Path, generator: Generator | None = None, vae: AutoencoderKL | None = None, **kwargs: Any
    ) -> Self:
        """Load a folder or a hub repository with the installed code; the code in the folder is not executed.

        Args:
            source: a folder that `save_pretrained` wrote, or the name of a hub repository.
            generator: replaces the source's.
            vae: replaces the source's.
            **kwargs: passed to `ModelMixin.from_pretrained`: `torch_dtype`, `variant`, `revision`, `token`, …
        """
        kwargs.pop("trust_remote_code", None)
        fetching = {key: kwargs[key] for key in DOWNLOAD_OPTIONS if key in kwargs}
        classes = cls.load_config(source, **fetching)["classes"]
        generator = generator or Generator.from_pretrained(source, subfolder="generator", **kwargs)
        return cls(generator, vae or AutoencoderKL.from_pretrained(source, subfolder="vae", **kwargs), classes)

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
        """Generate images.

        Args:
            class_labels: class names, or integers from 0 to the number of classes − 1.
            truncation_psi: moves the style towards its class's mean, from 0 (off; StyleGAN's ψ = 1) to 1 (the mean):
                less variety, fewer failures.
            guidance_scale: above 1 it moves the style away from the mean over all classes; 1 is off.
            num_images_per_label: images of each label, one after the other.
            generator: random number generator, or a list with one for each image.
            output_type: `pil`, `np` (float (B, H, W, 3) in [0, 1]), `pt` (the same as a tensor (B, 3, H, W)) or
                `latent` ((B, C, h, w), scaled).
            return_dict: whether to return an `ImagePipelineOutput` or a tuple.

        Raises:
            ValueError: a label is unknown or there is none, the list of generators has another length than the images,
                or an argument is out of its range.
        """
        labels = self._labels(class_labels, num_images_per_label)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type: {output_type!r} is not allowed; allowed: {', '.join(OUTPUT_TYPES)}")
        if not 0 <= truncation_psi <= 1:
            raise ValueError(f"truncation_psi: {truncation_psi} is not allowed; allowed: 0 to 1")
        if isinstance(generator, list) and len(generator) != len(labels):
            raise ValueError(
                f"generator: a list of {len(generator)} is not allowed; allowed: one for each of {len(labels)} images"
            )
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
        """The label of each image."""
        count, names = self.generator.config["classes"], self.config.classes or []
        wanted = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        labels = []
        for label in wanted:
            if isinstance(label, str):
                if label not in names:
                    near = difflib.get_close_matches(label, names, n=5) or names[:5]
                    allowed = f"names such as {near}" if names else "integers, since the classes have no names"
                    raise ValueError(f"class_labels: {label!r} is not allowed; allowed: {allowed}")
                label = names.index(label)
            if not 0 <= label < count:
                raise ValueError(f"class_labels: {label} is not allowed; allowed: 0 to {count - 1}")
            labels += [int(label)] * each
        if not labels:
            raise ValueError("class_labels, num_images_per_label: 0 images are not allowed; allowed: 1 or more")
        return labels
