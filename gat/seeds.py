"""Seeds by purpose: random numbers that depend neither on the process nor on what was drawn before."""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What random numbers are for, so that no two uses of one seed share them."""

    ORDER = 0  # of the training samples
    MIRROR = 1  # which of them are mirrored
    STEP = 2  # posterior, z, augmentation and noise of a training step
    SAMPLES = 3  # z of evaluation samples
    WEIGHTS = 4  # initial ones
    STEP_SIZES = 5  # z of the samples followed through optimizer steps
    ANALYSIS = 6  # z and noise of an analysis


def seed_of(seed: int, purpose: Purpose, *key: int) -> int:
    """A well-mixed 63-bit seed of a seed, a purpose, and further integers such as a step; all non-negative."""
    return int(np.random.SeedSequence((seed, purpose, *key)).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, purpose: Purpose, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded with `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, *key))
