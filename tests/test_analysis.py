"""Analyses of networks against closed forms."""

import numpy as np
import pytest
import torch
from conftest import TINY

from gat.config import Loss, Optimization
from gat.data.latents import TrainingBatches
from gat.gan.networks import Discriminator, Generator
from gat.gan.training import Trainer
from gat.study.network_analysis import (
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


def test_accuracy_is_of_the_highest_logit_and_relative_accuracy_forgets_what_a_label_adds():
    logits = torch.tensor([[5.0, 0.0], [5.0, 2.0], [5.0, 0.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    assert relative_accuracy(logits, torch.tensor([0, 1, 0])) == 1.0
