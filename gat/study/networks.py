"""Networks and trainer of a run as params.yaml describes it, and the hash that identifies its training."""

import hashlib
import json
from typing import Any

import torch
from accelerate import Accelerator

from gat.config import Compute, Network, Recipe
from gat.data.latents import Latents
from gat.gan.losses import penalty_weight
from gat.gan.networks import Discriminator, Generator
from gat.gan.optim import width_aware_learning_rate
from gat.gan.repa import Teacher
from gat.gan.training import Trainer
from gat.seeds import Purpose, seed_of


def network_configs(recipe: Recipe, latents: Latents, teacher: Teacher | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor arguments of a recipe's generator and discriminator."""

    def size(network: Network, levels: int) -> dict[str, Any]:
        return {
            "width": network.width,
            "depth": network.depth,
            "heads": network.head_count,
            "patch": network.patch,
            "latent_size": latents.size,
            "channels": latents.channels,
            "classes": len(latents.classes),
            "levels": levels,
        }

    levels = recipe.loss.levels
    generator = size(recipe.run, levels.made) | {"style_gain": recipe.train.style_gain}
    discriminator = size(recipe.run.discriminator_network, levels.seen) | {"cmap_dim": recipe.loss.cmap_dim}
    if teacher is not None:
        discriminator |= {"repa_dim": teacher.width, "projector_dim": recipe.repa.projector_dim}
    return generator, discriminator


def make_trainer(
    recipe: Recipe,
    seed: int,
    latents: Latents,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> Trainer:
    """The trainer of one training, with networks initialized from its seed.

    Raises:
        ParamsError: the batch size is not a multiple of processes times micro-batch.
    """
    config_g, config_d = network_configs(recipe, latents, teacher)
    torch.manual_seed(seed_of(seed, Purpose.WEIGHTS))
    generator, discriminator = Generator(**config_g), Discriminator(**config_d)
    for network in (generator, discriminator):
        network.activation_checkpointing = compute.activation_checkpointing
        if compute.compile:
            network.compile_repeated_blocks()  # one block's code for all: minutes faster than compiling whole networks
    return Trainer(
        accelerator,
        generator,
        discriminator,
        latents.scaling_factor,
        recipe.train,
        recipe.loss,
        compute,
        seed,
        teacher,
        recipe.repa.weight,
    )


def describe(recipe: Recipe, trainer: Trainer) -> dict[str, Any]:
    """The settings of a training that `run.json` records."""
    run, loss, train, repa = recipe
    mixed = trainer.accelerator.mixed_precision
    return {
        "width": run.width,
        "depth": run.depth,
        "patch": run.patch,
        "steps": train.steps,
        "batch_size": train.batch_size,
        "micro_batch": trainer.micro_batch,
        "processes": trainer.accelerator.num_processes,
        "learning_rate": width_aware_learning_rate(train, run.width),
        "gamma": penalty_weight(loss, trainer.generator.config["latent_size"]),
        "teacher": repa.teacher,
    } | ({} if mixed == "no" else {"precision": mixed})


def training_key(recipe: Recipe, seed: int, latents: Latents, *others: bytes) -> str:
    """Hash of everything that decides a checkpoint: settings, seed, latents, and `others`, such as the code."""
    digest = hashlib.blake2b(digest_size=10)
    sections = [section.model_dump() for section in recipe]
    digest.update(json.dumps([sections, seed, latents.digest], sort_keys=True).encode())
    for content in others:
        digest.update(content)
    return digest.hexdigest()
