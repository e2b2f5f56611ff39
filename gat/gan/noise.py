"""Multi-level noise guidance (MNG; paper, section 4.1): the noise on each level image before the discriminator."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_MIN = 0.01  # noise of the last level
ALPHA_MIN = 0.125  # what the first level keeps of the image, before SIGMA_MIN is added


def noise_levels(count: int, schedule: str = "exponential") -> list[float]:
    """Standard deviation t of the noise of each level, from the noisiest (level 0) to the cleanest.

    `exponential` (the paper's): t_i = 1 − 0.125^(1 − i/(count − 1)) + 0.01. `linear`: equal steps between the
    same ends. `none`: no guidance, one level without noise.

    Raises:
        ValueError: no such schedule.
    """
    if schedule == "none":
        return [0.0]
    positions = [1 - i / (count - 1) for i in range(count)]
    if schedule == "exponential":
        return [1 - ALPHA_MIN**p + SIGMA_MIN for p in positions]
    if schedule == "linear":
        return [(1 - ALPHA_MIN) * p + SIGMA_MIN for p in positions]
    raise ValueError(f"schedule: {schedule!r} is none of exponential, linear, none")


def _markov_chain(levels: tuple[float, ...]) -> list[list[float]]:
    """Matrix (K, K) that turns independent draws into the levels' noise; draw 0 is that of the cleanest level.

    n_i = r·n_{i+1} + sqrt(t_i² − (r·t_{i+1})²)·ε with r = (1 − t_i)/(1 − t_{i+1}).
    """
    rows: list[list[float]] = []  # from the cleanest level on
    previous, previous_level = [0.0] * len(levels), 0.0
    for draw, level in enumerate(reversed(levels)):
        ratio = (1 - level) / (1 - previous_level)
        previous = [ratio * weight for weight in previous]
        previous[draw] = (level**2 - (ratio * previous_level) ** 2) ** 0.5
        rows.append(previous)
        previous_level = level
    return rows[::-1]


def perturb(images: Tensor, noise: Tensor, levels: tuple[float, ...] | None = None) -> Tensor:
    """Noise the level images of each sample by one Markov chain from the cleanest level to the noisiest.

    Args:
        images: (K, B, C, H, W) level images, or (1, B, C, H, W), the same for every level.
        noise: (K, B, C, H, W) standard normal draws; noise[0] drives the cleanest level, noise[K-1] the noisiest.
        levels: `noise_levels`; None: the paper's for K levels.

    Returns:
        (K, B, C, H, W): (1 − t)·image + noise of standard deviation t.
    """
    levels = tuple(noise_levels(len(noise))) if levels is None else levels
    chain = torch.tensor(_markov_chain(levels), dtype=noise.dtype, device=noise.device)
    alpha = (1 - torch.tensor(levels, dtype=images.dtype, device=images.device)).view(-1, 1, 1, 1, 1)
    return alpha * images + (chain @ noise.flatten(1)).view_as(noise)


def resize_levels(images: Tensor, count: int) -> Tensor:
    """Level images of lower resolution in place of noisier ones, as in MSG-GAN; the paper's ablation.

    Each is averaged over squares and enlarged again bilinearly: the first to a side of 1/2^(count − 1), the last not
    at all.

    Args:
        images: (count, B, C, H, W) level images, or (1, B, C, H, W), the same for every level.
        count: K.

    Returns:
        (count, B, C, H, W).
    """
    side = images.shape[-1]
    resized = []
    for shrinking, level in zip(reversed(range(count)), images.expand(count, -1, -1, -1, -1), strict=True):
        small = F.adaptive_avg_pool2d(level, max(1, side >> shrinking))
        resized.append(F.interpolate(small, side, mode="bilinear") if shrinking else level)
    return torch.stack(resized)
