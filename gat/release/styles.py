"""Styles w of a pipeline's samples, and images of styles between them."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gat.data.pixels import decode
from gat.evaluation.sampling import seed_noise
from gat.gan.networks import Generator
from gat.release.pipeline import GATPipeline

BATCH = 64  # styles that the generator takes at a time


@torch.no_grad()
def sample_styles(
    pipeline: GATPipeline,
    labels: Sequence[int],
    seeds: Sequence[int],
    truncation_psi: float = 0.0,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Styles w (B, width) of the images that the pipeline makes of B labels, with one seed for each."""
    z = seed_noise(seeds).to(pipeline.device, pipeline.generator.dtype)
    return pipeline.generator.mapping(z, torch.tensor(labels, device=z.device), truncation_psi, guidance_scale)


@torch.no_grad()
def style_images(generator: Generator, vae: AutoencoderKL, w: Tensor) -> Tensor:
    """Images uint8 (B, H, W, 3) of styles w (B, width)."""
    return decode(vae, torch.cat([generator.synthesis(part)[-1] for part in w.split(BATCH)]))
