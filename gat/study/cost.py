"""Cost of networks: parameters and multiply-adds, which papers write as "GFLOPs" (DiT-XL/2: 118.6)."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gat.gan.networks import Z_DIM, Discriminator, Generator


class NetworkCost(NamedTuple):
    """Cost of one network on one sample."""

    params: int
    gmacs: float  # 1e9 multiply-adds of one forward


def _count(network: nn.Module, *inputs: torch.Tensor, **options: Any) -> NetworkCost:
    with FlopCounterMode(display=False) as counter:
        network(*inputs, **options)
    params = sum(parameter.numel() for parameter in network.parameters())
    return NetworkCost(params, counter.get_total_flops() / 2 / 1e9)


def _arguments(network: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments out of a network's saved config, which says more."""
    return {key: config[key] for key in inspect.signature(network).parameters if key in config}


def generator_cost(config: Mapping[str, Any]) -> NetworkCost:
    """Cost of a `Generator` of this config; nothing is computed or allocated."""
    with torch.device("meta"):
        network = Generator(**_arguments(Generator, config))
        return _count(network, torch.empty(1, Z_DIM), torch.zeros(1, dtype=torch.long))


def discriminator_cost(config: Mapping[str, Any]) -> NetworkCost:
    """Cost of a `Discriminator` of this config, its REPA head included; nothing is computed or allocated."""
    with torch.device("meta"):
        network = Discriminator(**_arguments(Discriminator, config))
        c = network.config
        levels = torch.empty(c["levels"], 1, c["channels"], c["latent_size"], c["latent_size"])
        return _count(network, levels, torch.zeros(1, dtype=torch.long), return_features=c["repa_dim"] is not None)


def training_gmacs(
    generator: Mapping[str, Any], discriminator: Mapping[str, Any], batch_size: int, steps: int, penalty: bool
) -> float:
    """Multiply-adds (1e9) of a training, its teacher's apart; a backward through weights and inputs is two forwards.

    A step runs the generator forward and backward, the discriminator forward and backward on reals, fakes and,
    for the penalties, a perturbed copy of each; then forward on reals, and forward and back to its input on fakes. The
    REPA head sees the reals of the first of these alone.

    Args:
        generator: config of the network.
        discriminator: config of the network.
        batch_size: of all processes together.
        steps: of the training.
        penalty: whether γ is above 0.
    """
    body = discriminator_cost({**discriminator, "repa_dim": None}).gmacs
    head = discriminator_cost(discriminator).gmacs - body
    discriminator_passes = 3 * (4 if penalty else 2) + 1 + 2
    work_per_sample = 3 * generator_cost(generator).gmacs + discriminator_passes * body + 3 * head
    return steps * batch_size * work_per_sample


def cost_of(
    generator: Mapping[str, Any], discriminator: Mapping[str, Any] | None, run: Mapping[str, Any]
) -> dict[str, Any]:
    """What the tables say of a model's cost.

    Args:
        generator: config of the network.
        discriminator: config of the network; None: not known, as of a pretrained model.
        run: `batch_size`, `steps` and `gamma` of the training.
    """
    params, gmacs = generator_cost(generator)
    cost: dict[str, Any] = {"params": params, "gmacs": gmacs, "training_gmacs": None}
    if discriminator is not None:
        cost["discriminator_params"], cost["discriminator_gmacs"] = discriminator_cost(discriminator)
        work = training_gmacs(generator, discriminator, run["batch_size"], run["steps"], run["gamma"] > 0)
        cost["training_gmacs"] = work
    return cost
