"""Two training steps and the start of every parameter, as recorded of the paper's release."""

import json

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from torch import nn

from gat.config import Loss, Optimization
from gat.data.latents import Batch
from gat.gan.augment import AugmentParams
from gat.gan.losses import Perturbation
from gat.gan.networks import Discriminator, Generator
from gat.gan.optim import BASE_BATCH
from gat.gan.training import RandomNumbers, Trainer
from gat.official import load_discriminator, load_generator

LOADERS = {"generator": load_generator, "discriminator": load_discriminator, "ema": load_generator}
UNUSED = "generator.x_embedder"  # its output is multiplied by zero
DRAWINGS = 8  # of the networks' start, averaged


class Recorded:
    """Weights before and after two steps of the release in float64, all that was drawn, losses, gradients."""

    def __init__(self) -> None:
        with safe_open(ROOT / "tests/data/release_training.safetensors", "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.answers = json.loads(file.metadata()["answers"])

    def section(self, prefix: str) -> dict[str, torch.Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def network(self, name: str, *prefixes: str) -> nn.Module:
        """A network of the release: tensors under later prefixes replace those under earlier ones."""
        state: dict[str, torch.Tensor] = {}
        for prefix in prefixes:
            state |= self.section(prefix)
        return LOADERS[name](state, self.answers["config"]["heads"])

    def random_numbers(self, step: int) -> RandomNumbers:
        """In place of `Trainer.sample_random_numbers`."""

        def perturbation(part: str) -> Perturbation:
            values = self.section(f"step{step}.{part}.")
            return Perturbation(AugmentParams(*(values[name] for name in AugmentParams._fields)), values["noise"])

        values = self.section(f"step{step}.")
        perturb_d, perturb_g = ((perturbation(f"{network}.real"), perturbation(f"{network}.fake")) for network in "dg")
        eps = values["penalty_real"], values["penalty_fake"]
        return RandomNumbers(values["posterior"], values["z"], perturb_d, perturb_g, eps)

    def batch(self, step: int) -> Batch:
        return Batch(self.tensors[f"step{step}.moments"], self.tensors[f"step{step}.labels"])


def assert_near(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want.keys() - {"final_layer.1.bias"}:  # that one cancels in every loss: rounding noise
        error = (got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-9)
        assert error < 1e-6, name


def test_two_steps_are_the_releases(accelerator, float64, monkeypatch):
    """Losses, penalties, gradients, norms before clipping, both optimizers, class means and EMA, within 1e-6."""
    recorded = Recorded()
    config = recorded.answers["config"]
    loss = Loss(gamma=config["penalty"], scale_gamma_by_pixels=False)
    train = Optimization(
        batch_size=config["batch"],
        learning_rate=config["lr"] * (BASE_BATCH / config["batch"]) ** 0.5,
        scale_lr_by_width=False,
        betas=config["betas"],
        max_grad_norm=config["clip"],
        ema_decay=config["ema"],
    )
    networks = [recorded.network(name, f"{name}.") for name in ("generator", "discriminator")]
    trainer = Trainer(accelerator, *networks, config["scaling_factor"], train, loss)
    gradients: list[list[torch.Tensor]] = []  # of each update, before clipping
    clip = accelerator.clip_grad_norm_

    def record_and_clip(parameters, norm):
        parameters = list(parameters)
        gradients.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, norm)

    monkeypatch.setattr(trainer, "sample_random_numbers", recorded.random_numbers)
    monkeypatch.setattr(accelerator, "clip_grad_norm_", record_and_clip)
    for step in range(2):
        logs = {name: value.item() for name, value in trainer.step(recorded.batch(step)).items()}
        want = recorded.answers[f"step{step}"]
        total = logs["loss_d"] + config["penalty"] / 2 * (logs["r1"] + logs["r2"])
        assert total == pytest.approx(want["d"]["loss"], rel=1e-6)
        assert logs["r1"] == pytest.approx(want["d"]["parts"]["r1_loss"], rel=1e-6)
        assert logs["r2"] == pytest.approx(want["d"]["parts"]["r2_loss"], rel=1e-6)
        assert logs["loss_g"] == pytest.approx(want["g"]["loss"], rel=1e-6)
        assert logs["grad_d"] == pytest.approx(want["d"]["grad_norm"], rel=1e-6)
        assert logs["grad_g"] == pytest.approx(want["g"]["grad_norm"], rel=1e-6)

    for got, name, part in ((gradients[0], "discriminator", "d"), (gradients[1], "generator", "g")):
        want = dict(recorded.network(name, f"{name}.", f"step0.grad_{part}.").named_parameters())
        assert_near(dict(zip(want, got, strict=True)), want)
    trained = {"generator": trainer.generator, "discriminator": trainer.discriminator, "ema": trainer.ema}
    for name, network in trained.items():
        assert_near(network.state_dict(), recorded.network(name, f"after.{name}.").state_dict())


def test_every_parameter_starts_as_the_releases():
    """Mean and spread of every weight of fresh networks, which show a gain that was lost."""
    recorded = json.loads((ROOT / "tests/data/release_init.json").read_text())
    config = recorded["config"]
    sizes = {key: config[key] for key in ("width", "depth", "heads", "patch", "latent_size", "classes")}
    head = {key: config[key] for key in ("repa_dim", "projector_dim")} | {"cmap_dim": config["class_map_dim"]}
    torch.manual_seed(0)
    for network, make, options in (("generator", Generator, sizes), ("discriminator", Discriminator, sizes | head)):
        drawn = [dict(make(**options).named_parameters()) for _ in range(DRAWINGS)]
        release = {
            name.removeprefix(f"{network}."): value
            for name, value in recorded["parameters"].items()
            if name.startswith(network) and not name.startswith(UNUSED)
        }
        assert drawn[0].keys() == release.keys() - {"pos_embed"}  # a parameter in the release, a buffer here
        for name in drawn[0]:
            mean, spread = release[name]["mean"], release[name]["std"]
            values = torch.stack([parameters[name].detach() for parameters in drawn])
            assert list(values.shape[1:]) == release[name]["shape"], name
            tolerance = 6 * spread * (DRAWINGS / 3 / values.numel()) ** 0.5 + 1e-4  # the release's are of 3 drawings
            assert values.mean().item() == pytest.approx(mean, abs=tolerance), name
            assert values.std().item() == pytest.approx(spread, abs=tolerance), name
