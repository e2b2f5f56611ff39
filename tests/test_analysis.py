"""Analyses against closed forms, ablations against numbers by hand."""

import io

import numpy as np
import pytest
import torch
from conftest import TINY

from gat.config import Loss, Optimization, Run
from gat.data.latents import TrainingBatches
from gat.gan.networks import Discriminator, Generator
from gat.gan.training import Trainer
from gat.report.ablations import Ablation, analyses_content, change_of, draw_ablations, markdown, scaled_apart
from gat.study.analysis import (
    accuracy,
    cknna,
    discriminator_outputs,
    layer_use,
    linear_cka,
    relative_accuracy,
    step_sizes,
)


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32)


def test_cka_is_one_for_rotated_and_scaled_and_small_for_unrelated():
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, torch.randn(500, 6)) < 0.05
    a, b = x[:, :1], x[:, :1] + x[:, 1:2]  # of single columns it is the squared correlation
    assert linear_cka(a, b) == pytest.approx(np.corrcoef(a[:, 0], b[:, 0])[0, 1] ** 2, rel=1e-5)


def test_cknna_sees_neighbourhoods():
    torch.manual_seed(0)
    x = torch.randn(300, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8))[0]
    assert cknna(x, 2 * x @ rotation) == pytest.approx(1)
    near, far = cknna(x, x + 0.1 * torch.randn(300, 8)), cknna(x, x + torch.randn(300, 8))
    assert 1 > near > far > cknna(x, torch.randn(300, 8))
    assert abs(cknna(x, torch.randn(300, 8))) < 0.2


def test_a_block_that_does_nothing_is_seen_to_do_nothing(pipeline):
    generator = pipeline.generator
    z, labels = torch.randn(12, 64), torch.arange(12) % 10
    used = layer_use(generator, pipeline.vae, z, labels, flat)
    assert all(len(values) == 4 for values in used.values())
    assert min(used["skipped"]) > 0.01
    assert max(used["cosine"][1:]) < 0.9999
    before = generator(z, labels)
    idle = generator.blocks[2]
    kept = {name: value.clone() for name, value in idle.state_dict().items()}
    with torch.no_grad():
        for layer in (idle.attn.proj, idle.mlp.w3):
            layer.weight.zero_()
            layer.bias.zero_()
    used = layer_use(generator, pipeline.vae, z, labels, flat)
    assert used["skipped"][2] == pytest.approx(0, abs=1e-6)
    assert used["cosine"][2] == pytest.approx(1)
    assert used["cka"][2] == pytest.approx(1)
    assert used["skipped"][1] > 0.01
    idle.load_state_dict(kept)
    assert torch.equal(generator(z, labels), before)  # no hook is left


def test_logits_of_all_classes_are_those_of_each(latents):
    torch.manual_seed(0)
    discriminator = Discriminator(**TINY, cmap_dim=32)
    real, labels = torch.randn(6, 4, 8, 8), torch.arange(6)
    loss = Loss(levels={"schedule": "none"}, cmap_dim=32)
    single = Discriminator(**TINY | {"levels": 1}, cmap_dim=32)
    logits, cls = discriminator_outputs(single, real[None], labels, loss, torch.Generator().manual_seed(0))
    assert logits.shape == (6, 10)
    assert cls.shape == (6, 16)
    for label in (0, 7):
        torch.testing.assert_close(logits[:, label], single(real[None], torch.full((6,), label)))
    noised, _ = discriminator_outputs(discriminator, real[None], labels, Loss(), torch.Generator().manual_seed(0))
    again, _ = discriminator_outputs(discriminator, real[None], labels, Loss(), torch.Generator().manual_seed(0))
    assert torch.equal(noised, again)


def test_steps_grow_with_the_learning_rate(latents, accelerator):
    def sizes(rate: float) -> dict[str, dict[str, float]]:
        train = Optimization(batch_size=8, learning_rate=rate, scale_lr_by_width=False, style_gain=1.0)
        torch.manual_seed(0)
        config = TINY | {"latent_size": latents.size, "channels": latents.channels}
        trainer = Trainer(
            accelerator, Generator(**config), Discriminator(**config, cmap_dim=32), latents.scaling_factor, train
        )
        return step_sizes(trainer, TrainingBatches(latents, 8, 0), 6, 2, 4)

    slow, fast = sizes(1e-4), sizes(1e-3)
    for when in ("start", "later"):
        for network in ("generator", "discriminator"):
            assert 0 < slow[when][network] < fast[when][network]
    assert 5 < fast["start"]["discriminator"] / slow["start"]["discriminator"] < 20  # a small step is in proportion


def ablation(fids: list[float], baseline: list[float], change: str = "loss.levels.schedule=none") -> Ablation:
    return Ablation("a", change, fids, "L-2", baseline)


def test_a_verdict_weighs_the_noise_of_the_seeds():
    worse = ablation([5.0, 6.0, 7.0], [2.0, 2.0, 2.0])
    assert worse.difference == pytest.approx(4)
    assert worse.verdict == (
        "FID 4 higher than L-2's: worse. The paper's claim, that without noise guidance it is worse, shows here."
    )
    noise = ablation([2.0, 3.0, 4.0], [2.0, 2.6, 3.2])
    assert noise.outcome == "within the noise of the seeds"
    assert "does not show here" in noise.verdict
    assert "better" in ablation([1.0, 1.1], [2.0, 2.1]).verdict
    assert "does not show here" in ablation([1.0, 1.1], [2.0, 2.1]).verdict
    assert "cannot be told" in ablation([5.0], [2.0]).verdict
    silent = ("loss.gamma=1", "train.steps=5000", "repa.teacher=facebook/dinov2-base", "train.learning_rate=0.1")
    for change in (*silent, "loss.gamma=1, loss.levels.schedule=none"):
        assert "claim" not in ablation([5.0, 5.1], [2.0, 2.1], change).verdict
    rate = "train.learning_rate=0.0084, train.scale_lr_by_width=false"
    assert "not its width's is worse, shows here" in ablation([5.0, 5.1], [2.0, 2.1], rate).verdict
    assert Ablation("a", "", [1.0], None, []).verdict == "No run of its size is in the study."


def test_what_an_ablation_changes_is_read_off_its_entry():
    size = {"width": 32, "depth": 3, "heads": 1, "patch": 2}
    run = Run(**size, loss={"levels": {"schedule": "none"}}, train={"scale_lr_by_width": False}, repa={"teacher": None})
    assert change_of(run) == "loss.levels.schedule=none, train.scale_lr_by_width=false, repa.teacher=null"
    assert change_of(Run(**size, discriminator={"width": 12})) == "discriminator.width=12"


def test_networks_scaled_apart_are_compared():
    size = {"depth": 3, "heads": 1, "patch": 2}
    runs = {
        "large-G": Run(**size, width=32, discriminator={"width": 12}),
        "large-D": Run(**size, width=12, discriminator={"width": 32}),
        "other": Run(**size, width=32, discriminator={"width": 20}),
    }
    ablations = [
        Ablation("large-G", "", [20.0, 22.0], "L-2", [3.0, 3.2]),
        Ablation("large-D", "", [6.0, 6.2], "S-2", [30.0, 31.0]),
        Ablation("other", "", [4.0, 4.2], "L-2", [3.0, 3.2]),
    ]
    (sentence,) = scaled_apart(ablations, runs)
    assert "From S-2 (FID 30.50 ± 0.71) to L-2 (3.10 ± 0.14)" in sentence
    assert "larger generator alone 21.00 ± 1.41, with the larger discriminator alone 6.10" in sentence
    assert "The larger discriminator alone against the larger generator alone: better" in sentence
    single = [one._replace(fids=one.fids[:1]) for one in ablations]
    assert "one seed does not tell" in scaled_apart(single, runs)[0]
    assert scaled_apart([ablations[0], ablations[1]._replace(baseline=None)], runs) == []
    same = {"same": Run(**size, width=32, discriminator={"width": 32})}
    assert scaled_apart([Ablation("same", "", [1.0], "L-2", [1.0])], same) == []
    deeper = runs | {"large-D": Run(**size | {"depth": 6}, width=12, discriminator={"width": 32})}
    assert scaled_apart(ablations, deeper) == []


def test_analyses_become_tables_and_plots():
    def result(run: str, width: int, seed: int) -> dict:
        step = {"generator": 0.1 * width, "discriminator": 0.2}
        return {
            "run": run,
            "seed": seed,
            "width": width,
            "patch": 2,
            "baseline": "L" if run == "none" else None,
            "layers": {"skipped": [0.5, 0.1 * seed], "cosine": [0.2, 0.9], "cka": [0.1, 0.8]},
            "guided": run == "B",
            "discriminator": {
                "accuracy": 0.9,
                "relative_accuracy": 0.9,
                "relative_accuracy_on_samples": 0.8,
                "chance": 0.1,
                "cknna": 0.3,
                "reference": "classifier",
            },
            "steps": {rule: {"start": step, "later": step} for rule in ("with", "without")},
        }

    layers, discriminators, start, later = analyses_content(
        [result(run, width, seed) for run, width in (("S", 8), ("B", 16)) for seed in (0, 1)]
    )
    assert layers["rows"][1] == ["S", "2", "0.050 ± 0.071", "0.900 ± 0.000", "0.800 ± 0.000"]
    assert layers["plot"]["series"][0]["y"] == pytest.approx([0.5, 0.05])
    assert "first half of the blocks (rounded up) in all movement: S 0.92 ± 0.12; B 0.92 ± 0.12" in layers["text"]
    assert "claim" not in layers["text"]  # there is no pair of one width
    assert discriminators["rows"][1][0] == "B"
    assert "generator, with the width rule: 1.00 ± 0.00" in start["text"]
    assert "discriminator, with the width rule: 0.00 ± 0.00" in later["text"]
    assert "faster with the width without the rule does not show here for the generator" in start["text"]
    assert start["columns"][2:] == ["width 8", "width 16"]
    page = markdown([ablation([5.0, 6.0], [2.0, 2.1])], ["a sentence"], [layers, discriminators])
    assert "| a          | `loss.levels.schedule=none` | 5.50 ± 0.71 | L-2: 2.05 ± 0.07 |" in page
    assert "- a sentence" in page
    draw_ablations([ablation([5.0, 6.0], [2.0, 2.1])], [layers, start, later], "#d1495b").savefig(io.BytesIO())


def test_what_the_paper_says_of_early_layers_and_of_the_rule_is_weighed():
    def result(run: str, width: int, guided: bool, late: float, change: float) -> dict:
        step = {"generator": change, "discriminator": 0.2}
        return {
            "run": run,
            "width": width,
            "patch": 2,
            "baseline": "L" if run == "none" else None,
            "guided": guided,
            "layers": {"skipped": [0.6, late], "cosine": [0.2, 0.9], "cka": [0.1, 0.8]},
            "steps": {
                "with": {"start": step, "later": step},
                "without": {"start": step | {"generator": change * width}, "later": step},
            },
        }

    rows = [result("L", 32, True, 0.2 + 0.01 * seed, 0.5 + 0.01 * seed) for seed in range(3)]
    rows += [result("S", 8, True, 0.2, 0.5 + 0.01 * seed) for seed in range(3)]
    rows += [result("none", 32, False, 0.6 + 0.01 * seed, 0.5) for seed in range(3)]
    layers, start, later = analyses_content(rows)
    assert "makes early layers be used more, shows here: L against none." in layers["text"]
    assert "faster with the width without the rule shows here for the generator" in start["text"]
    assert "faster with the width without the rule does not show here for the generator" in later["text"]
    few = analyses_content([rows[0], rows[6]])[0]["text"]
    assert "cannot be told from one seed" in few


def test_accuracy_is_of_the_highest_logit_and_relative_accuracy_forgets_what_a_label_adds():
    logits = torch.tensor([[5.0, 0.0], [5.0, 2.0], [5.0, 0.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    assert relative_accuracy(logits, torch.tensor([0, 1, 0])) == 1.0
