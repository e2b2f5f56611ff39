"""The adversarial losses (paper, section 3.2): relativistic pairing, approximate R1 and R2, REPA."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gat.augment import Draw, Strength, augment
from gat.noise import perturb

PENALTY_STEP = 0.01  # σ of the finite difference that stands in for a gradient


class Judge(Protocol):
    """A discriminator: logits (B,) of level images (K, B, C, H, W) and labels (B,)."""

    def __call__(self, levels: Tensor, class_labels: Tensor) -> Tensor: ...


class Objective(NamedTuple):
    """What defines the losses, besides the networks."""

    times: tuple[float, ...]  # noise of each level, noisiest first (`gat.noise.level_times`)
    augment: Strength
    penalty: float = 0.1  # γ of aR1 and aR2


class Look(NamedTuple):
    """The draws through which the discriminator sees B samples."""

    augment: Draw
    noise: Tensor  # (K, B, C, H, W)

    def part(self, samples: slice) -> "Look":
        """The draws of some of the samples."""
        return Look(self.augment.part(samples), self.noise[:, samples])


def seen(levels: Tensor, look: Look, objective: Objective, reference: Tensor | None = None) -> Tensor:
    """What the discriminator is shown of level images (K, B, C, H, W): augmented, then noised."""
    moved = augment(levels, look.augment, objective.augment, reference)
    return moved if objective.times == (0.0,) else perturb(moved, look.noise, objective.times)


def as_levels(real: Tensor, count: int) -> Tensor:
    """Real latents (B, C, H, W) as all `count` levels of a sample: (K, B, C, H, W)."""
    return real.expand(count, *real.shape)


def discriminator_loss(
    judge: Judge,
    real: Tensor,
    fake: Tensor,
    class_labels: Tensor,
    looks: tuple[Look, Look],
    steps: tuple[Tensor, Tensor],
    objective: Objective,
) -> tuple[Tensor, dict[str, Tensor]]:
    """softplus(−(D(real) − D(fake))) + γ/2·(aR1 + aR2), from one batched call of the discriminator.

    Args:
        judge: the discriminator.
        real: (B, C, H, W) latents.
        fake: (K, B, C, H, W) level images, cut from the generator's graph.
        class_labels: (B,) integers, of both.
        looks: draws for the reals and for the fakes; those of a perturbed copy are its original's.
        steps: standard normal ε for the penalties, (B, C, H, W) for reals and (K, B, C, H, W) for fakes.
        objective: levels, augmentation and γ.

    Returns:
        The loss, a scalar, and its parts, detached scalars: `loss_d`, `r1`, `r2`, `gap` (mean D(real) − D(fake)).
    """
    count = len(fake)
    real_levels = as_levels(real, count)
    views = [seen(real_levels, looks[0], objective), seen(fake, looks[1], objective)]
    if objective.penalty > 0:
        shaken_real = as_levels(real + PENALTY_STEP * steps[0], count)
        shaken_fake = fake + PENALTY_STEP * steps[1]
        views += [
            seen(shaken_real, looks[0], objective, reference=real),
            seen(shaken_fake, looks[1], objective, reference=fake[-1]),
        ]
    logits = judge(torch.cat(views, dim=1), class_labels.repeat(len(views))).float().chunk(len(views))
    gap = logits[0] - logits[1]
    adversarial = F.softplus(-gap).mean()
    parts = {"loss_d": adversarial, "gap": gap.mean()}
    loss = adversarial
    if objective.penalty > 0:
        parts["r1"] = ((logits[0] - logits[2]) / PENALTY_STEP).square().mean()
        parts["r2"] = ((logits[1] - logits[3]) / PENALTY_STEP).square().mean()
        loss = loss + objective.penalty / 2 * (parts["r1"] + parts["r2"])
    return loss, {name: value.detach() for name, value in parts.items()}


def generator_loss(
    judge: Judge, real: Tensor, fake: Tensor, class_labels: Tensor, looks: tuple[Look, Look], objective: Objective
) -> Tensor:
    """softplus(−(D(fake) − D(real))), a scalar whose gradient reaches the fakes alone; shapes as above."""
    with torch.no_grad():
        real_logits = judge(seen(as_levels(real, len(fake)), looks[0], objective), class_labels)
    fake_logits = judge(seen(fake, looks[1], objective), class_labels)
    return F.softplus((real_logits - fake_logits).float()).mean()
