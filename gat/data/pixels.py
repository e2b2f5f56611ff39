"""Conversions between uint8 images and network inputs, and decoding of latents."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor


def to_model_range(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [−1, 1]."""
    return torch.tensor(images, device=device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Float (B, 3, H, W) in [−1, 1] to uint8 (B, H, W, 3), rounded and clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch_size: int = 64) -> Tensor:
    """Decode scaled latents (B, C, h, w), such as a generator's, to images uint8 (B, H, W, 3) in batches."""
    scaled = (latents / vae.config["scaling_factor"]).to(vae.dtype)
    return torch.cat([to_uint8(vae.decode(part).sample) for part in scaled.split(batch_size)])
