"""Analyses of networks against closed forms."""

import numpy as np
import pytest
import torch
from conftest import TINY

from gat.config import Loss, Optimization
from gat.data.latents import TrainingBatches
from gat.data.pixels import decode
from gat.evaluation.metrics import neighbour_accuracy
from gat.gan.networks import Discriminator, Generator
from gat.gan.training import Trainer
from gat.seeds import Purpose, generator_of
from gat.study.network_analysis import (
    Probed,
    cknna,
    discriminator_knowledge,
    discriminator_tokens,
    layer_changes,
    layer_use,
    linear_cka,
    other_features,
    pooled_tokens,
    probed,
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
    assert all(len(used[name]) == 4 for name in ("skipped", "cosine", "cka"))
    images = decode(pipeline.vae, generator(z, labels)).flatten(1).double()
    assert used["spread"] == pytest.approx(float((images[1:] - images[:-1]).norm(dim=1).mean()), rel=1e-3)
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


def test_tokens_are_those_behind_the_logit():
    torch.manual_seed(0)
    discriminator = Discriminator(**TINY, cmap_dim=32)
    levels, labels = torch.randn(4, 6, 4, 8, 8), torch.arange(6)
    tokens = discriminator_tokens(discriminator, levels)
    assert [own.shape for own in tokens] == [(6, 17, 16)] * 4
    logits = (discriminator.final_layer(tokens[-1][:, 0]) * discriminator.y_embedder(labels)).sum(-1)
    torch.testing.assert_close(logits, discriminator(levels, labels))


def test_pooled_tokens_are_the_same_each_time_and_of_each_image():
    torch.manual_seed(0)
    discriminator, latents = Discriminator(**TINY, cmap_dim=32), torch.randn(300, 4, 8, 8)
    pooled, again = (pooled_tokens(discriminator, latents, Loss()) for _ in range(2))
    for pooling in ("cls", "mean"):
        assert [own.shape for own in pooled[pooling]] == [(300, 16)] * 4
        for own, other in zip(pooled[pooling], again[pooling], strict=True):
            assert np.array_equal(own, other)
            assert len(np.unique(own, axis=0)) == 300


def test_a_discriminator_that_sees_classes_is_told_from_an_untrained_one():
    """Classes differ in the mean of the faintest channel, all that this one's patch embedding looks at."""
    torch.manual_seed(0)
    labels = np.arange(400) % 2
    latents = torch.randn(400, 4, 8, 8)
    latents[:, 0] += 0.6 * torch.from_numpy(labels)[:, None, None]
    latents[:, 1:] *= 4
    discriminator, halves = Discriminator(**TINY, cmap_dim=32), (slice(0, 200), slice(200, 400))
    with torch.no_grad():
        discriminator.x_embedder.proj.weight.view(16, 4, 4, 2, 2)[:, :, 1:] = 0
    known, tested = (Probed(latents[half], labels[half]) for half in halves)
    features = pooled_tokens(discriminator, tested.latents, Loss())["cls"][-1]
    found = discriminator_knowledge(discriminator, known, tested, features, Loss(), seed=0)
    assert found["trained"]["mean"][0] > 0.9
    assert found["trained"]["mean"][0] > found["untrained"]["mean"][0] + 0.1
    assert found["trained"]["cknna"] == pytest.approx(1)
    assert found["untrained"]["cknna"] < 0.5


@pytest.fixture
def trainer(latents, accelerator) -> Trainer:
    train = Optimization(batch_size=8, learning_rate=1e-3, scale_lr_by_width=False, style_gain=1.0)
    torch.manual_seed(0)
    config = TINY | {"latent_size": latents.size, "channels": latents.channels}
    networks = Generator(**config), Discriminator(**config, cmap_dim=32)
    return Trainer(accelerator, *networks, latents.scaling_factor, train)


@pytest.mark.parametrize("begin", [0, 3])
def test_layers_move_in_proportion_to_a_small_rate_and_the_trainer_stays(begin, trainer, latents):
    batches = TrainingBatches(latents, 8, 0)
    for step in range(begin):
        trainer.step(batches[step])
    state = {name: tensor.clone() for name, tensor in trainer.state().items()}
    slow, twice = (layer_changes(trainer, batches, rate, window=2, count=4) for rate in (1e-6, 2e-6))
    for network in ("generator", "discriminator"):
        assert len(slow[network]) == 5  # four blocks, and the output
        assert np.array(twice[network]) == pytest.approx(2 * np.array(slow[network]), rel=0.05)
    assert slow["generator"][-1] > 0
    after = trainer.state()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert trainer.steps_done == begin
    assert {group["lr"] for group in trainer.optimizer_g.param_groups} == {1e-3 * (8 / 512) ** 0.5}


def test_changes_are_those_of_the_step_itself(trainer, latents):
    """Of the generator's latents, by one step at the trainer's own rate."""
    batches, rate = TrainingBatches(latents, 8, 0), 1e-3 * (8 / 512) ** 0.5
    measured = layer_changes(trainer, batches, rate, window=1, count=4)["generator"][-1]
    rng = generator_of(0, Purpose.STEP_SIZES)
    z, labels = torch.randn(4, 64, generator=rng), batches[0].labels[:4]
    before = trainer.generator(z, labels)
    trainer.step(batches[0])
    moved = trainer.generator(z, labels) - before
    assert measured == pytest.approx(float(moved.square().mean().sqrt()), rel=1e-4)


def test_fewer_images_than_neighbours_are_enough():
    x = torch.randn(6, 8)
    assert cknna(x, 2 * x) == pytest.approx(1)
    features = np.array([[0.0], [1.0], [10.0], [11.0]])
    assert neighbour_accuracy(features[:1], np.array([0]), features[1:2], np.array([0])) == 1


def test_features_and_latents_of_images_are_those_of_each_image(digits, vae):
    """In batches, without augmentation."""
    rows = np.arange(0, 140, 2)
    features = other_features(digits, rows, flat)
    assert features.shape == (70, 32 * 32 * 3)
    np.testing.assert_allclose(features[65:], other_features(digits, rows[65:], flat), atol=1e-4)
    known = probed(digits, rows, vae)
    assert known.latents.shape == (70, 4, 8, 8)
    assert np.array_equal(known.labels, digits.labels[rows])
    torch.testing.assert_close(known.latents[65:], probed(digits, rows[65:], vae).latents)
