"""`gat.gan.noise` by a shorter name, for use outside this package."""

from gat.gan.noise import noise_levels, perturb

__all__ = ["noise_levels", "perturb"]
