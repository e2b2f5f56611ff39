"""Two training steps and the start of every parameter, as recorded of the paper's release."""

import json

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from torch import nn

from gat.augment import Draw, Strength
from gat.latents import Batch
from gat.losses import Look, Objective
from gat.networks import Discriminator, Generator
from gat.noise import level_times
from gat.official import load_discriminator, load_generator
from gat.training import Draws, Recipe, Trainer

LOADERS = {"generator": load_generator, "discriminator": load_discriminator, "ema": load_generator}
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

    def draws(self, step: int) -> Draws:
        """What `Trainer.draw` gives in its place."""

        def look(part: str) -> Look:
            values = self.section(f"step{step}.{part}.")
            return Look(Draw(*(values[name] for name in Draw._fields)), values["noise"])

        values = self.section(f"step{step}.")
        looks_d, looks_g = ((look(f"{network}.real"), look(f"{network}.fake")) for network in "dg")
        return Draws(
            values["posterior"], values["z"], looks_d, looks_g, (values["penalty_real"], values["penalty_fake"])
        )

    def batch(self, step: int) -> Batch:
        return Batch(self.tensors[f"step{step}.moments"], self.tensors[f"step{step}.labels"])


def assert_near(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys()
    for name in want.keys() - {"to_class_map.bias"}:  # that one cancels in every loss: rounding noise
        error = (got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-9)
        assert error < 1e-6, name


def test_two_steps_are_the_releases(accelerator, float64, monkeypatch):
    """Losses, penalties, gradients, norms before clipping, both optimizers, class means and EMA, within 1e-6."""
    recorded = Recorded()
    config = recorded.answers["config"]
    recipe = Recipe(
        Objective(tuple(level_times(4)), Strength(), config["penalty"]),
        config["batch"],
        learning_rate_g=config["lr"],
        learning_rate_d=config["lr"],
        betas=tuple(config["betas"]),
        clip=config["clip"],
        ema=config["ema"],
    )
    networks = [recorded.network(name, f"{name}.") for name in ("generator", "discriminator")]
    trainer = Trainer(accelerator, *networks, recipe, config["scaling_factor"])
    gradients: list[list[torch.Tensor]] = []  # of each update, before clipping
    clip = accelerator.clip_grad_norm_

    def record_and_clip(parameters, norm):
        parameters = list(parameters)
        gradients.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, norm)

    monkeypatch.setattr(trainer, "draw", recorded.draws)
    monkeypatch.setattr(accelerator, "clip_grad_norm_", record_and_clip)
    for step in range(2):
        logs = {name: value.item() for name, value in trainer.step(recorded.batch(step)).items()}
        want = recorded.answers[f"step{step}"]
        loss = logs["loss_d"] + config["penalty"] / 2 * (logs["r1"] + logs["r2"])
        assert loss == pytest.approx(want["d"]["loss"], rel=1e-6)
        assert logs["r1"] == pytest.approx(want["d"]["parts"]["r1_loss"], rel=1e-6)
        assert logs["r2"] == pytest.approx(want["d"]["parts"]["r2_loss"], rel=1e-6)
        assert logs["loss_g"] == pytest.approx(want["g"]["loss"], rel=1e-6)
        assert logs["grad_d"] == pytest.approx(want["d"]["grad_norm"], rel=1e-6)
        assert logs["grad_g"] == pytest.approx(want["g"]["grad_norm"], rel=1e-6)

    for got, name, part in ((gradients[0], "discriminator", "d"), (gradients[1], "generator", "g")):
        want = dict(recorded.network(name, f"{name}.", f"step0.grad_{part}.").named_parameters())
        assert_near(dict(zip(want, got, strict=True)), want)
    trained = {"generator": trainer.plain_generator, "discriminator": trainer.plain_discriminator, "ema": trainer.ema}
    for name, network in trained.items():
        assert_near(network.state_dict(), recorded.network(name, f"after.{name}.").state_dict())


def test_every_parameter_starts_as_the_releases():
    """Mean and spread of every weight of fresh networks, which show a gain that was lost."""
    recorded = json.loads((ROOT / "tests/data/release_init.json").read_text())
    config = recorded["config"]
    sizes = {key: config[key] for key in ("width", "depth", "heads", "patch", "latent_size", "classes")}
    head = {key: config[key] for key in ("repa_dim", "projector_dim", "class_map_dim")}

    def named_as_ours(network: str, statistic: str) -> dict[str, float]:
        """The release's statistics, sent through its loader as tensors filled with them."""
        state = {
            name.removeprefix(f"{network}."): torch.full(value["shape"], value[statistic])
            for name, value in recorded["parameters"].items()
            if name.startswith(network)
        }
        state.setdefault("w_avg", torch.zeros(config["classes"], config["width"]))
        if network == "discriminator":
            del state["w_avg"]
        return {name: tensor.flatten()[0].item() for name, tensor in LOADERS[network](state, 2).named_parameters()}

    torch.manual_seed(0)
    for network, make in (("generator", Generator), ("discriminator", Discriminator)):
        options = sizes if network == "generator" else sizes | head
        drawn = [dict(make(**options).named_parameters()) for _ in range(DRAWINGS)]
        means, spreads = named_as_ours(network, "mean"), named_as_ours(network, "std")
        assert means.keys() == drawn[0].keys()
        for name, mean in means.items():
            values, spread = torch.stack([parameters[name].detach() for parameters in drawn]), spreads[name]
            tolerance = 6 * spread * (DRAWINGS / 3 / values.numel()) ** 0.5 + 1e-4  # the release's are of 3 drawings
            assert values.mean().item() == pytest.approx(mean, abs=tolerance), name
            assert values.std().item() == pytest.approx(spread, abs=tolerance), name
