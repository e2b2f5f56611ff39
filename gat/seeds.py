"""Seeds by purpose: random numbers that depend neither on the process nor on what was drawn before."""

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """A well-mixed 63-bit seed of a tuple of non-negative integers, such as (seed, step)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def generator_of(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded with `seed_of(*key)`."""
    return torch.Generator(device).manual_seed(seed_of(*key))
