"""Multi-level noise guidance (MNG; paper, section 4.1): noise on each level image before the discriminator."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_MIN = 0.01  # noise of the last level
ALPHA_MIN = 0.125  # 1 − t of the first level, before SIGMA_MIN is added to t


def noise_levels(count: int, schedule: str = "exponential") -> list[float]:
    """Standard deviation t of the noise of each level, from the noisiest (level 0) to the cleanest.

    `exponential` (the paper's): t_i = 1 − 0.125^(1 − i/(count − 1)) + 0.01. `linear`: equal steps between the same
    first and last level. `heads` and `none`: no guidance, one level without noise.

    Raises:
        ValueError: the schedule is unknown.
    """
    if schedule in ("heads", "none"):
        return [0.0]
    positions = [1 - i / (count - 1) for i in range(count)]
    if schedule == "exponential":
        return [1 - ALPHA_MIN**p + SIGMA_MIN for p in positions]
    if schedule == "linear":
        return [(1 - ALPHA_MIN) * p + SIGMA_MIN for p in positions]
    raise ValueError(f"schedule: {schedule!r} is none of exponential, linear, heads, none")


def _markov_chain(levels: tuple[float, ...]) -> list[list[float]]:
    """Matrix (K, K) that maps independent draws to the noise of the levels; draw 0 is that of the cleanest level.

    n_i = r·n_{i+1} + sqrt(t_i² − (r·t_{i+1})²)·ε with r = (1 − t_i)/(1 − t_{i+1}).
    """
    rows: list[list[float]] = []  # from the cleanest to the noisiest level
    previous, previous_level = [0.0] * len(levels), 0.0
    for draw, level in enumerate(reversed(levels)):
        ratio = (1 - level) / (1 - previous_level)
        previous = [ratio * weight for weight in previous]
        previous[draw] = (level**2 - (ratio * previous_level) ** 2) ** 0.5
        rows.append(previous)
        previous_level = level
    return rows[::-1]


def perturb(images: Tensor, noise: Tensor, levels: tuple[float, ...] | None = None) -> Tensor:
    """Add noise to the level images of each sample, as one Markov chain from the cleanest level to the noisiest.

    Args:
        images: (K, B, C, H, W) level images, or (1, B, C, H, W), repeated for every level.
        noise: (K, B, C, H, W) standard normal draws; noise[0] drives the cleanest level, noise[K-1] the noisiest.
        levels: as returned by `noise_levels`; None: the paper's for K levels.

    Returns:
        (K, B, C, H, W): (1 − t)·image + noise of standard deviation t.
    """
    levels = tuple(noise_levels(len(noise))) if levels is None else levels
    chain = torch.tensor(_markov_chain(levels), dtype=noise.dtype, device=noise.device)
    alpha = (1 - torch.tensor(levels, dtype=images.dtype, device=images.device)).view(-1, 1, 1, 1, 1)
    return alpha * images + (chain @ noise.flatten(1)).view_as(noise)


def resize_levels(images: Tensor, count: int) -> Tensor:
    """Level images of lower resolution instead of more noise, as in MSG-GAN, which the paper compares with.

    Each level is reduced by average pooling and enlarged bilinearly: the first is reduced to a side of 1/2^(count − 1),
    the last is unchanged.

    Args:
        images: (count, B, C, H, W) level images, or (1, B, C, H, W), repeated for every level.
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
