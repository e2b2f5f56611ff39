"""Analyses of trained networks: layer use, what the discriminator knows of classes, changes per optimizer step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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
from gat.data.vae import encode
from gat.evaluation.features import FeatureFn
from gat.evaluation.fid import evenly_spaced
from gat.evaluation.metrics import neighbour_accuracy
from gat.gan.augment import sample_augment_params
from gat.gan.losses import Perturbation, at_least_float32, augment_and_noise
from gat.gan.networks import Z_DIM, Discriminator, Generator
from gat.gan.optim import width_aware_learning_rate
from gat.gan.repa import Teacher
from gat.gan.training import Trainer
from gat.seeds import Purpose, generator_of, seed_of
from gat.study.networks import make_trainer

NO_AUGMENT = Augment(color=0.0, translation=0.0, cutout=0.0, flip=0.0)
NEIGHBOURS = 10  # k of CKNNA
SMALL = 1 / 32  # of the learning rate, at which changes of outputs are in proportion to it


# Layer use


@torch.no_grad()
def layer_use(
    generator: Generator, vae: AutoencoderKL, z: Tensor, labels: Tensor, extract: FeatureFn
) -> dict[str, Any]:
    """How much each block of a generator changes images and tokens.

    Args:
        generator: with K levels.
        vae: decodes its latents.
        z: (N, 64).
        labels: (N,).
        extract: features in which images are compared, such as FID's or LPIPS's.

    Returns:
        A list with a value per block for each of: `skipped`, the mean distance that images move in these features if
        the block is skipped, divided by `spread`, a number, the mean distance between two of the images; `cosine`, the
        cosine similarity of tokens before and after the block, averaged over samples and tokens; `cka`, the linear CKA
        of the same tokens.
    """
    whole = _features(generator, vae, z, labels, extract)
    spread = float(np.linalg.norm(whole[1:] - whole[:-1], axis=1).mean())
    skipped = []
    for block in generator.blocks:
        with _skipped(block):
            moved = np.linalg.norm(_features(generator, vae, z, labels, extract) - whole, axis=1).mean()
        skipped.append(float(moved / spread))
    with _passes_of(generator.blocks) as tokens:
        generator(z, labels)
    pairs = [(before.expand_as(after).float(), after.float()) for before, after in tokens]
    return {
        "skipped": skipped,
        "spread": spread,
        "cosine": [float(F.cosine_similarity(before, after, dim=-1).mean()) for before, after in pairs],
        "cka": [linear_cka(before.flatten(0, 1), after.flatten(0, 1)) for before, after in pairs],
    }


def _features(generator: Generator, vae: AutoencoderKL, z: Tensor, labels: Tensor, extract: FeatureFn) -> np.ndarray:
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
        near.append(
            torch.zeros_like(kernel, dtype=torch.bool).scatter_(
                1, own.topk(min(neighbours, len(own) - 1), dim=1).indices, True
            )
        )
    a, b = (kernel - kernel.mean(1, keepdim=True) for kernel in kernels)

    def align(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
        return (left * right)[mask].sum()

    return float(align(a, b, near[0] & near[1]) / (align(a, a, near[0]) * align(b, b, near[1])).sqrt())


# The discriminator


class Probed(NamedTuple):
    """Real images whose tokens are looked at."""

    latents: Tensor  # (N, C, H, W)
    labels: np.ndarray  # (N,)


def probed(images: Images, rows: np.ndarray, vae: AutoencoderKL) -> Probed:
    """Some of the images (N,), as the means of their posterior."""
    means = [encode(vae, images[part])[0] for part in _parts(rows)]
    return Probed(torch.cat(means) * vae.config["scaling_factor"], images.labels[rows])


def other_features(images: Images, rows: np.ndarray, extract: FeatureFn) -> np.ndarray:
    """Features (N, d) of some of the images (N,)."""
    return np.concatenate([extract(images[part]) for part in _parts(rows)])


def _parts(rows: np.ndarray, size: int = 64) -> list[np.ndarray]:
    return np.split(rows, range(size, len(rows), size))


@torch.no_grad()
def discriminator_tokens(discriminator: Discriminator, levels: Tensor) -> list[Tensor]:
    """Tokens (N, 1 + T, width) of level images (K, N, C, H, W) after each block, [cls] first."""
    h = discriminator.x_embedder(levels.transpose(0, 1).flatten(1, 2)) + discriminator.pos_embed
    h = torch.cat([discriminator.cls_token.expand(len(h), -1, -1), h], dim=1)
    tokens = []
    for block in discriminator.blocks:
        h = block(h, discriminator.rope)
        tokens.append(h)
    return tokens


def pooled_tokens(discriminator: Discriminator, latents: Tensor, loss: Loss) -> dict[str, list[np.ndarray]]:
    """`cls`, the [cls] token, and `mean`, the mean of the other tokens, each (N, width), after each block.

    Args:
        discriminator: with K levels.
        latents: (N, C, H, W), which are noised as in training, but not augmented.
        loss: settings of the training.
    """
    rng = generator_of(0, Purpose.ANALYSIS, device=latents.device)  # the same noise for all discriminators
    plain = loss.model_copy(update={"augment": NO_AUGMENT})
    parts = []
    for batch in latents.split(256):
        noise = torch.randn((loss.levels.seen, *batch.shape), generator=rng, device=batch.device)
        augment = sample_augment_params(len(batch), batch.shape[-1], NO_AUGMENT, rng)
        tokens = discriminator_tokens(
            discriminator, augment_and_noise(batch[None], Perturbation(augment, noise), plain)
        )
        parts.append([torch.stack([own[:, 0], own[:, 1:].mean(1)]).float().cpu().numpy() for own in tokens])
    blocks = [np.concatenate(own, axis=1) for own in zip(*parts, strict=True)]
    return {"cls": [own[0] for own in blocks], "mean": [own[1] for own in blocks]}


def discriminator_knowledge(
    discriminator: Discriminator, known: Probed, tested: Probed, features: np.ndarray, loss: Loss, seed: int
) -> dict[str, Any]:
    """How well a discriminator's tokens tell classes, and how [cls] is aligned with other features.

    Args:
        discriminator: with K levels.
        known: real images.
        tested: others, whose classes are told by their nearest ones among the known images.
        features: (N, d) of the tested images, from another network.
        loss: settings of the training.
        seed: of the training.

    Returns:
        `trained`, and as the null `untrained`, of a discriminator with initial weights; each with `cls` and `mean`,
        accuracies of `neighbour_accuracy` after each block, and with `cknna` of the last block's [cls].
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seed, Purpose.WEIGHTS))
        untrained = Discriminator.from_config(discriminator.config).to(discriminator.device)
    some = evenly_spaced(len(features), 5000)  # CKNNA's memory grows with the square of their number
    result = {}
    for name, network in (("trained", discriminator), ("untrained", untrained)):
        training, test = (pooled_tokens(network, part.latents, loss) for part in (known, tested))
        result[name] = {
            pooling: [
                neighbour_accuracy(own, tested.labels, others, known.labels)
                for own, others in zip(test[pooling], training[pooling], strict=True)
            ]
            for pooling in ("cls", "mean")
        } | {"cknna": cknna(torch.from_numpy(test["cls"][-1][some]), torch.from_numpy(features[some]))}
    return result


# Optimizer steps


def coordinate_check(
    recipe: Recipe,
    seed: int,
    base_width: int,
    analyze: Analyze,
    latents: Latents,
    images: Images,
    accelerator: Accelerator,
    teacher: Teacher | None = None,
    compute: Compute = Compute(),  # noqa: B008 (frozen)
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """How far one small optimizer step moves the outputs of each layer, with and without the width rule.

    As users of µP check it (Yang and Hu, "Tensor programs V", 2022, appendix D). Both start from the same weights and
    optimizer states: those at the `start` of a training and those `later`, after `analyze.steps` steps.

    Args:
        recipe: with the width rule.
        seed: of the training.
        base_width: whose learning rate all widths have without the rule.
        analyze: numbers of steps.
        latents: of the training images.
        images: likewise; a teacher reads them.
        accelerator: in float32: in bfloat16 changes by small steps are lost.
        teacher: of REPA.
        compute: of the training.

    Returns:
        `start` and `later`, each with `with` and `without`, at the learning rate of `base_width`; each with what
        `layer_changes` returns.
    """
    trainer = make_trainer(recipe, seed, latents, accelerator, teacher, compute)
    batches = TrainingBatches(latents, recipe.train.batch_size, seed, images=images if teacher else None)
    if compute.micro_batch == "auto":
        kept = [tensor.clone() for tensor in trainer.state().values() for _ in range(2)]  # as `layer_changes` does
        trainer.fit_to_memory(send_to_device(batches[0], accelerator.device))
        del kept
    own = width_aware_learning_rate(recipe.train, recipe.run.width)
    rates = {"with": own, "without": own * recipe.run.width / base_width}
    changes = {}
    for when in ("start", "later"):
        changes[when] = {
            rule: layer_changes(trainer, batches, SMALL * rate, analyze.window) for rule, rate in rates.items()
        }
        for step in range(trainer.steps_done, analyze.steps):
            trainer.step(send_to_device(batches[step], accelerator.device))
    return changes


def layer_changes(
    trainer: Trainer, batches: TrainingBatches, rate: float, window: int, count: int = 64
) -> dict[str, list[float]]:
    """Root mean square change of the outputs of layers by one optimizer step; the trainer is then as before.

    Args:
        trainer: both of its networks make the step.
        batches: its training data.
        rate: learning rate of the step.
        window: number of steps, each from the same start with another batch, over which changes are averaged.
        count: number of samples whose outputs are compared: fixed noise, and the reals of the first batch.

    Returns:
        `generator` and `discriminator`, each with a value per block, of its tokens, and for the output: latents, which
        have unit variance, and logits.
    """
    device, config = trainer.accelerator.device, trainer.generator.config
    rng = generator_of(trainer.seed, Purpose.STEP_SIZES, device=device)
    first = batches[0]
    count = min(count, len(first.labels))
    labels = first.labels[:count].to(device)
    z = torch.randn(count, Z_DIM, generator=rng, device=device)
    real = at_least_float32(first.moments[:count, : config["channels"]].to(device)) * trainer.scaling_factor
    levels = real.expand(trainer.discriminator.config["levels"], *real.shape)

    @torch.no_grad()
    def outputs() -> dict[str, list[Tensor]]:
        with _passes_of(trainer.generator.blocks) as passes:
            latent = trainer.generator(z, labels)
        tokens = discriminator_tokens(trainer.discriminator, levels)
        return {
            "generator": [*(output for _, output in passes), latent],
            "discriminator": [*tokens, trainer.discriminator(levels, labels)],
        }

    optimizers = trainer.optimizer_g, trainer.optimizer_d
    own_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    begin, start = trainer.steps_done, {name: tensor.clone() for name, tensor in trainer.state().items()}
    before, changes = outputs(), []
    for step in range(begin, begin + window):
        _set_rates(optimizers, [rate, rate])
        trainer.step(send_to_device(batches[step], device))
        after = outputs()
        changes.append(
            {name: [_rms(new - old) for new, old in zip(after[name], before[name], strict=True)] for name in before}
        )
        trainer.load_state({name: tensor.clone() for name, tensor in start.items()}, begin)  # which steps change
    _set_rates(optimizers, own_rates)
    return {name: np.mean([change[name] for change in changes], axis=0).tolist() for name in before}


def _set_rates(optimizers: Sequence[Any], rates: Sequence[float]) -> None:
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:  # new ones after each `load_state`
            group["lr"] = rate


def _rms(change: Tensor) -> float:
    return float(change.float().square().mean().sqrt())


@contextmanager
def _passes_of(blocks: nn.ModuleList) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the blocks' inputs and outputs."""
    passes: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _, inputs, output: passes.append((inputs[0], output))) for block in blocks
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
