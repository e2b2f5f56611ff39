"""Differentiable augmentation of latents (DiffAugment; paper, appendix): colour, translation, cutout, flip.

All draws are made first and applied later, so that one draw can serve all levels of a sample, both sides of a
gradient penalty, and the image that a teacher sees.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Strength(NamedTuple):
    """How much to augment: `color`, `flip` are probabilities, `translation`, `cutout` shares of the side; 0 is off."""

    color: float = 0.5
    translation: float = 0.125
    cutout: float = 0.5
    flip: float = 0.4


class Draw(NamedTuple):
    """One augmentation a sample. Shifts and corners are in latent pixels; every tensor's first dimension is B."""

    brightness: Tensor  # (B,) added; 0 where the colours stay
    saturation: Tensor  # (B,) factor about the channel mean; 1 where they stay
    contrast: Tensor  # (B,) factor about the mean; 1 where they stay
    shift: Tensor  # (B, 2) rows down, columns right
    cutout: Tensor  # (B, 2) row and column of the centre of the blanked square
    flip: Tensor  # (B,) whether mirrored

    def part(self, samples: slice) -> "Draw":
        """The draws of some of the samples."""
        return Draw(*(tensor[samples] for tensor in self))


def draw_augmentation(count: int, size: int, strength: Strength, rng: torch.Generator) -> Draw:
    """Draw augmentations for `count` latents of side `size`, on the device of `rng`."""
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
    return Draw(brightness, saturation, contrast, shift, center, uniform() < strength.flip)


def move(images: Tensor, draw: Draw, scale: float = 1) -> Tensor:
    """Translate and mirror images (B, C, H, W); `scale` is their side over the latent's, for a teacher's image.

    Pixels are copied, not multiplied: a GPU's TF32 would round them.
    """
    size = images.shape[-1]
    shift = (draw.shift * scale).round().long()
    index = torch.arange(size, device=images.device)
    rows = index - shift[:, :1]  # (B, size): where each row of the result comes from
    columns = torch.where(draw.flip[:, None], size - 1 - index, index) - shift[:, 1:]
    rows_inside, columns_inside = ((axis >= 0) & (axis < size) for axis in (rows, columns))
    inside = rows_inside[:, :, None] & columns_inside[:, None, :]
    source = rows.clamp(0, size - 1)[:, :, None] * size + columns.clamp(0, size - 1)[:, None, :]
    pixels = images.flatten(2).gather(2, source.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return pixels.view_as(images) * inside[:, None]


def augment(levels: Tensor, draw: Draw, strength: Strength, reference: Tensor | None = None) -> Tensor:
    """Apply one draw a sample to all of its level images.

    Args:
        levels: (K, B, C, H, W).
        draw: of B samples.
        strength: the one `draw` was made with; what it switches off costs nothing.
        reference: (B, C, H, W) images whose means saturation and contrast turn about; None: the last level.

    Returns:
        (K, B, C, H, W).
    """
    size = levels.shape[-1]
    if strength.color > 0:
        reference = levels[-1] if reference is None else reference
        channel_mean = reference.mean(1, keepdim=True)
        mean = reference.mean((1, 2, 3), keepdim=True)
        brightness, saturation, contrast = (t.to(levels.dtype)[:, None, None, None] for t in draw[:3])
        levels = (levels + brightness - channel_mean) * saturation + channel_mean
        levels = (levels - mean) * contrast + mean
    if strength.translation > 0 or strength.flip > 0:
        images = levels.transpose(0, 1).flatten(1, 2)
        levels = move(images, draw).unflatten(1, (len(levels), -1)).transpose(0, 1)
    if strength.cutout > 0:
        hole = int(size * strength.cutout + 0.5)
        index = torch.arange(size, device=levels.device)
        inside = (index >= draw.cutout[..., None] - hole // 2) & (index < draw.cutout[..., None] + hole - hole // 2)
        if strength.flip > 0:  # the hole is cut before the flip
            inside[:, 1] = torch.where(draw.flip[:, None], inside[:, 1].flip(-1), inside[:, 1])
        keep = ~(inside[:, 0, :, None] & inside[:, 1, None, :])
        levels = levels * keep[:, None]
    return levels
