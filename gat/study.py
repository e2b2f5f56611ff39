"""A training of the study as params.yaml describes it: its networks, its trainer, what the tables say of it."""

import hashlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gat.config import Network, Params, Training
from gat.cost import discriminator_cost, generator_cost, training_gflops
from gat.data.latents import Latents
from gat.gan.losses import penalty_weight
from gat.gan.networks import Discriminator, Generator
from gat.gan.optim import width_aware_learning_rate
from gat.gan.repa import Teacher
from gat.gan.training import Trainer
from gat.seeds import seed_of


def network_configs(
    params: Params, run: str, latents: Latents, teacher: Teacher | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of a run's generator and discriminator.

    Raises:
        ParamsError: the latents do not divide into patches.
    """
    params.check_latent_size(latents.size)
    settings = params.settings(run)

    def size(network: Network) -> dict[str, Any]:
        return {
            "width": network.width,
            "depth": network.depth,
            "heads": network.head_count,
            "patch": network.patch,
            "latent_size": latents.size,
            "channels": latents.channels,
            "classes": len(latents.classes),
            "levels": settings.loss.levels.used,
        }

    generator = size(settings.run) | {"style_gain": settings.train.style_gain}
    discriminator = size(settings.run.discriminator_network) | {"cmap_dim": settings.loss.cmap_dim}
    if teacher is not None:
        discriminator |= {"repa_dim": teacher.width, "projector_dim": settings.repa.projector_dim}
    return generator, discriminator


def make_trainer(
    params: Params, training: Training, latents: Latents, accelerator: Accelerator, teacher: Teacher | None = None
) -> Trainer:
    """The networks of one training, freshly initialized from its seed, in their trainer.

    Raises:
        ParamsError: there is no such run, its sizes do not fit the latents, or the batch does not divide.
    """
    settings, compute = params.settings(training.run), params.compute
    config_g, config_d = network_configs(params, training.run, latents, teacher)
    torch.manual_seed(seed_of(training.seed, 4))
    generator, discriminator = Generator(**config_g), Discriminator(**config_d)
    for network in (generator, discriminator):
        network.activation_checkpointing = compute.activation_checkpointing
        if compute.compile == "blocks":
            network.compile_repeated_blocks()  # all blocks share one block's code: minutes less than the whole network
    trainer = Trainer(
        accelerator,
        generator,
        discriminator,
        latents.scaling_factor,
        settings.train,
        settings.loss,
        compute,
        training.seed,
        teacher,
        settings.repa.weight,
    )
    if compute.compile == "whole":
        trainer.compile()
    return trainer


def describe(params: Params, training: Training, latents: Latents, teacher: Teacher | None = None) -> dict[str, Any]:
    """What the tables say of a training, apart from its metrics; costs as in `gat.cost`, without the teacher's."""
    run, loss, train, repa = params.settings(training.run)
    config_g, config_d = network_configs(params, training.run, latents, teacher)
    cost_g, cost_d = generator_cost(**config_g), discriminator_cost(**config_d)
    body_d = discriminator_cost(**config_d | {"repa_dim": None})
    work = training_gflops(cost_g, body_d, train.batch_size, train.steps, loss.gamma > 0)
    work += 3 * (cost_d.gmacs - body_d.gmacs) * train.batch_size * train.steps  # the REPA head sees reals only
    return {
        **training._asdict(),
        "width": run.width,
        "depth": run.depth,
        "patch": run.patch,
        "params": cost_g.params,
        "gmacs": cost_g.gmacs,
        "discriminator_params": cost_d.params,
        "discriminator_gmacs": cost_d.gmacs,
        "train_gflops": work,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "learning_rate": width_aware_learning_rate(train, run.width),
        "gamma": penalty_weight(loss, latents.size),
        "teacher": repa.teacher,
    }


def describe_pretrained(training: Training, generator: Generator) -> dict[str, Any]:
    """What the tables say of a generator that was not trained here."""
    config = generator.config
    cost = generator_cost(**{key: config[key] for key in inspect.signature(Generator).parameters})
    size = {key: config[key] for key in ("width", "depth", "patch")}
    unknown = {"steps": None, "train_gflops": None, "gap": None}
    return {**training._asdict(), **size, "params": cost.params, "gmacs": cost.gmacs, **unknown}


def fingerprint(params: Params, training: Training, latents: Latents, files: Iterable[Path] = ()) -> str:
    """Hash of everything that decides a checkpoint: settings, seed, data, and the files of code and reference."""
    digest = hashlib.blake2b(digest_size=10)
    settings = [section.model_dump() for section in params.settings(training.run)]
    digest.update(json.dumps([settings, training.seed, latents.digest], sort_keys=True).encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
