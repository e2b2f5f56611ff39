"""The adversarial losses (paper, section 3.2): relativistic pairing, approximate R1 and R2, REPA."""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gat.augment import Draw, Strength, augment
from gat.noise import perturb

PENALTY_STEP = 0.01  # σ of the finite difference that stands in for a gradient
BASE_LATENT = 32  # side of the latents for which the paper gives γ


def penalty_weight(base: float, latent_size: int, scale_by_pixels: bool = True) -> float:
    """γ of aR1 and aR2: `base` holds for latents of side 32, and grows as their number of pixels.

    The penalties are squared slopes along a step of the same size in every pixel, so they too grow as that number
    falls: the more an image shrinks, the more each pixel of it says. StyleGAN2-ADA's rule is the same.
    """
    return base * (latent_size / BASE_LATENT) ** 2 if scale_by_pixels else base


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 where its type is a narrower one."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Judge(Protocol):
    """A discriminator; see `gat.networks.Discriminator.forward`."""

    def __call__(self, levels: Tensor, class_labels: Tensor, *features: Any) -> Any: ...


class Features(NamedTuple):
    """What a teacher sees in images, or what the discriminator makes of them: (B, d) and (B, T, d), row by row."""

    cls: Tensor
    patches: Tensor


class Objective(NamedTuple):
    """What defines the losses, besides the networks."""

    times: tuple[float, ...]  # noise of each level, noisiest first (`gat.noise.level_times`)
    augment: Strength
    penalty: float = 0.1  # γ of aR1 and aR2
    repa: float = 1.0  # β, where there is a teacher


class Look(NamedTuple):
    """The draws through which the discriminator sees B samples."""

    augment: Draw
    noise: Tensor  # (K, B, C, H, W)

    def part(self, samples: slice) -> "Look":
        """The draws of some of the samples."""
        return Look(self.augment.part(samples), self.noise[:, samples])


def seen(levels: Tensor, look: Look, objective: Objective, reference: Tensor | None = None) -> Tensor:
    """What the discriminator is shown of level images (K, B, C, H, W): augmented, then noised.

    Reals are (1, B, C, H, W), the same image for every level.
    """
    moved = augment(levels, look.augment, objective.augment, reference)
    return moved if objective.times == (0.0,) else perturb(moved, look.noise, objective.times)


def discriminator_loss(
    judge: Judge,
    real: Tensor,
    fake: Tensor,
    class_labels: Tensor,
    looks: tuple[Look, Look],
    steps: tuple[Tensor, Tensor],
    objective: Objective,
    target: Features | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """softplus(−(D(real) − D(fake))) + γ/2·(aR1 + aR2) + β·REPA, from one batched call of the discriminator.

    Args:
        judge: the discriminator.
        real: (B, C, H, W) latents.
        fake: (K, B, C, H, W) level images, cut from the generator's graph.
        class_labels: (B,) integers, of both.
        looks: draws for the reals and for the fakes; those of a perturbed copy are its original's.
        steps: standard normal ε for the penalties, (B, C, H, W) for reals and (K, B, C, H, W) for fakes.
        objective: levels, augmentation, γ and β.
        target: a teacher's features of the reals as the discriminator sees them; None: no REPA.

    Returns:
        The loss, a scalar, and its parts, detached scalars: `loss_d`, `r1`, `r2`, `repa`, and `gap`, the mean of
        D(real) − D(fake).
    """
    views = [seen(real[None], looks[0], objective), seen(fake, looks[1], objective)]
    if objective.penalty > 0:
        shaken_real = real + PENALTY_STEP * steps[0]
        shaken_fake = fake + PENALTY_STEP * steps[1]
        views += [
            seen(shaken_real[None], looks[0], objective, reference=real),
            seen(shaken_fake, looks[1], objective, reference=fake[-1]),
        ]
    batch, features = torch.cat(views, dim=1), None
    if target is None:
        logits = judge(batch, class_labels)
    else:
        logits, features = judge(batch, class_labels, True, len(real))
    logits = at_least_float32(logits).chunk(len(views))
    gap = logits[0] - logits[1]
    adversarial = F.softplus(-gap).mean()
    parts = {"loss_d": adversarial, "gap": gap.mean()}
    loss = adversarial
    if objective.penalty > 0:
        parts["r1"] = ((logits[0] - logits[2]) / PENALTY_STEP).square().mean()
        parts["r2"] = ((logits[1] - logits[3]) / PENALTY_STEP).square().mean()
        loss = loss + objective.penalty / 2 * (parts["r1"] + parts["r2"])
    if target is not None and features is not None:
        parts["repa"] = repa_loss(Features(*features), target)
        loss = loss + objective.repa * parts["repa"]
    return loss, {name: value.detach() for name, value in parts.items()}


def repa_loss(features: Features, target: Features) -> Tensor:
    """Mean over samples of 1 − cosine similarity to the teacher, of [cls] plus of the patches' mean: a scalar.

    The teacher's patches are resized to the discriminator's grid, bicubically, where their numbers differ.
    """
    patches, grid = at_least_float32(target.patches), round(features.patches.shape[1] ** 0.5)
    if len(patches[0]) != grid * grid:
        side = round(len(patches[0]) ** 0.5)
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        patches = F.interpolate(maps, (grid, grid), mode="bicubic").flatten(2).transpose(1, 2)
    of_cls = 1 - F.cosine_similarity(at_least_float32(features.cls), at_least_float32(target.cls), dim=-1)
    of_patches = 1 - F.cosine_similarity(at_least_float32(features.patches), patches, dim=-1)
    return (of_cls + of_patches.mean(1)).mean()


def generator_loss(
    judge: Judge, real: Tensor, fake: Tensor, class_labels: Tensor, looks: tuple[Look, Look], objective: Objective
) -> Tensor:
    """softplus(−(D(fake) − D(real))), a scalar whose gradient reaches the fakes alone; shapes as above.

    The labels may be what the discriminator's `map_classes` made of them, once for both of its calls.
    """
    with torch.no_grad():
        real_logits = judge(seen(real[None], looks[0], objective), class_labels)
    fake_logits = judge(seen(fake, looks[1], objective), class_labels)
    return F.softplus(at_least_float32(real_logits - fake_logits)).mean()
