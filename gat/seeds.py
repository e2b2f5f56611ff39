"""Seeds by purpose: random numbers that do not depend on the process or on earlier draws."""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Uses of random numbers, so that no two uses of one seed share them."""

    ORDER = 0  # order of the training samples
    MIRROR = 1  # which training samples are mirrored
    STEP = 2  # posterior, z, augmentation and noise of a training step
    SAMPLES = 3  # z of evaluation samples
    WEIGHTS = 4  # initial weights
    STEP_SIZES = 5  # z of the samples whose change per optimizer step is measured
    ANALYSIS = 6  # z and noise of an analysis


def seed_of(seed: int, purpose: Purpose, *key: int) -> int:
    """A 63-bit seed from a seed, a purpose, and further integers such as a step, all non-negative."""
    return int(np.random.SeedSequence((seed, purpose, *key)).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, purpose: Purpose, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded with `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(seed, purpose, *key))
