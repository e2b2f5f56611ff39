"""A run of the study as params.yaml describes it: its networks, its trainer, its place on disk."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gat.augment import Strength
from gat.config import Network, Params, ParamsError, Training
from gat.cost import discriminator_cost, generator_cost, training_gflops
from gat.images import Images
from gat.latents import Latents, TrainingBatches
from gat.losses import Objective, penalty_weight
from gat.networks import Discriminator, Generator
from gat.noise import level_times
from gat.repa import Teacher
from gat.seeds import seed_of
from gat.training import Evaluate, Plan, Recipe, Row, Trainer, fit, learning_rate

# The modules that decide what a training writes: weights, curves, pipeline. Stage `train` depends on the same.
TRAINING_CODE = (
    "augment",
    "cost",
    "extractor",
    "latents",
    "losses",
    "metrics",
    "networks",
    "noise",
    "pipeline",
    "repa",
    "sampling",
    "seeds",
    "study",
    "training",
    "vae",
)


@dataclass(frozen=True)
class Description:
    """What the tables say of a run, apart from how good it is; costs as in `gat.cost`, without the teacher's."""

    run: str
    seed: int
    width: int
    depth: int
    patch: int
    params: int
    gmacs: float
    discriminator_params: int
    discriminator_gmacs: float
    train_gflops: float
    steps: int
    batch_size: int
    learning_rate: float
    penalty: float
    teacher: str | None


@dataclass
class StudyRun:
    """A run, ready to train."""

    trainer: Trainer
    batches: TrainingBatches
    plan: Plan
    eval_samples: int
    description: dict[str, Any]

    def fit(self, evaluate: Evaluate, on_row: Callable[[Row], None] | None = None) -> list[Row]:
        """Train to the end; see `gat.training.fit`."""
        return fit(self.trainer, self.batches, self.plan, evaluate, on_row)


def network_config(network: Network, params: Params, name: str, latents: Latents) -> dict[str, Any]:
    """Constructor arguments of a run's generator, or with its discriminator's `network` of that.

    Raises:
        ParamsError: the latents do not divide into patches.
    """
    if latents.size % network.patch:
        raise ParamsError(
            f"{params.key(name)}.patch: {network.patch} is not allowed; allowed: divisors of {latents.size}"
        )
    return {
        "width": network.width,
        "depth": network.depth,
        "heads": network.head_count,
        "patch": network.patch,
        "latent_size": latents.size,
        "channels": latents.channels,
        "classes": len(latents.classes),
        "levels": params.settings(name).loss.levels.used,
    }


def build_run(
    params: Params,
    training: Training,
    latents: Latents,
    accelerator: Accelerator,
    checkpoints: Path | None = None,
    images: str | Path = "data/images",
) -> StudyRun:
    """Make the networks and the trainer of one training.

    Args:
        params: the experiment.
        training: which run, with which seed.
        latents: what it learns.
        accelerator: of Hugging Face Accelerate.
        checkpoints: where it saves, and resumes from; None: nowhere.
        images: the folder of the images behind the latents, which a teacher needs.

    Raises:
        ParamsError: there is no such run, or its sizes do not fit the latents.
        ValueError: the batch does not divide among the processes.
    """
    name, seed = training
    run, loss, train, repa = params.settings(name)
    config_g = network_config(run, params, name, latents)
    config_d = network_config(run.discriminator_network, params, name, latents)
    config_g["style_gain"] = train.style_gain
    config_d["class_map_dim"] = loss.class_map_dim
    cost_g, cost_d = generator_cost(**config_g), discriminator_cost(**config_d)
    work = training_gflops(cost_g, cost_d, train.batch_size, train.steps, loss.penalty > 0)
    teacher = None
    if repa.teacher is not None:
        teacher = Teacher(repa.teacher, accelerator.device, params.compute.compile is not None)
        config_d |= {"repa_dim": teacher.width, "projector_dim": repa.projector_dim}
        body, cost_d = cost_d, discriminator_cost(**config_d)
        work += 3 * (cost_d.gmacs - body.gmacs) * train.batch_size * train.steps  # the head sees reals alone
    torch.manual_seed(seed_of(seed, 4))
    generator, discriminator = Generator(**config_g), Discriminator(**config_d)
    for network in (generator, discriminator):
        network.activation_checkpointing = params.compute.activation_checkpointing
        if params.compute.compile == "blocks":
            network.compile_repeated_blocks()  # one block's code serves all: minutes less than the whole
    rate_g, rate_d = (
        learning_rate(train.learning_rate, config["width"], train.batch_size, train.scale_lr_by_width)
        for config in (config_g, config_d)
    )
    times = tuple(level_times(loss.levels.count, loss.levels.schedule))
    penalty = penalty_weight(loss.penalty, latents.size, loss.scale_penalty_by_pixels)
    recipe = Recipe(
        objective=Objective(times, Strength(**loss.augment.model_dump()), penalty, repa.weight),
        batch_size=train.batch_size,
        learning_rate_g=rate_g,
        learning_rate_d=rate_d,
        betas=(train.betas[0], train.betas[1]),
        clip=train.clip,
        ema=train.ema,
        seed=seed,
        micro_batch=params.compute.micro_batch,
    )
    trainer = Trainer(accelerator, generator, discriminator, recipe, latents.scaling_factor, teacher)
    if params.compute.compile == "whole":
        trainer.compile()
    description = Description(
        run=name,
        seed=seed,
        width=run.width,
        depth=run.depth,
        patch=run.patch,
        params=cost_g.params,
        gmacs=cost_g.gmacs,
        discriminator_params=cost_d.params,
        discriminator_gmacs=cost_d.gmacs,
        train_gflops=work,
        steps=train.steps,
        batch_size=train.batch_size,
        learning_rate=rate_g,
        penalty=penalty,
        teacher=repa.teacher,
    )
    plan = Plan(
        steps=train.steps,
        eval_every=train.eval_every,
        save_every=params.compute.save_every,
        checkpoints=checkpoints,
        workers=params.compute.workers,
    )
    return StudyRun(
        trainer=trainer,
        batches=TrainingBatches(
            latents,
            train.batch_size,
            seed,
            accelerator.process_index,
            accelerator.num_processes,
            images=None if teacher is None else Images(images),
        ),
        plan=plan,
        eval_samples=train.eval_samples,
        description=asdict(description),
    )


def describe_pretrained(training: Training, generator: Generator) -> dict[str, Any]:
    """What the tables say of a generator that was not trained here."""
    config = generator.config
    cost = generator_cost(**{key: config[key] for key in inspect.signature(Generator).parameters})
    size = {key: config[key] for key in ("width", "depth", "patch")}
    return {
        **training._asdict(),
        **size,
        "params": cost.params,
        "gmacs": cost.gmacs,
        "steps": None,
        "train_gflops": None,
        "gap": None,
    }


def fingerprint(params: Params, training: Training, latents: Latents, files: Iterable[Path] = ()) -> str:
    """Hash of everything that defines a training: settings, seed, data, the code of the recipe, and further files."""
    digest = hashlib.blake2b(digest_size=10)
    settings = [section.model_dump() for section in params.settings(training.run)]
    digest.update(json.dumps([settings, training.seed, latents.digest], sort_keys=True).encode())
    code = [Path(__file__).with_name(f"{module}.py") for module in (*TRAINING_CODE, "checkpoints")]
    for path in code + list(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()
