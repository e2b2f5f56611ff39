"""Multi-level noise guidance (MNG): what each level of a sample looks like to the discriminator (section 4.1)."""

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


def _mixing(times: tuple[float, ...]) -> list[list[float]]:
    """Matrix (K, K) that turns independent draws into the Markov chain of the levels' noise.

    n_i = r·n_{i+1} + sqrt(t_i² − (r·t_{i+1})²)·ε with r = (1 − t_i)/(1 − t_{i+1}); draw 0 starts the chain.
    """
    rows: list[list[float]] = []  # from the cleanest level on
    previous, previous_time = [0.0] * len(times), 0.0
    for draw, time in enumerate(reversed(times)):
        ratio = (1 - time) / (1 - previous_time)
        previous = [ratio * weight for weight in previous]
        previous[draw] = (time**2 - (ratio * previous_time) ** 2) ** 0.5
        rows.append(previous)
        previous_time = time
    return rows[::-1]


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
    mixing = torch.tensor(_mixing(times), dtype=noise.dtype, device=noise.device)
    keep = (1 - torch.tensor(times, dtype=levels.dtype, device=levels.device)).view(-1, 1, 1, 1, 1)
    return keep * levels + (mixing @ noise.flatten(1)).view_as(noise)
