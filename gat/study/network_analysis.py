"""Analyses of trained networks: layer use, the discriminator as a classifier, output change per optimizer step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers import AutoencoderKL
from torch import Tensor, nn

from gat.config import Analyze, Augment, Compute, Loss, Recipe
from gat.data.images import Images
from gat.data.latents import Latents, TrainingBatches
from gat.data.pixels import decode
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import evenly_spaced
from gat.gan.augment import sample_augment_params
from gat.gan.losses import Perturbation, at_least_float32, augment_and_noise
from gat.gan.networks import Z_DIM, Discriminator, Generator
from gat.gan.optim import BASE_WIDTH
from gat.gan.repa import Teacher
from gat.gan.training import Trainer
from gat.seeds import Purpose, generator_of
from gat.study.networks import make_trainer

NO_AUGMENT = Augment(color=0.0, translation=0.0, cutout=0.0, flip=0.0)
NEIGHBOURS = 10  # k of CKNNA

Extract = Callable[[np.ndarray], np.ndarray]  # features (N, d) of images uint8 (N, H, W, 3)


# Layer use


@torch.no_grad()
def layer_use(generator: Generator, vae: AutoencoderKL, z: Tensor, labels: Tensor, extract: Extract) -> dict[str, Any]:
    """How much each block of a generator changes images and tokens.

    Args:
        generator: with K levels.
        vae: decodes its latents.
        z: (N, 64).
        labels: (N,).
        extract: features in which images are compared, such as FID's or LPIPS's.

    Returns:
        A list with a value per block for each of: `skipped`, the mean distance that images move in these features if
        the block is skipped, divided by the mean distance between two of the images; `cosine`, the cosine similarity of
        tokens before and after the block, averaged over samples and tokens; `cka`, the linear CKA of the same tokens.
    """
    whole = _features(generator, vae, z, labels, extract)
    spread = np.linalg.norm(whole[1:] - whole[:-1], axis=1).mean()
    skipped = []
    for block in generator.blocks:
        with _skipped(block):
            moved = np.linalg.norm(_features(generator, vae, z, labels, extract) - whole, axis=1).mean()
        skipped.append(float(moved / spread))
    tokens: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: tokens.append((inputs[0], output)))
        for block in generator.blocks
    ]
    generator(z, labels)
    for hook in hooks:
        hook.remove()
    pairs = [(before.expand_as(after).float(), after.float()) for before, after in tokens]
    return {
        "skipped": skipped,
        "cosine": [float(F.cosine_similarity(before, after, dim=-1).mean()) for before, after in pairs],
        "cka": [linear_cka(before.flatten(0, 1), after.flatten(0, 1)) for before, after in pairs],
    }


def _features(generator: Generator, vae: AutoencoderKL, z: Tensor, labels: Tensor, extract: Extract) -> np.ndarray:
    return extract(decode(vae, generator(z, labels)).cpu().numpy())


@contextmanager
def _skipped(block: nn.Module) -> Iterator[None]:
    """Replace a block by the identity."""
    hook = block.register_forward_hook(lambda _, inputs, output: inputs[0].expand_as(output))
    try:
        yield
    finally:
        hook.remove()


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centered kernel alignment of representations (N, p) and (N, q) of the same N inputs, from 0 to 1.

    Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019. NaN if one is constant.
    """
    x, y = (at.double() - at.double().mean(0) for at in (x, y))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def cknna(x: Tensor, y: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """CKNNA of representations (N, p) and (N, q) of the same N inputs: 1 if their neighbourhoods agree.

    It is CKA of the normalized vectors, restricted to pairs that are nearest neighbours in both representations (Huh et
    al., "The Platonic Representation Hypothesis", 2024, appendix A).
    """
    kernels = [F.normalize(at.double(), dim=1) @ F.normalize(at.double(), dim=1).T for at in (x, y)]
    near = []
    for kernel in kernels:
        own = kernel.clone().fill_diagonal_(-torch.inf)
        near.append(torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, own.topk(neighbours, dim=1).indices, True))
    a, b = (kernel - kernel.mean(1, keepdim=True) for kernel in kernels)

    def align(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
        return (left * right)[mask].sum()

    return float(align(a, b, near[0] & near[1]) / (align(a, a, near[0]) * align(b, b, near[1])).sqrt())


# The discriminator


@torch.no_grad()
def discriminator_outputs(
    discriminator: Discriminator, latents: Tensor, labels: Tensor, loss: Loss, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) for every class, and the [cls] token (N, width) that they are computed from.

    Args:
        discriminator: with K levels.
        latents: level images (K, N, C, H, W), or reals (1, N, C, H, W). They are noised as in training, but not
            augmented.
        labels: (N,), without influence on the result.
        loss: settings of the training.
        rng: for the noise.
    """
    kept: dict[str, Tensor] = {}
    hook = discriminator.final_layer.register_forward_hook(
        lambda _, inputs, output: kept.update(cls=inputs[0], projected=output)
    )
    shape = (loss.levels.used, *latents.shape[1:])
    augment = sample_augment_params(latents.shape[1], latents.shape[-1], NO_AUGMENT, rng)
    noise = torch.randn(shape, generator=rng, device=latents.device)
    plain = loss.model_copy(update={"augment": NO_AUGMENT})
    discriminator(augment_and_noise(latents, Perturbation(augment, noise), plain), labels)
    hook.remove()
    classes = torch.arange(len(discriminator.y_embedder.embedding_table.weight), device=latents.device)
    return kept["projected"] @ discriminator.y_embedder(classes).T, kept["cls"]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share (0–1) of samples whose highest logit (N, classes) is that of their label (N,)."""
    return float((logits.argmax(1) == labels).float().mean())


def relative_accuracy(logits: Tensor, labels: Tensor) -> float:
    """`accuracy` of per-class-centred logits, since the losses do not constrain the mean logit of a class."""
    return accuracy(logits - logits.mean(0), labels)


def discriminator_knowledge(
    discriminator: Discriminator,
    fake: Tensor,
    fake_labels: Tensor,
    loss: Loss,
    latents: Latents,
    images: Images,
    reference: Teacher | Extractor,
    rng: torch.Generator,
) -> dict[str, float]:
    """Accuracy of the discriminator as a classifier, and alignment of its [cls] token with other features.

    Args:
        discriminator: with K levels.
        fake: level images (K, N, C, H, W).
        fake_labels: (N,) classes of the fakes.
        loss: settings of the training.
        latents: the training data, of which N evenly spaced ones are used.
        images: the images behind the latents.
        reference: computes the other features.
        rng: for the noise.

    Returns:
        `accuracy` and `relative_accuracy` on real images, `relative_accuracy_on_samples`, the accuracy by `chance`, and
        `cknna`.
    """
    count, device = fake.shape[1], fake.device
    kept = evenly_spaced(len(latents), count)
    moments = torch.from_numpy(latents.moments(kept, kept * 0)).to(device).float()
    labels = torch.from_numpy(latents.labels[kept]).to(device)
    real = moments[:, : latents.channels] * latents.scaling_factor
    logits, cls = discriminator_outputs(discriminator, real[None], labels, loss, rng)
    of_fakes, _ = discriminator_outputs(discriminator, fake, fake_labels, loss, rng)
    pixels = images[kept]
    if isinstance(reference, Teacher):
        still = sample_augment_params(count, latents.size, NO_AUGMENT, rng)
        features = reference(torch.from_numpy(pixels), still, latents.size).cls
    else:
        features = torch.from_numpy(reference(pixels)).to(device)
    return {
        "accuracy": accuracy(logits, labels),
        "relative_accuracy": relative_accuracy(logits, labels),
        "relative_accuracy_on_samples": relative_accuracy(of_fakes, fake_labels),
        "chance": 1 / len(latents.classes),
        "cknna": cknna(cls, features),
    }


# Optimizer steps


def step_sizes_by_rule(
    recipe: Recipe,
    seed: int,
    base_width: int,
    analyze: Analyze,
    latents: Latents,
    images: Images,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> dict[str, dict[str, dict[str, float]]]:
    """`step_sizes` of short trainings `with` the width rule, and `without` it, at the learning rate of `base_width`."""
    fixed_rate = recipe.train.learning_rate * BASE_WIDTH / base_width
    fixed = recipe.train.model_copy(update={"scale_lr_by_width": False, "learning_rate": fixed_rate})
    sizes = {}
    for rule, train in (("with", recipe.train), ("without", fixed)):
        trainer = make_trainer(recipe._replace(train=train), seed, latents, accelerator, teacher, compute)
        batches = TrainingBatches(latents, train.batch_size, seed, images=images if teacher else None)
        sizes[rule] = step_sizes(trainer, batches, analyze.steps, analyze.window)
    return sizes


def step_sizes(
    trainer: Trainer, batches: TrainingBatches, steps: int, window: int, count: int = 64
) -> dict[str, dict[str, float]]:
    """Change of the networks' outputs per optimizer step, at the start of a training and later.

    Args:
        trainer: untrained; it is trained for `steps` steps.
        batches: its training data.
        steps: number of steps.
        window: number of steps to average over, at the start and at the end.
        count: number of samples whose outputs are compared: fixed noise, and the reals of the first step.

    Returns:
        `start` and `later`, each with `generator`, the root mean square change of its latents (which have unit
        variance), and `discriminator`, that of its logits.
    """
    device = trainer.accelerator.device
    rng = generator_of(trainer.seed, Purpose.STEP_SIZES, device=device)
    first = batches[0]
    count = min(count, len(first.labels))
    labels = first.labels[:count].to(device)
    config = trainer.generator.config
    z = torch.randn(count, Z_DIM, generator=rng, device=device)
    real = at_least_float32(first.moments[:count, : config["channels"]].to(device)) * trainer.scaling_factor
    levels = real.expand(config["levels"], *real.shape)

    @torch.no_grad()
    def outputs() -> tuple[Tensor, Tensor]:
        return trainer.generator(z, labels), trainer.discriminator(levels, labels)

    changes: list[list[float]] = []
    for step in range(steps):
        measured = step < window or step >= steps - window
        before = outputs() if measured else None
        trainer.step(send_to_device(batches[step], device))
        if before is not None:
            moved = [(new - old).square().mean().sqrt() for new, old in zip(outputs(), before, strict=True)]
            changes.append([float(change) for change in moved])
    names = ("generator", "discriminator")
    return {
        name: dict(zip(names, np.mean(part, axis=0).tolist(), strict=True))
        for name, part in (("start", changes[:window]), ("later", changes[-window:]))
    }
