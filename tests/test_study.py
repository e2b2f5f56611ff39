import shutil

import pytest
import torch
from helpers import changed_params

from gat.config import MODEL, Compute, Params, Recipe
from gat.data.latents import Latents, TrainingBatches
from gat.gan.training import Metrics, Trainer, fit
from gat.study.networks import describe, make_trainer, training_key


def recipe(changes: str = "", run: str = MODEL) -> Recipe:
    """Of the smoke profile with some keys changed, those of a YAML text."""
    return Params.model_validate(changed_params(changes, "profiles/smoke.yaml")).recipe(run)


def train(trainer: Trainer, latents: Latents) -> list[Metrics]:
    return fit(trainer, TrainingBatches(latents, trainer.train.batch_size, trainer.seed))


def test_paper_wide_model_trains_on_a_cpu(accelerator, latents):
    wide = recipe("{model: {width: 1152}, train: {steps: 1, batch_size: 4}}")
    trainer = make_trainer(wide, 0, latents, accelerator)
    assert trainer.generator.config["heads"] == 18
    assert describe(wide, trainer)["width"] == 1152
    (row,) = train(trainer, latents)
    assert row["loss_d"] == pytest.approx(0.7, abs=0.5)


def learning_rates(trainer: Trainer) -> list[float]:
    return [optimizer.param_groups[0]["lr"] for optimizer in (trainer.optimizer_g, trainer.optimizer_d)]


def test_switches_reach_the_networks_and_the_losses(accelerator, latents):
    loss = "loss: {levels: {schedule: none, count: 4}, gamma: 0.0}"
    rest = "model: {discriminator: {width: 16}}, train: {scale_lr_by_width: false, steps: 1}"
    trainer = make_trainer(recipe(f"{{{loss}, {rest}}}"), 0, latents, accelerator)
    assert trainer.generator.config["levels"] == 1
    assert (trainer.generator.config["width"], trainer.discriminator.config["width"]) == (12, 16)
    rate_g, rate_d = learning_rates(trainer)
    assert rate_g == rate_d
    (row,) = train(trainer, latents)
    assert "r1" not in row


def test_learning_rates_follow_each_networks_width(accelerator, latents):
    trainer = make_trainer(recipe("model: {discriminator: {width: 24}}"), 0, latents, accelerator)
    rate_g, rate_d = learning_rates(trainer)
    assert rate_g == pytest.approx(2 * rate_d)


def test_seed_decides_the_weights(accelerator, latents):
    one, again, two = (
        make_trainer(recipe(), seed, latents, accelerator).generator.blocks[0].attn.qkv.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_networks_train_as_others_do(accelerator, latents, checkpointing):
    states = []
    for compiled in (False, True):
        compute = Compute(compile=compiled, activation_checkpointing=checkpointing)
        trainer = make_trainer(recipe("train: {steps: 3}"), 0, latents, accelerator, compute=compute)
        train(trainer, latents)
        networks = (*trainer.generator.parameters(), *trainer.discriminator.parameters())
        states.append(torch.cat([p.detach().flatten() for p in networks]))
    want, got = states
    assert not torch.equal(got, want)  # as code of another order of operations rounds
    assert (got - want).norm() < 1e-4 * want.norm()


def test_training_key_is_of_what_decides_the_training_and_of_nothing_else(latents):
    base = training_key(recipe(), 0, latents)
    for unrelated in ("study: {S-2: {width: 12}}", "evaluate: {samples: 300}", "compute: {threads: 2}"):
        assert training_key(recipe(unrelated), 0, latents) == base
    keys = [base, training_key(recipe(), 1, latents), training_key(recipe(), 0, latents, b"reference")]
    for change in ("train: {steps: 13}", "model: {width: 16}", "loss: {gamma: 0.2}", "repa: {weight: 0.5}"):
        keys.append(training_key(recipe(change), 0, latents))
    assert len({*keys}) == len(keys)
