"""Cost of networks and trainings, counted on meta tensors: nothing is computed or allocated.

One GMAC is 10⁹ multiply-adds of matrix products and convolutions, or 2 GFLOPs. Papers on generators often write GMACs
as "GFLOPs" (DiT-XL/2: 118.6).
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gat.config import Levels, Loss
from gat.data.vision import features_of, untrained_vision_model
from gat.gan.augment import AugmentParams
from gat.gan.losses import Features, Perturbation, discriminator_loss, generator_loss
from gat.gan.networks import Z_DIM, Discriminator, Generator


class NetworkCost(NamedTuple):
    """Cost of a network on one sample."""

    params: int
    gmacs: float  # of one forward pass


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        yield counter


def _gmacs(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 2 / 1e9


def _params(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _make(network: type[nn.Module], config: Mapping[str, Any]) -> Any:
    """A network on the meta device. A saved config has other keys besides the constructor's arguments."""
    with torch.device("meta"):
        return network(**{key: config[key] for key in inspect.signature(network).parameters if key in config})


def generator_cost(config: Mapping[str, Any]) -> NetworkCost:
    """Cost of a `Generator` with this config."""
    network = _make(Generator, config)
    with _counter() as counter:
        network(torch.empty(1, Z_DIM), torch.zeros(1, dtype=torch.long))
    return NetworkCost(_params(network), _gmacs(counter))


def discriminator_cost(config: Mapping[str, Any]) -> NetworkCost:
    """Cost of a `Discriminator` with this config, including its REPA head."""
    network = _make(Discriminator, config)
    c = network.config
    with _counter() as counter:
        levels = torch.empty(c["levels"], 1, c["channels"], c["latent_size"], c["latent_size"])
        network(levels, torch.zeros(1, dtype=torch.long), return_features=c["repa_dim"] is not None)
    return NetworkCost(_params(network), _gmacs(counter))


def step_gmacs(generator: Mapping[str, Any], discriminator: Mapping[str, Any], samples: int, penalty: bool) -> float:
    """GMACs of a step of `gat.gan.training.Trainer`: both losses, forward and backward, without a teacher.

    These are the operations of the model, whatever the machine: micro-batches, an attention kernel or activation
    checkpointing may repeat some of them.

    Args:
        generator: config of the network.
        discriminator: config of the network; with a `repa_dim`, its REPA head is trained.
        samples: in a batch. The discriminator maps each class to its embedding once, or each label if there are fewer.
        penalty: whether γ is above 0.
    """
    g, d = _make(Generator, generator), _make(Discriminator, discriminator)
    c = d.config
    made = g.config["levels"]
    schedule = "none" if made == 1 else "heads" if c["levels"] == 1 else "exponential"
    loss = Loss(levels=Levels.model_validate({"schedule": schedule, "count": max(made, 2)}), gamma=float(penalty))
    with _counter() as counter:
        z, labels = torch.empty(samples, Z_DIM), torch.zeros(samples, dtype=torch.long)
        noise = torch.empty(made, samples, c["channels"], c["latent_size"], c["latent_size"])
        colors, places = (torch.zeros(samples),) * 3, (torch.zeros(samples, 2, dtype=torch.long),) * 2
        perturb = (Perturbation(AugmentParams(*colors, *places, torch.zeros(samples, dtype=torch.bool)), noise),) * 2
        real, features = noise[-1], None
        if c["repa_dim"] is not None:
            tokens = (c["latent_size"] // c["patch"]) ** 2
            features = Features(torch.empty(samples, c["repa_dim"]), torch.empty(samples, tokens, c["repa_dim"]))
        fake = g(z, labels, return_levels=True)
        total, _ = discriminator_loss(d, real, fake.detach(), labels, perturb, (real, noise), loss, features)
        total.backward()
        d.requires_grad_(False)
        with torch.no_grad():
            embeddings = d.y_embedder(labels)
        generator_loss(d, real, fake, embeddings, perturb, loss).backward()
        return _gmacs(counter)


def teacher_cost(folder: str | Path) -> NetworkCost:
    """Cost of REPA's teacher on one image; `folder` as in `gat.gan.repa.Teacher`."""
    with _counter() as counter:
        network, size = untrained_vision_model(folder)
        features_of(network, torch.empty(1, 3, size, size))
    return NetworkCost(_params(network), _gmacs(counter))


def cost_of(
    generator: Mapping[str, Any],
    discriminator: Mapping[str, Any] | None,
    run: Mapping[str, Any],
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Parameters, GMACs and training compute of a model, by the keys of `gat.report.columns`.

    Args:
        generator: config of the network.
        discriminator: config of the network; None: unknown, for a pretrained model.
        run: what `gat.study.networks.describe` returned for the training.
        teacher: its folder, if the training had one.
    """
    params, gmacs = generator_cost(generator)
    cost: dict[str, Any] = {"params": params, "gmacs": gmacs, "discriminator_params": None, "training_gmacs": None}
    if discriminator is not None:
        cost["discriminator_params"], cost["discriminator_gmacs"] = discriminator_cost(discriminator)
        steps, samples = run["steps"], run["batch_size"]
        cost["training_gmacs"] = steps * step_gmacs(generator, discriminator, samples, run["gamma"] > 0)
        if teacher is not None:
            cost["teacher_gmacs"] = steps * samples * teacher_cost(teacher).gmacs
    return cost
