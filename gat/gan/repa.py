"""The teacher of REPA (paper, section 3.2): a frozen image encoder whose features the discriminator learns to predict.

The loss is `gat.gan.losses.repa_loss`. The release multiplies the translation of the teacher's image by latent size /
image size, so that the image hardly moves. Here, as in the paper, it moves by the same fraction of its side as the
latent.
"""

import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch import Tensor

from gat.gan.augment import AugmentParams, translate_and_flip
from gat.gan.losses import Features

IMAGE_SIZE = 224  # of a teacher's input
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Teacher:
    """A frozen vision transformer from the library transformers, such as DINOv2, that computes features of real images.

    Args:
        name: a hub id or a folder in transformers' format.
        device: where it runs; in bfloat16 on a GPU.
        compile: compile it with torch.compile.

    Attributes:
        width: dimensions of its features.
        grid: number of patches along a side.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", compile: bool = False) -> None:
        from transformers import AutoModel  # which takes seconds

        self.device = torch.device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        with PartialState().main_process_first():  # one process downloads for all
            model = AutoModel.from_pretrained(name, dtype=dtype)
        self.width: int = model.config.hidden_size
        self.grid: int = IMAGE_SIZE // model.config.patch_size
        self._prefix = 1 + getattr(model.config, "num_register_tokens", 0)  # tokens before the patches
        self._model = model.to(self.device).eval().requires_grad_(False)
        if compile:
            self._model.compile()
        statistics = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=self.device)
        self._mean, self._std = statistics[:, None, :, None, None].unbind()

    @torch.no_grad()
    def __call__(self, images: Tensor, augment: AugmentParams, latent_size: int) -> Features:
        """Features ([cls] (B, d), patches (B, grid², d)) of images uint8 (B, H, W, 3).

        Images are normalized, resized bicubically to 224, and translated and mirrored like latents of side
        `latent_size`; pixels from outside the image have the mean color.
        """
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - self._mean) / self._std
        if pixels.shape[-1] != IMAGE_SIZE:
            pixels = F.interpolate(pixels, IMAGE_SIZE, mode="bicubic")
        pixels = translate_and_flip(pixels, augment, IMAGE_SIZE / latent_size)
        tokens = self._model(pixel_values=pixels.to(self._model.dtype)).last_hidden_state
        return Features(tokens[:, 0], tokens[:, self._prefix :])
