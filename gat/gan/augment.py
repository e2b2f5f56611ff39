"""Differentiable augmentation of latents (DiffAugment; paper, appendix): color, translation, cutout, flip.

Parameters are sampled first and applied later, so that all levels of a sample, both terms of a gradient penalty, and
the teacher's image share them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gat.config import Augment


class AugmentParams(NamedTuple):
    """Augmentation parameters of B samples. Shifts and centers are in latent pixels."""

    brightness: Tensor  # (B,) added; 0 without color augmentation
    saturation: Tensor  # (B,) factor about the channel mean; 1 without color augmentation
    contrast: Tensor  # (B,) factor about the mean; 1 without color augmentation
    shift: Tensor  # (B, 2) rows down, columns right
    cutout: Tensor  # (B, 2) row and column of the center of the blanked square
    flip: Tensor  # (B,) whether mirrored

    def select(self, samples: slice) -> "AugmentParams":
        """The parameters of a slice of the samples."""
        return AugmentParams(*(tensor[samples] for tensor in self))


def sample_augment_params(count: int, size: int, strength: Augment, rng: torch.Generator) -> AugmentParams:
    """Sample augmentations for `count` latents of side `size`, on the device of `rng`."""
    device = rng.device

    def uniform() -> Tensor:
        return torch.rand(count, generator=rng, device=device)

    colored = uniform() < strength.color
    brightness = torch.where(colored, uniform() - 0.5, 0.0)
    saturation = torch.where(colored, uniform() * 2, 1.0)
    contrast = torch.where(colored, uniform() + 0.5, 1.0)
    reach = int(size * strength.translation + 0.5)
    shift = torch.randint(-reach, reach + 1, (count, 2), generator=rng, device=device)
    hole = int(size * strength.cutout + 0.5)
    center = torch.randint(0, size + 1 - hole % 2, (count, 2), generator=rng, device=device)
    return AugmentParams(brightness, saturation, contrast, shift, center, uniform() < strength.flip)


def translate_and_flip(images: Tensor, params: AugmentParams, scale: float = 1) -> Tensor:
    """Translate and mirror images (B, C, H, W); `scale` is their side / that of latents, for a teacher's images.

    Pixels are gathered, not multiplied by a matrix, since TF32 on a GPU would round them.
    """
    size = images.shape[-1]
    shift = (params.shift * scale).round().long()
    index = torch.arange(size, device=images.device)
    rows = index - shift[:, :1]  # (B, size): source row of each row
    columns = torch.where(params.flip[:, None], size - 1 - index, index) - shift[:, 1:]
    rows_inside, columns_inside = ((axis >= 0) & (axis < size) for axis in (rows, columns))
    inside = rows_inside[:, :, None] & columns_inside[:, None, :]
    source = rows.clamp(0, size - 1)[:, :, None] * size + columns.clamp(0, size - 1)[:, None, :]
    pixels = images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return pixels.view_as(images) * inside[:, None]


def augment(levels: Tensor, params: AugmentParams, strength: Augment, reference: Tensor | None = None) -> Tensor:
    """Augment the level images of each sample, all levels with the same parameters.

    Args:
        levels: (K, B, C, H, W).
        params: parameters of the B samples.
        strength: the one that `params` was sampled with; augmentations that it turns off cost nothing.
        reference: (B, C, H, W) images about whose means saturation and contrast scale; None: the last level.

    Returns:
        (K, B, C, H, W).
    """
    if strength.color > 0:
        levels = _color(levels, params, levels[-1] if reference is None else reference)
    if strength.translation > 0 or strength.flip > 0:
        images = levels.transpose(0, 1).flatten(1, 2)
        levels = translate_and_flip(images, params).unflatten(1, (len(levels), -1)).transpose(0, 1)
    if strength.cutout > 0:
        levels = _cutout(levels, params, strength)
    return levels


def _color(levels: Tensor, params: AugmentParams, reference: Tensor) -> Tensor:
    channel_mean, mean = reference.mean(1, keepdim=True), reference.mean((1, 2, 3), keepdim=True)
    brightness, saturation, contrast = (t.to(levels.dtype)[:, None, None, None] for t in params[:3])
    levels = (levels + brightness - channel_mean) * saturation + channel_mean
    return (levels - mean) * contrast + mean


def _cutout(levels: Tensor, params: AugmentParams, strength: Augment) -> Tensor:
    size = levels.shape[-1]
    hole = int(size * strength.cutout + 0.5)
    index, center = torch.arange(size, device=levels.device), params.cutout[..., None]
    inside = (index >= center - hole // 2) & (index < center + hole - hole // 2)
    if strength.flip > 0:  # cutout comes before the flip
        inside[:, 1] = torch.where(params.flip[:, None], inside[:, 1].flip(-1), inside[:, 1])
    keep = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
    return levels * keep[:, None]
