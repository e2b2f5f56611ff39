"""Compute of a training step: against the step itself, a count by formula, and the release's networks."""

import json

import pytest
import yaml
from conftest import ROOT
from helpers import make_trainer, save_teacher
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gat.config import MODEL, Params
from gat.gan.networks import Z_DIM
from gat.gan.repa import Teacher
from gat.study.cost import cost_of, step_gmacs

LARGE = ("imagenet256", "imagenet512", "cifar10")
PROFILES = ["params.yaml", "profiles/smoke.yaml"]
PROFILES += [pytest.param(f"profiles/{name}.yaml", marks=pytest.mark.thorough) for name in LARGE]
PAPERS = {"latent_size": 32, "channels": 4, "classes": 1000, "levels": 4, "patch": 2}
HEAD = {"cmap_dim": 2048, "repa_dim": 768, "projector_dim": 2048}


def by_formula(g: dict, d: dict, samples: int, penalty: bool) -> float:
    """GMACs of a step: a layer of n inputs and m outputs costs n·m a token, attention 2·width·tokens a token.

    A layer's backward costs the forward twice, or once if its weights are frozen; attention's always twice.
    """

    def hidden(width: int) -> int:
        return 8 * width // 3

    def block(width: int) -> int:
        return 4 * width**2 + 3 * width * hidden(width)

    width, tokens = g["width"], (g["latent_size"] // g["patch"]) ** 2
    pixels = g["patch"] ** 2 * g["channels"]
    styles = 2 * Z_DIM * width + width**2 + g["depth"] * 4 * width**2 + g["levels"] * width**2
    layers = tokens * (g["depth"] * block(width) + g["levels"] * width * pixels)
    forward = styles + layers + g["depth"] * 2 * width * tokens**2

    width, tokens = d["width"], (d["latent_size"] // d["patch"]) ** 2
    embed = tokens * d["levels"] * d["patch"] ** 2 * d["channels"] * width
    # What a last block costs of which only [cls] is needed, with queries, keys and values of all tokens.
    of_cls = 3 * width**2 * (tokens + 1) + width**2 + 3 * width * hidden(width)
    last = block(width) * (tokens + 1) if d["repa_dim"] else of_cls
    attend = 2 * width * (tokens + 1)
    last_attend = attend * (tokens + 1 if d["repa_dim"] else 1)
    body = (d["depth"] - 1) * block(width) * (tokens + 1) + width * d["cmap_dim"]
    attention = (d["depth"] - 1) * attend * (tokens + 1)
    copies = 4 if penalty else 2
    of_d = copies * (2 * embed + 3 * (body + last) + 3 * (attention + last_attend))
    of_g = 3 * embed + 3 * (body + of_cls) + 4 * (attention + attend)
    inner = d["projector_dim"]
    head = (tokens + 1) * (width * inner + inner**2 + inner * d["repa_dim"]) if d["repa_dim"] else 0
    correlate = (copies + 2) * d["levels"] ** 2 * d["channels"] * d["latent_size"] ** 2 * (d["levels"] > 1)  # noise
    mapped = 4 * 2 * d["cmap_dim"] ** 2 * min(d["classes"], samples) / samples
    return samples * (3 * forward + of_d + of_g + 3 * head + correlate + mapped) / 1e9


@pytest.mark.parametrize("profile", PROFILES)
def test_every_runs_step_is_that_of_the_formula(profile):
    params = Params.model_validate(yaml.safe_load((ROOT / profile).read_text()))
    trained = params.vae.pretrained is None
    factor, classes = (2 ** (len(params.vae.recipe.channels) - 1), 10) if trained else (8, 1000)
    sizes = {"latent_size": params.data.resolution // factor, "channels": 4, "classes": classes}
    counted: dict[str, tuple] = {}  # the same networks once
    for name in {MODEL, *params.trained_runs}:
        run, loss, train, repa = params.recipe(name)
        g, d = (
            sizes | {"levels": levels, "width": n.width, "depth": n.depth, "heads": n.head_count, "patch": n.patch}
            for n, levels in ((run, loss.levels.made), (run.discriminator_network, loss.levels.seen))
        )
        d |= {"cmap_dim": loss.cmap_dim, "repa_dim": 768 if repa.teacher else None, "projector_dim": repa.projector_dim}
        samples = train.batch_size
        counted.setdefault(json.dumps([g, d, samples, loss.gamma > 0]), (g, d, samples, loss.gamma > 0))
    for arguments in counted.values():
        assert step_gmacs(*arguments) == pytest.approx(by_formula(*arguments), rel=0.01), arguments


def test_papers_largest_step():
    """At the release's batch of 512; its own count of the step is 15·D + 4·G a sample, with D on its own label."""
    g = PAPERS | {"width": 1152, "depth": 28, "heads": 16}
    d = g | HEAD
    counted = step_gmacs(g, d, 512, penalty=True)
    assert counted == pytest.approx(by_formula(g, d, 512, penalty=True), rel=0.01)
    release = 512 * (15 * 120.98 + 4 * 118.6)
    assert counted == pytest.approx(release - 512 * 118.6, rel=0.03)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_the_step_itself_has_the_counted_operations(with_teacher, accelerator, latents, digits, tmp_path):
    teacher = Teacher(str(save_teacher(tmp_path))) if with_teacher else None
    images = digits if with_teacher else None
    trainer, batches = make_trainer(accelerator, latents, teacher=teacher, images=images)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainer.step(batches[0])
    run = {"micro_batch": 4, "batch_size": 16, "steps": 1, "gamma": 0.1, "processes": 1}
    folder = tmp_path if with_teacher else None
    cost = cost_of(trainer.generator.config, trainer.discriminator.config, run, folder)
    gmacs = cost["training_gmacs"] + cost.get("teacher_gmacs", 0)
    assert gmacs == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-9)
