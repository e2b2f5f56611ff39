"""The teacher of REPA (paper, section 3.2): a frozen image encoder whose features the discriminator learns to predict.

The loss is `gat.gan.losses.repa_loss`. The release multiplies the translation of the teacher's image by latent size /
image size, so that the image hardly moves. Here, as in the paper, it moves by the same fraction of its side as the
latent.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gat.data.vision import VisionModel, features_of
from gat.gan.augment import AugmentParams, translate_and_flip
from gat.gan.losses import Features


class Teacher:
    """Computes features of real images; see `gat.data.vision` for the kinds of models.

    Args:
        folder: written by `gat.data.vision.fetch_vision_model`.
        device: where it runs; in bfloat16 on a GPU.
        compile: compile it with torch.compile.

    Attributes:
        width: dimensions of its features.
        grid: number of patches along a side.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu", compile: bool = False) -> None:
        self.device = torch.device(device)
        self._dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self._network = VisionModel(folder, self.device, self._dtype)
        self.width, self.grid = self._network.width, self._network.grid
        if compile:
            self._network.model.compile()

    @torch.no_grad()
    def __call__(self, images: Tensor, augment: AugmentParams, latent_size: int) -> Features:
        """Features (B, d) and patches (B, grid², d) of images uint8 (B, H, W, 3).

        Images are normalized, resized bicubically to the teacher's input, and translated and mirrored like latents of
        side `latent_size`; pixels from outside the image have the mean color.
        """
        network = self._network
        pixels = images.to(self.device).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - network.mean) / network.std
        if pixels.shape[-1] != network.size:
            pixels = F.interpolate(pixels, network.size, mode="bicubic")
        pixels = translate_and_flip(pixels, augment, network.size / latent_size)
        return Features(*features_of(network.model, pixels.to(self._dtype)))
