import pytest
import torch
import torch.nn.functional as F

from gat.augment import Strength, draw_augmentation
from gat.losses import PENALTY_STEP, Look, Objective, discriminator_loss, generator_loss, penalty_weight, seen
from gat.networks import Discriminator
from gat.noise import level_times

PLAIN = Objective((0.0,), Strength(0, 0, 0, 0), 0.1)  # neither noise nor augmentation
PAPER = Objective(tuple(level_times(4)), Strength(), 0.1)


def looks(count: int, objective: Objective, seed: int) -> Look:
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(objective.times), count, 4, 8, 8, generator=rng)
    return Look(draw_augmentation(count, 8, objective.augment, rng), noise)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(3, 4, 8, 8), torch.randn(4, 3, 4, 8, 8), torch.tensor([0, 1, 2])


@pytest.fixture
def discriminator():
    torch.manual_seed(1)
    return Discriminator(width=16, depth=4, heads=2, patch=2, latent_size=8, classes=5, class_map_dim=16)


def test_losses_are_softplus_of_the_relativistic_gap(batch):
    real, fake, labels = batch

    def judge(levels, _):
        return levels[-1].mean((1, 2, 3))

    both = (looks(3, PLAIN, 0), looks(3, PLAIN, 1))
    objective = PLAIN._replace(penalty=0.0)
    loss, parts = discriminator_loss(judge, real, fake[:1], labels, both, (real, fake[:1]), objective)
    gap = real.mean((1, 2, 3)) - fake[0].mean((1, 2, 3))
    torch.testing.assert_close(loss, F.softplus(-gap).mean())
    torch.testing.assert_close(parts["gap"], gap.mean())
    torch.testing.assert_close(generator_loss(judge, real, fake[:1], labels, both, objective), F.softplus(gap).mean())


def test_penalties_of_a_linear_discriminator_are_its_squared_slope_along_the_step(batch):
    """aR1 of x ↦ ⟨a, x⟩ is ⟨a, ε⟩² exactly, whatever σ."""
    real, fake, labels = batch
    slope = torch.randn(4, 8, 8)

    def judge(levels, _):
        return (levels[-1] * slope).sum((1, 2, 3))

    steps = (torch.randn_like(real), torch.randn_like(fake[:1]))
    both = (looks(3, PLAIN, 0), looks(3, PLAIN, 1))
    loss, parts = discriminator_loss(judge, real, fake[:1], labels, both, steps, PLAIN)
    r1, r2 = ((slope * s).sum((-3, -2, -1)).square().mean() for s in steps)
    torch.testing.assert_close(parts["r1"], r1, rtol=0.01, atol=0.1)
    torch.testing.assert_close(parts["r2"], r2, rtol=0.01, atol=0.1)
    torch.testing.assert_close(loss, parts["loss_d"] + 0.05 * (parts["r1"] + parts["r2"]))


def test_one_batched_call_equals_the_paper_written_out(batch, discriminator):
    """Four separate calls, each copy augmented and noised by its original's draws, ε before the augmentation."""
    real, fake, labels = batch
    both = (looks(3, PAPER, 0), looks(3, PAPER, 1))
    steps = (torch.randn_like(real), torch.randn_like(fake))
    loss, _ = discriminator_loss(discriminator, real, fake, labels, both, steps, PAPER)
    repeated = real.repeat(4, 1, 1, 1, 1)
    d_real = discriminator(seen(repeated, both[0], PAPER), labels)
    d_fake = discriminator(seen(fake, both[1], PAPER), labels)
    moved_real = (real + PENALTY_STEP * steps[0]).repeat(4, 1, 1, 1, 1)
    d_moved_real = discriminator(seen(moved_real, both[0], PAPER, reference=real), labels)
    d_moved_fake = discriminator(seen(fake + PENALTY_STEP * steps[1], both[1], PAPER, reference=fake[-1]), labels)
    r1 = ((d_real - d_moved_real) / 0.01).square().mean()
    r2 = ((d_fake - d_moved_fake) / 0.01).square().mean()
    torch.testing.assert_close(loss, F.softplus(d_fake - d_real).mean() + 0.05 * (r1 + r2), rtol=1e-4, atol=1e-5)


def test_generators_gradient_flows_through_the_fakes_alone(batch, discriminator):
    real, fake, labels = batch
    real.requires_grad_()
    fake.requires_grad_()
    both = (looks(3, PAPER, 0), looks(3, PAPER, 1))
    generator_loss(discriminator.requires_grad_(False), real, fake, labels, both, PAPER).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def test_gradient_is_that_of_finite_differences(batch, discriminator):
    real, fake, labels = batch
    both = (looks(3, PAPER, 0), looks(3, PAPER, 1))
    discriminator.double()
    both = tuple(
        Look(type(b.augment)(*(t.double() if t.is_floating_point() else t for t in b.augment)), b.noise.double())
        for b in both
    )
    fake = fake.double().requires_grad_()
    loss = generator_loss(discriminator, real.double(), fake, labels, both, PAPER)
    (gradient,) = torch.autograd.grad(loss, fake)
    direction = torch.randn_like(fake)
    with torch.no_grad():
        up, down = (
            generator_loss(discriminator, real.double(), fake + s * 1e-3 * direction, labels, both, PAPER)
            for s in (1, -1)
        )
    torch.testing.assert_close((gradient * direction).sum(), (up - down) / 2e-3, rtol=1e-3, atol=1e-6)


def test_penalty_is_the_papers_at_its_own_size_and_goes_with_the_pixels():
    assert penalty_weight(0.1, 32) == pytest.approx(0.1)
    assert penalty_weight(0.1, 8) == pytest.approx(0.1 / 16)
    assert penalty_weight(0.1, 64) == pytest.approx(0.4)
    assert penalty_weight(0.1, 8, scale_by_pixels=False) == pytest.approx(0.1)
