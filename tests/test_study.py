import copy
import shutil

import pytest
import torch
import yaml
from conftest import ROOT

from gat.config import MODEL, Params, ParamsError, Training
from gat.data.latents import Latents, TrainingBatches
from gat.gan.training import Metrics, Trainer, fit
from gat.study.networks import describe, fingerprint, make_trainer

SMOKE = yaml.safe_load((ROOT / "profiles/smoke.yaml").read_text())


def params(**changes: object) -> Params:
    """The smoke profile with values changed, keys written `section__key`."""
    content = copy.deepcopy(SMOKE)
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = content
        for section in sections:
            place = place[section.replace("_", "-") if section not in place else section]
        place[last] = value
    return Params.model_validate(content)


def train(trainer: Trainer, latents: Latents) -> list[Metrics]:
    return fit(trainer, TrainingBatches(latents, trainer.train.batch_size, trainer.seed))


def test_paper_wide_model_trains_on_a_cpu(accelerator, latents):
    settings = params(model__width=1152, train__steps=1)
    trainer = make_trainer(settings, Training(MODEL, 0), latents, accelerator)
    assert trainer.generator.config["heads"] == 18
    assert describe(settings, Training(MODEL, 0), latents)["width"] == 1152
    (row,) = train(trainer, latents)
    assert row["loss_d"] == pytest.approx(0.7, abs=0.5)


def test_switches_reach_the_networks_and_the_losses(accelerator, latents):
    changed = params(
        loss__levels={"schedule": "none", "count": 4},
        loss__gamma=0.0,
        model__discriminator={"width": 16},
        train__scale_lr_by_width=False,
    )
    trainer = make_trainer(changed, Training(MODEL, 0), latents, accelerator)
    assert trainer.generator.config["levels"] == 1
    assert (trainer.generator.config["width"], trainer.discriminator.config["width"]) == (12, 16)
    rate_g, rate_d = learning_rates(trainer)
    assert rate_g == rate_d
    (row, *_) = train(trainer, latents)
    assert "r1" not in row


def learning_rates(trainer: Trainer) -> list[float]:
    return [optimizer.param_groups[0]["lr"] for optimizer in (trainer.optimizer_g, trainer.optimizer_d)]


def test_learning_rates_follow_each_networks_width(accelerator, latents):
    changed = params(model__discriminator={"width": 24})
    rate_g, rate_d = learning_rates(make_trainer(changed, Training(MODEL, 0), latents, accelerator))
    assert rate_g == pytest.approx(2 * rate_d)


def test_seed_decides_the_weights(accelerator, latents):
    def weights(seed: int) -> torch.Tensor:
        trainer = make_trainer(params(), Training(MODEL, seed), latents, accelerator)
        return trainer.generator.blocks[0].attn.qkv.weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("blocks", {}),
        ("blocks", {"compute__activation_checkpointing": True}),
        ("whole", {"model__discriminator": {"width": 24}}),  # and so two learning rates
    ],
)
def test_compiled_networks_train_as_others_do(accelerator, latents, mode, changes):
    def trained(mode: str | None) -> torch.Tensor:
        settings = params(train__steps=3, compute__compile=mode, **changes)
        trainer = make_trainer(settings, Training(MODEL, 0), latents, accelerator)
        generator, discriminator = trainer.generator, trainer.discriminator
        parts = {"blocks": generator.blocks[0], "whole": generator}
        assert [name for name, part in parts.items() if part._compiled_call_impl] == ([mode] if mode else [])
        train(trainer, latents)
        return torch.cat([p.detach().flatten() for p in (*generator.parameters(), *discriminator.parameters())])

    want, got = trained(None), trained(mode)
    assert ((got - want).norm() / want.norm()).item() < 1e-4


def test_fingerprint_is_of_what_defines_the_run_and_nothing_else(latents, tmp_path):
    base = fingerprint(params(), Training(MODEL, 0), latents)
    assert fingerprint(params(study__S_2__width=12), Training(MODEL, 0), latents) == base
    assert fingerprint(params(evaluate__samples=300), Training(MODEL, 0), latents) == base
    assert fingerprint(params(), Training(MODEL, 1), latents) != base
    assert fingerprint(params(train__steps=13), Training(MODEL, 0), latents) != base
    assert fingerprint(params(model__width=16), Training(MODEL, 0), latents) != base
    assert fingerprint(params(loss__gamma=0.2), Training(MODEL, 0), latents) != base
    (tmp_path / "file").write_text("reference")
    assert fingerprint(params(), Training(MODEL, 0), latents, [tmp_path / "file"]) != base


def test_patch_that_does_not_fit_the_latents_is_refused(accelerator, latents):
    content = copy.deepcopy(SMOKE)
    content["vae"]["pretrained"] = "some/hub-id"  # whose latents' side is known only when they are there
    content["model"]["patch"] = 3
    with pytest.raises(ParamsError, match=r"model\.patch: 3 is not allowed; allowed: divisors of 8"):
        make_trainer(Params.model_validate(content), Training(MODEL, 0), latents, accelerator)
