"""The adversarial losses (paper, section 3.2): relativistic pairing, approximate R1 and R2, REPA.

Reals are latents (B, C, H, W); fakes are level images (K, B, C, H, W), of which the last is the final latent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gat.config import Loss
from gat.gan.augment import AugmentParams, augment
from gat.gan.noise import noise_levels, perturb, resize_levels

BASE_LATENT_SIZE = 32  # side of latents at which the paper gives γ
EPS_SIGMA = 0.01  # σ of ε in the finite differences that approximate R1 and R2

DiscriminatorFn = Callable[..., Any]  # with the arguments of `gat.gan.networks.Discriminator.forward`


class Perturbation(NamedTuple):
    """Random numbers that perturb the discriminator's inputs, for B samples."""

    augment: AugmentParams
    noise: Tensor  # (K, B, C, H, W) standard normal, for multi-level noise guidance

    def select(self, samples: slice) -> "Perturbation":
        """The random numbers of a slice of the samples."""
        return Perturbation(self.augment.select(samples), self.noise[:, samples])


class Features(NamedTuple):
    """Features of a teacher, or the discriminator's prediction of them: (B, d) and (B, T, d), row-major."""

    cls: Tensor
    patches: Tensor


def augment_and_noise(
    images: Tensor, perturbation: Perturbation, loss: Loss, reference: Tensor | None = None
) -> Tensor:
    """The discriminator's input: level images (K, B, C, H, W), augmented, then noised (section 4.1) or resized.

    Reals are (1, B, C, H, W), repeated for every level; `reference` as in `augment`. With the schedule `heads` it is
    the last level alone (1, B, C, H, W), without noise.
    """
    images = images[-1:] if loss.levels.schedule == "heads" else images
    augmented = augment(images, perturbation.augment, loss.augment, reference)
    if loss.levels.schedule == "resized":
        return resize_levels(augmented, loss.levels.count)
    levels = tuple(noise_levels(loss.levels.count, loss.levels.schedule))
    return augmented if levels == (0.0,) else perturb(augmented, perturbation.noise, levels)


def discriminator_loss(
    discriminator: DiscriminatorFn,
    real: Tensor,
    fake: Tensor,
    class_labels: Tensor,
    perturbations: tuple[Perturbation, Perturbation],
    eps: tuple[Tensor, Tensor],
    loss: Loss,
    teacher_features: Features | None = None,
    repa_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """softplus(−(D(real) − D(fake))) + γ/2·(aR1 + aR2) + β·REPA, with one batched call of the discriminator.

    aR1 is ((D(x) − D(x + σ·ε)) / σ)² for reals x, aR2 the same for fakes; both terms have the same augmentation and
    noise.

    Args:
        discriminator: called like `Discriminator.forward`.
        real: (B, C, H, W).
        fake: (K, B, C, H, W), detached from the generator's graph.
        class_labels: (B,) integers, for reals and fakes.
        perturbations: of the reals and of the fakes.
        eps: standard normal ε of aR1 and aR2, (B, C, H, W) and (K, B, C, H, W).
        loss: levels, augmentation and γ.
        teacher_features: of the augmented reals; None: no REPA.
        repa_weight: β.

    Returns:
        The loss, a scalar, and its terms, detached scalars: `loss_d` (the adversarial term), `gap` (mean of
        D(real) − D(fake)), `r1`, `r2`, `repa`.
    """
    gamma = penalty_weight(loss, real.shape[-1])
    inputs = [augment_and_noise(real[None], perturbations[0], loss), augment_and_noise(fake, perturbations[1], loss)]
    if gamma > 0:
        inputs += [
            augment_and_noise((real + EPS_SIGMA * eps[0])[None], perturbations[0], loss, reference=real),
            augment_and_noise(fake + EPS_SIGMA * eps[1], perturbations[1], loss, reference=fake[-1]),
        ]
    if teacher_features is None:
        output = discriminator(torch.cat(inputs, dim=1), class_labels)
    else:
        output, features = discriminator(torch.cat(inputs, dim=1), class_labels, True, len(real))
    real_logits, fake_logits, *perturbed_logits = at_least_float32(output).chunk(len(inputs))

    relativistic_logits = real_logits - fake_logits
    adversarial_loss = F.softplus(-relativistic_logits).mean()
    total, terms = adversarial_loss, {"loss_d": adversarial_loss, "gap": relativistic_logits.mean()}
    if gamma > 0:
        perturbed_real_logits, perturbed_fake_logits = perturbed_logits
        r1_penalty = ((real_logits - perturbed_real_logits) / EPS_SIGMA).square().mean()
        r2_penalty = ((fake_logits - perturbed_fake_logits) / EPS_SIGMA).square().mean()
        total = total + gamma / 2 * (r1_penalty + r2_penalty)
        terms |= {"r1": r1_penalty, "r2": r2_penalty}
    if teacher_features is not None:
        alignment_loss = repa_loss(Features(*features), teacher_features)
        total = total + repa_weight * alignment_loss
        terms["repa"] = alignment_loss
    return total, {name: value.detach() for name, value in terms.items()}


def penalty_weight(loss: Loss, latent_size: int) -> float:
    """γ of aR1 and aR2 for latents of this side: `loss.gamma` at 32, and proportional to the number of pixels.

    The penalties square the slope of D along a perturbation of the same size in every pixel. With fewer pixels, each is
    a larger part of the image, and the slope is steeper. StyleGAN2-ADA has the same rule.
    """
    return loss.gamma * (latent_size / BASE_LATENT_SIZE) ** 2 if loss.scale_gamma_by_pixels else loss.gamma


def generator_loss(
    discriminator: DiscriminatorFn,
    real: Tensor,
    fake: Tensor,
    class_labels: Tensor,
    perturbations: tuple[Perturbation, Perturbation],
    loss: Loss,
) -> Tensor:
    """softplus(−(D(fake) − D(real))), a scalar with gradients for the fakes only; arguments as in `discriminator_loss`.

    `class_labels` may also be class embeddings, as in `Discriminator.forward`.
    """
    with torch.no_grad():
        real_logits = discriminator(augment_and_noise(real[None], perturbations[0], loss), class_labels)
    fake_logits = discriminator(augment_and_noise(fake, perturbations[1], loss), class_labels)
    return F.softplus(at_least_float32(real_logits - fake_logits)).mean()


def repa_loss(features: Features, teacher_features: Features) -> Tensor:
    """Mean over samples of 1 − cosine similarity to the teacher's features, for [cls] plus the mean over patches.

    If the numbers of patches differ, the teacher's are resized bicubically to the discriminator's grid.
    """
    patches, grid = at_least_float32(teacher_features.patches), round(features.patches.shape[1] ** 0.5)
    if len(patches[0]) != grid * grid:
        side = round(len(patches[0]) ** 0.5)
        maps = patches.transpose(1, 2).unflatten(2, (side, side))
        patches = F.interpolate(maps, (grid, grid), mode="bicubic").flatten(2).transpose(1, 2)
    cls_loss = 1 - F.cosine_similarity(at_least_float32(features.cls), at_least_float32(teacher_features.cls), dim=-1)
    patch_loss = 1 - F.cosine_similarity(at_least_float32(features.patches), patches, dim=-1)
    return (cls_loss + patch_loss.mean(1)).mean()


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, converted to float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
