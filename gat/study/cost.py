"""Cost of networks: parameters and multiply-adds, which papers call "GFLOPs" (DiT-XL/2: 118.6)."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gat.gan.networks import Z_DIM, Discriminator, Generator


class NetworkCost(NamedTuple):
    """Cost of a network on one sample."""

    params: int
    gmacs: float  # 1e9 multiply-adds of one forward pass


def _count(network: nn.Module, *inputs: torch.Tensor, **options: Any) -> NetworkCost:
    with FlopCounterMode(display=False) as counter:
        network(*inputs, **options)
    params = sum(parameter.numel() for parameter in network.parameters())
    return NetworkCost(params, counter.get_total_flops() / 2 / 1e9)


def _arguments(network: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments in a saved config, which has other keys too."""
    return {key: config[key] for key in inspect.signature(network).parameters if key in config}


def generator_cost(config: Mapping[str, Any]) -> NetworkCost:
    """Cost of a `Generator` with this config, counted without computing or allocating anything."""
    with torch.device("meta"):
        network = Generator(**_arguments(Generator, config))
        return _count(network, torch.empty(1, Z_DIM), torch.zeros(1, dtype=torch.long))


def discriminator_cost(config: Mapping[str, Any]) -> NetworkCost:
    """Cost of a `Discriminator` with this config, including its REPA head, counted like `generator_cost`."""
    with torch.device("meta"):
        network = Discriminator(**_arguments(Discriminator, config))
        c = network.config
        levels = torch.empty(c["levels"], 1, c["channels"], c["latent_size"], c["latent_size"])
        return _count(network, levels, torch.zeros(1, dtype=torch.long), return_features=c["repa_dim"] is not None)


def training_gmacs(
    generator: Mapping[str, Any], discriminator: Mapping[str, Any], batch_size: int, steps: int, penalty: bool
) -> float:
    """Multiply-adds (1e9) of a training without its teacher, counting a full backward pass as two forward passes.

    A step runs the generator forward and backward, and the discriminator forward and backward on reals, fakes, and, for
    the penalties, a perturbed copy of each. For the generator's loss the discriminator then runs forward on reals, and
    forward and backward to its input on fakes. The REPA head runs only on reals in the discriminator's loss.

    Args:
        generator: config of the network.
        discriminator: config of the network.
        batch_size: total over all processes.
        steps: number of steps.
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
    """Parameters, GMACs and training compute of a model, by the keys of `gat.report.columns`.

    Args:
        generator: config of the network.
        discriminator: config of the network; None: unknown, for a pretrained model.
        run: `batch_size`, `steps` and `gamma` of the training.
    """
    params, gmacs = generator_cost(generator)
    cost: dict[str, Any] = {"params": params, "gmacs": gmacs, "training_gmacs": None}
    if discriminator is not None:
        cost["discriminator_params"], cost["discriminator_gmacs"] = discriminator_cost(discriminator)
        work = training_gmacs(generator, discriminator, run["batch_size"], run["steps"], run["gamma"] > 0)
        cost["training_gmacs"] = work
    return cost
