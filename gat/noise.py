"""Multi-level noise guidance (MNG): what each level of a sample looks like to the discriminator (section 4.1)."""

from functools import lru_cache

import torch
from torch import Tensor

CLEANEST = 0.01  # noise of the last level
LEAST_INFORMATION = 0.125  # what the first level keeps of the image


def level_times(count: int, schedule: str = "exponential") -> list[float]:
    """Noise t of each level, from the noisiest (level 0) to the cleanest.

    `exponential` (the paper's): t_i = 1 − 0.125^(1 − i/(count − 1)) + 0.01. `linear`: equal steps between the
    same ends. `none`: no guidance, one level without noise.
    """
    if schedule == "none":
        return [0.0]
    positions = [1 - i / (count - 1) for i in range(count)]
    if schedule == "exponential":
        return [1 - LEAST_INFORMATION**p + CLEANEST for p in positions]
    if schedule == "linear":
        return [(1 - LEAST_INFORMATION) * p + CLEANEST for p in positions]
    raise ValueError(f"schedule: {schedule!r} is none of exponential, linear, none")


@lru_cache(maxsize=16)
def _mixing(times: tuple[float, ...]) -> Tensor:
    """Matrix (K, K) that turns independent draws into the Markov chain of the levels' noise.

    n_i = r·n_{i+1} + sqrt(t_i² − (r·t_{i+1})²)·ε with r = (1 − t_i)/(1 − t_{i+1}); draw 0 starts the chain.
    """
    count = len(times)
    rows = torch.zeros(count, count, dtype=torch.float64)
    previous, previous_time = torch.zeros(count, dtype=torch.float64), 0.0
    for draw, level in enumerate(reversed(range(count))):
        ratio = (1 - times[level]) / (1 - previous_time)
        previous = ratio * previous
        previous[draw] = (times[level] ** 2 - (ratio * previous_time) ** 2) ** 0.5
        rows[level], previous_time = previous, times[level]
    return rows.float()


def perturb(levels: Tensor, noise: Tensor, times: tuple[float, ...] | None = None) -> Tensor:
    """Noise the level images of each sample with one Markov chain from the cleanest level to the noisiest.

    Args:
        levels: (K, B, C, H, W) images, or (1, B, C, H, W), the same for every level.
        noise: (K, B, C, H, W) standard normal draws; noise[0] drives the cleanest level, noise[K-1] the noisiest.
        times: `level_times`; None: the paper's for K levels.

    Returns:
        (K, B, C, H, W): (1 − t)·image + noise of standard deviation t.
    """
    times = tuple(level_times(len(noise))) if times is None else times
    mixing = _mixing(times).to(noise)
    keep = (1 - torch.tensor(times, dtype=levels.dtype, device=levels.device)).view(-1, 1, 1, 1, 1)
    return keep * levels + (mixing @ noise.flatten(1)).view_as(noise)
