"""Cost of networks: parameters and multiply-adds, which papers write as "GFLOPs" (DiT-XL/2: 118.6)."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gat.gan.networks import Z_DIM, Discriminator, Generator


class Cost(NamedTuple):
    """Cost of one network on one sample."""

    params: int
    gmacs: float  # 1e9 multiply-adds of one forward


def _count(network: nn.Module, *inputs: torch.Tensor, **options: Any) -> Cost:
    with FlopCounterMode(display=False) as counter:
        network(*inputs, **options)
    params = sum(parameter.numel() for parameter in network.parameters())
    return Cost(params, counter.get_total_flops() / 2 / 1e9)


def generator_cost(**config: Any) -> Cost:
    """Cost of a `Generator` of this config; nothing is computed or allocated."""
    with torch.device("meta"):
        network = Generator(**config)
        return _count(network, torch.empty(1, Z_DIM), torch.zeros(1, dtype=torch.long))


def discriminator_cost(**config: Any) -> Cost:
    """Cost of a `Discriminator` of this config, its REPA head included; nothing is computed or allocated."""
    with torch.device("meta"):
        network = Discriminator(**config)
        c = network.config
        levels = torch.empty(c["levels"], 1, c["channels"], c["latent_size"], c["latent_size"])
        return _count(network, levels, torch.zeros(1, dtype=torch.long), return_features=c["repa_dim"] is not None)


def training_gflops(generator: Cost, discriminator: Cost, batch_size: int, steps: int, penalty: bool) -> float:
    """Multiply-adds (1e9) of a training run, a backward through weights and inputs counting as two forwards.

    A step runs the generator forward and backward, the discriminator forward and backward on reals, fakes and,
    for the penalties, a perturbed copy of each; then forward on reals, and forward and back to its input on fakes.
    """
    discriminator_passes = 3 * (4 if penalty else 2) + 1 + 2
    return steps * batch_size * (3 * generator.gmacs + discriminator_passes * discriminator.gmacs)
