import pytest
import torch
import torch.nn.functional as F

from gat.config import Augment, Levels, Loss
from gat.gan.augment import sample_augment_params
from gat.gan.losses import (
    EPS_SIGMA,
    Perturbation,
    augment_and_noise,
    discriminator_loss,
    generator_loss,
    penalty_weight,
)
from gat.gan.networks import Discriminator

# Latents here have side 8: γ is given as it is.
PAPER = Loss(scale_gamma_by_pixels=False)
PLAIN = Loss(
    levels=Levels(schedule="none"),
    augment=Augment(color=0.0, translation=0.0, cutout=0.0, flip=0.0),
    scale_gamma_by_pixels=False,
)


def perturbations(count: int, loss: Loss) -> tuple[Perturbation, Perturbation]:
    rng = torch.Generator().manual_seed(0)
    real, fake = (
        Perturbation(
            sample_augment_params(count, 8, loss.augment, rng),
            torch.randn(loss.levels.made, count, 4, 8, 8, generator=rng),
        )
        for _ in range(2)
    )
    return real, fake


@pytest.fixture
def batch(float64):
    torch.manual_seed(0)
    return torch.randn(3, 4, 8, 8), torch.randn(4, 3, 4, 8, 8), torch.tensor([0, 1, 2])


@pytest.fixture
def discriminator(float64):
    torch.manual_seed(1)
    discriminator = Discriminator(width=16, depth=4, heads=2, patch=2, latent_size=8, classes=5, cmap_dim=16)
    torch.nn.init.normal_(discriminator.y_embedder.embedding_table.weight)  # for logits, and slopes, that matter
    return discriminator


def test_losses_are_softplus_of_the_relativistic_gap(batch):
    real, fake, labels = batch

    def discriminate(levels, _):
        return levels[-1].mean((1, 2, 3))

    perturb = perturbations(3, PLAIN)
    loss = PLAIN.model_copy(update={"gamma": 0.0})
    total, terms = discriminator_loss(discriminate, real, fake[:1], labels, perturb, (real, fake[:1]), loss)
    gap = real.mean((1, 2, 3)) - fake[0].mean((1, 2, 3))
    torch.testing.assert_close(total, F.softplus(-gap).mean())
    torch.testing.assert_close(terms["gap"], gap.mean())
    torch.testing.assert_close(
        generator_loss(discriminate, real, fake[:1], labels, perturb, loss), F.softplus(gap).mean()
    )


def test_one_batched_call_equals_the_paper_written_out(batch, discriminator):
    """Four separate calls, each copy augmented and noised by its original's draws, ε before the augmentation."""
    real, fake, labels = batch
    perturb = perturbations(3, PAPER)
    eps = (torch.randn_like(real), torch.randn_like(fake))
    total, _ = discriminator_loss(discriminator, real, fake, labels, perturb, eps, PAPER)
    repeated = real.repeat(4, 1, 1, 1, 1)
    d_real = discriminator(augment_and_noise(repeated, perturb[0], PAPER), labels)
    d_fake = discriminator(augment_and_noise(fake, perturb[1], PAPER), labels)
    moved_real = (real + EPS_SIGMA * eps[0]).repeat(4, 1, 1, 1, 1)
    d_moved_real = discriminator(augment_and_noise(moved_real, perturb[0], PAPER, reference=real), labels)
    d_moved_fake = discriminator(
        augment_and_noise(fake + EPS_SIGMA * eps[1], perturb[1], PAPER, reference=fake[-1]), labels
    )
    r1 = ((d_real - d_moved_real) / 0.01).square().mean()
    r2 = ((d_fake - d_moved_fake) / 0.01).square().mean()
    torch.testing.assert_close(total, F.softplus(d_fake - d_real).mean() + 0.05 * (r1 + r2))
    assert min(r1, r2) > 0.1


def test_generators_gradient_flows_through_the_fakes_alone(batch, discriminator):
    real, fake, labels = batch
    real.requires_grad_()
    fake.requires_grad_()
    perturb = perturbations(3, PAPER)
    generator_loss(discriminator.requires_grad_(False), real, fake, labels, perturb, PAPER).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def test_gamma_is_the_papers_at_its_own_size_and_grows_with_the_pixels(batch, discriminator):
    assert penalty_weight(Loss(), 32) == pytest.approx(0.1)
    assert penalty_weight(Loss(), 8) == pytest.approx(0.1 / 16)
    assert penalty_weight(Loss(), 64) == pytest.approx(0.4)
    assert penalty_weight(Loss(scale_gamma_by_pixels=False), 8) == pytest.approx(0.1)
    real, fake, labels = batch
    total, terms = discriminator_loss(discriminator, real, fake, labels, perturbations(3, PAPER), (real, fake), Loss())
    torch.testing.assert_close(total, terms["loss_d"] + 0.1 / 16 / 2 * (terms["r1"] + terms["r2"]))


def test_with_heads_alone_the_discriminator_sees_the_last_image_without_noise(batch, discriminator):
    """Also in its penalties; the generator's other levels have no gradient of their own."""
    real, fake, labels = batch
    config = discriminator.config
    alone = Discriminator(**{**config, "levels": 1})
    torch.nn.init.normal_(alone.y_embedder.embedding_table.weight)
    loss = PLAIN.model_copy(update={"levels": Levels(schedule="heads", count=4)})
    plain = PLAIN.model_copy(update={"levels": Levels(schedule="none")})
    perturb, eps = perturbations(3, loss), (torch.randn_like(real), torch.randn_like(fake))
    got, _ = discriminator_loss(alone, real, fake, labels, perturb, eps, loss)
    want, _ = discriminator_loss(alone, real, fake[-1:], labels, perturb, (eps[0], eps[1][-1:]), plain)
    torch.testing.assert_close(got, want)
    fake.requires_grad_()
    generator_loss(alone.requires_grad_(False), real, fake, labels, perturb, loss).backward()
    assert fake.grad[-1].abs().sum() > 0
    assert fake.grad[:-1].abs().sum() == 0
