"""The training recipe (paper, section 5 and appendix) on Accelerate: one step, its state, its checkpoints."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from gat.augment import draw_augmentation
from gat.checkpoints import load_checkpoint, save_checkpoint
from gat.config import ParamsError
from gat.latents import Batch, TrainingBatches
from gat.losses import Features, Look, Objective, at_least_float32, discriminator_loss, generator_loss
from gat.networks import Z_DIM, Discriminator, Generator
from gat.repa import Teacher
from gat.seeds import generator_of

BASE_WIDTH, BASE_BATCH = 768, 512
ADAM_EPS = 1e-8


def learning_rate(base: float, width: int, batch_size: int, scale_by_width: bool = True) -> float:
    """The paper's rule: `base` holds at width 768 and batch 512, falls as 1/width and grows as √batch."""
    width_factor = BASE_WIDTH / width if scale_by_width else 1.0
    return base * width_factor * (batch_size / BASE_BATCH) ** 0.5


def clip_and_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    squares: list[Tensor],
    step: Tensor,
    rate: float,
    beta: float,
    clip: float,
) -> Tensor:
    """Clip the gradients and take Adam's step without momentum (β₁ = 0): where compiled, one pass over the memory.

    Args:
        weights: what is trained; changed in place.
        gradients: of the weights; left alone.
        squares: running means of the squared gradients; changed in place.
        step: number of the step from 1, a scalar tensor.
        rate: learning rate.
        beta: β₂.
        clip: the largest norm of all gradients together.

    Returns:
        That norm before clipping.
    """
    norm = nn.utils.get_total_norm(gradients)
    scale = (clip / (norm + 1e-6)).clamp(max=1)
    correction = (1 - beta**step).sqrt()
    for weight, gradient, square in zip(weights, gradients, squares, strict=True):
        gradient = scale * gradient
        square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        weight.sub_(rate * gradient / (square.sqrt() / correction + ADAM_EPS))
    return norm


@dataclass(frozen=True)
class Recipe:
    """What defines training, besides the networks and the data; `micro_batch` changes its memory alone."""

    objective: Objective
    batch_size: int  # of all processes together
    learning_rate_g: float
    learning_rate_d: float
    betas: tuple[float, float] = (0.0, 0.99)
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    micro_batch: int | None = None  # samples of one forward on one process; None: its whole share


@dataclass
class Draws:
    """All random numbers of one step, of this process's samples."""

    posterior: Tensor  # (B, C, H, W) standard normal
    z: Tensor  # (B, 64)
    looks_d: tuple[Look, Look]  # at reals and at fakes, in the discriminator's step
    looks_g: tuple[Look, Look]  # and in the generator's
    penalty: tuple[Tensor, Tensor]  # (B, C, H, W) and (K, B, C, H, W) standard normal


class Trainer:
    """Both networks, their optimizers and the EMA generator; `step` trains them once.

    Args:
        accelerator: of Hugging Face Accelerate; it knows devices, processes and precision.
        generator, discriminator: freshly made, the same on all processes.
        recipe: see `Recipe`; its batch must divide among the processes and the micro-batches.
        scaling_factor: that of the latents.
        teacher: whose features the discriminator learns to predict (REPA); None: no one's.

    Raises:
        ParamsError: the batch does not divide.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        generator: Generator,
        discriminator: Discriminator,
        recipe: Recipe,
        scaling_factor: float,
        teacher: Teacher | None = None,
    ) -> None:
        processes = accelerator.num_processes
        self.share = recipe.batch_size // processes
        self.micro_batch = min(recipe.micro_batch or self.share, self.share)
        if recipe.batch_size % processes or self.share % self.micro_batch:
            raise ParamsError(
                f"train.batch_size: {recipe.batch_size} does not divide into {processes} processes "
                f"of micro-batches of {self.micro_batch} (compute.micro_batch)"
            )
        self.accelerator, self.recipe, self.scaling_factor, self.teacher = accelerator, recipe, scaling_factor, teacher
        self.ema = copy.deepcopy(generator).to(accelerator.device).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(recipe.ema)
        classes, width = generator.class_means.shape
        means = generator.class_means
        self._styles = means.new_zeros(classes, width + 1, device=accelerator.device)  # sums and counts of a step
        optimizers = [
            torch.optim.AdamW(network.parameters(), lr, betas=recipe.betas, eps=ADAM_EPS, weight_decay=0.0, fused=True)
            for network, lr in ((generator, recipe.learning_rate_g), (discriminator, recipe.learning_rate_d))
        ]
        self.generator, self.discriminator, self.optimizer_g, self.optimizer_d = accelerator.prepare(
            generator, discriminator, *optimizers
        )
        self.plain_generator: Generator = accelerator.unwrap_model(self.generator)
        self.plain_discriminator: Discriminator = accelerator.unwrap_model(self.discriminator)
        self._discriminator_loss, self._generator_loss = discriminator_loss, generator_loss
        self._clip_and_step: Callable[..., Tensor] | None = None
        self.steps_done = 0

    def compile(self) -> None:
        """Compile the generator, and each of the losses with the discriminator in it; on a CPU the update, too."""
        self.plain_generator.compile()
        self._discriminator_loss = torch.compile(discriminator_loss)
        self._generator_loss = torch.compile(generator_loss)
        if self.recipe.betas[0] == 0 and self.accelerator.device.type == "cpu":  # a GPU's AdamW is one pass already
            self._clip_and_step = torch.compile(clip_and_step, dynamic=False)

    def draw(self, step: int) -> Draws:
        """The random numbers of a step. Every process draws those of the whole batch and keeps its own part."""
        device, objective = self.accelerator.device, self.recipe.objective
        rng = generator_of(self.recipe.seed, 2, step, device=device)
        config = self.plain_generator.config
        count, levels, size = self.recipe.batch_size, len(objective.times), config["latent_size"]
        image = (config["channels"], size, size)
        own = slice(self.accelerator.process_index * self.share, (self.accelerator.process_index + 1) * self.share)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=device)

        def look() -> Look:
            draw = draw_augmentation(count, size, objective.augment, rng)
            return Look(draw, normal(levels, count, *image)).part(own)

        return Draws(
            posterior=normal(count, *image)[own],
            z=normal(count, Z_DIM)[own],
            looks_d=(look(), look()),
            looks_g=(look(), look()),
            penalty=(normal(count, *image)[own], normal(levels, count, *image)[:, own]),
        )

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train the discriminator, then the generator, on this process's share of one batch, on its device.

        Returns:
            Scalars on the device, of this process's samples: `loss_d`, `loss_g`, `gap`, `r1`, `r2`, with a teacher
            `repa`, and the norms `grad_d`, `grad_g` of the whole gradients before clipping.
        """
        draws, labels = self.draw(self.steps_done), batch.labels
        mean, std = at_least_float32(batch.moments).chunk(2, dim=1)
        real = (mean + std * draws.posterior) * self.scaling_factor
        parts = [slice(i, i + self.micro_batch) for i in range(0, self.share, self.micro_batch)]
        one_part = len(parts) == 1
        objective = self.recipe.objective

        def generate(part: slice) -> tuple[Tensor, Tensor]:
            return self.generator(draws.z[part], labels[part], return_levels=True, return_style=True)

        def target(part: slice) -> Features | None:
            if self.teacher is None or batch.images is None:
                return None
            return self.teacher(batch.images[part], draws.looks_d[0].part(part).augment, real.shape[-1])

        logs: dict[str, Tensor] = {}
        levels = style = real.new_empty(0)
        for part in parts:
            with torch.set_grad_enabled(one_part):  # a single forward serves both networks' steps
                levels, style = generate(part)
            with self._sync(self.discriminator, part is parts[-1]):
                loss, terms = self._discriminator_loss(
                    self.discriminator,
                    real[part],
                    levels.detach(),
                    labels[part],
                    (draws.looks_d[0].part(part), draws.looks_d[1].part(part)),
                    (draws.penalty[0][part], draws.penalty[1][:, part]),
                    objective,
                    target(part),
                )
                self.accelerator.backward(loss / len(parts))
            for name, value in terms.items():
                logs[name] = logs.get(name, 0) + value / len(parts)
        logs["grad_d"] = self._update(self.discriminator, self.optimizer_d)

        with _frozen(self.plain_discriminator):
            for part in parts:
                with self._sync(self.generator, part is parts[-1]):
                    if not one_part:
                        levels, style = generate(part)
                    looks = (draws.looks_g[0].part(part), draws.looks_g[1].part(part))
                    with torch.no_grad(), self.accelerator.autocast():
                        class_map = self.plain_discriminator.map_classes(labels[part])
                    loss = self._generator_loss(
                        self.plain_discriminator, real[part], levels, class_map, looks, objective
                    )
                    self.accelerator.backward(loss / len(parts))
                logs["loss_g"] = logs.get("loss_g", 0) + loss.detach() / len(parts)
                self._collect_styles(style.detach(), labels[part])
        logs["grad_g"] = self._update(self.generator, self.optimizer_g)
        self._update_class_means()
        with torch.no_grad():
            self._average(list(self.ema.parameters()), list(self.plain_generator.parameters()), 1)
            self.ema.class_means.copy_(self.plain_generator.class_means)
        self.steps_done += 1
        return logs

    def _sync(self, network: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients in the last micro-batch alone."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    def _update(self, network: nn.Module, optimizer: Any) -> Tensor:
        if self._clip_and_step is not None and optimizer.state:
            norm = self._update_compiled(self._clip_and_step, optimizer)
        else:
            norm = self.accelerator.clip_grad_norm_(network.parameters(), self.recipe.clip)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _update_compiled(self, clip_and_step: Callable[..., Tensor], optimizer: Any) -> Tensor:
        """As the optimizer itself; its first moment, which nothing reads where β₁ = 0, is left as it is."""
        (group,) = optimizer.param_groups
        weights, states = group["params"], [optimizer.state[weight] for weight in group["params"]]
        torch._foreach_add_([state["step"] for state in states], 1)
        gradients, squares = [weight.grad for weight in weights], [state["exp_avg_sq"] for state in states]
        return clip_and_step(
            weights, gradients, squares, states[0]["step"], group["lr"], group["betas"][1], self.recipe.clip
        )

    def _collect_styles(self, style: Tensor, labels: Tensor) -> None:
        """Add styles and counts to those of their class."""
        rows = torch.cat([style.to(self._styles.dtype), self._styles.new_ones(len(style), 1)], dim=1)
        self._styles.index_add_(0, labels, rows)

    def _update_class_means(self) -> None:
        sums = self.accelerator.reduce(self._styles, reduction="sum")
        self.plain_generator.update_class_means(sums[:, :-1], sums[:, -1])
        self._styles.zero_()

    def state(self) -> dict[str, Tensor]:
        """Everything that training carries from one step to the next, as named tensors."""
        tensors: dict[str, Tensor] = {}
        for prefix, network in self._networks():
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}
        for prefix, optimizer in self._optimizers():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.{index}.{name}": tensor for name, tensor in values.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], steps_done: int) -> None:
        """Take over `state()` of a trainer of the same sizes after `steps_done` steps."""

        def section(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}

        for prefix, network in self._networks():
            network.load_state_dict(section(prefix))
        for prefix, optimizer in self._optimizers():
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in section(prefix).items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.steps_done = steps_done

    def _networks(self) -> Iterator[tuple[str, nn.Module]]:
        yield from (
            ("generator", self.plain_generator),
            ("discriminator", self.plain_discriminator),
            ("ema", self.ema),
        )

    def _optimizers(self) -> Iterator[tuple[str, Any]]:
        yield from (("optimizer_g", self.optimizer_g), ("optimizer_d", self.optimizer_d))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


Evaluate = Callable[[Generator], float]
Row = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How long to train, and what to do on the way, every so many steps."""

    steps: int
    eval_every: int
    save_every: int
    log_every: int = 20
    checkpoints: Path | None = None  # where to save and to resume from; None: neither
    workers: int = 0  # processes that read data


def fit(
    trainer: Trainer,
    batches: TrainingBatches,
    plan: Plan,
    evaluate: Evaluate | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train to the end of the plan, from its newest whole checkpoint if there is one.

    Args:
        trainer: not trained yet.
        batches: this process's share of the data.
        plan: see `Plan`.
        evaluate: function of the EMA generator to its FID, called on all processes.
        on_row: told each row of the history as it is made, those of before an interruption first; on the main
            process alone.

    Returns:
        The history: rows with `step` and either the mean losses since the row before (`Trainer.step`), over all
        processes, or `fid`.
    """
    accelerator = trainer.accelerator
    history: list[Row] = []
    fid: dict[str, str] = {}
    if plan.checkpoints is not None:
        history, messages = load_checkpoint(plan.checkpoints, trainer)
        if trainer.steps_done:
            messages.append(f"resuming at step {trainer.steps_done} from {plan.checkpoints}")
        accelerator.print(*messages, sep="\n", end="\n" if messages else "")

    def add(row: Row) -> None:
        history.append(row)
        if on_row is not None and accelerator.is_main_process:
            on_row(row)

    if on_row is not None and accelerator.is_main_process:
        for row in history:
            on_row(row)
    start = trainer.steps_done
    pin = accelerator.device.type == "cuda"
    loader = DataLoader(
        batches, batch_size=None, sampler=range(start, plan.steps), num_workers=plan.workers, pin_memory=pin
    )
    bar = tqdm(
        loader, "train", plan.steps, initial=start, unit="step", disable=not accelerator.is_main_process, mininterval=1
    )
    window: list[dict[str, Tensor]] = []
    for batch in bar:
        window.append(trainer.step(send_to_device(batch, accelerator.device, non_blocking=True)))
        done = trainer.steps_done
        saving = plan.checkpoints is not None and (done % plan.save_every == 0 or done == plan.steps)
        if done % plan.log_every == 0 or done == plan.steps or saving:  # a checkpoint holds no half-made row
            means = torch.stack([torch.stack([row[name] for row in window]).mean() for name in window[0]])
            values = accelerator.reduce(means, reduction="mean").tolist()
            add({"step": done} | dict(zip(window[0], values, strict=True)))
            window = []
            losses = {name: f"{history[-1][name]:.2f}" for name in ("loss_d", "loss_g", "gap")}
            bar.set_postfix(losses | fid, refresh=False)
        if evaluate is not None and (done % plan.eval_every == 0 or done == plan.steps):
            add({"step": done, "fid": evaluate(trainer.ema)})
            fid = {"fid": f"{history[-1]['fid']:.2f}"}
        if saving and plan.checkpoints is not None:
            if accelerator.is_main_process:
                save_checkpoint(plan.checkpoints, trainer, history)
            accelerator.wait_for_everyone()
    return history


def final_gap(history: list[Row], steps: int, share: float = 0.1) -> float:
    """Mean of D(real) − D(fake) over the last tenth of a training; near 0 the discriminator tells nothing apart."""
    gaps = [row["gap"] for row in history if "gap" in row and row["step"] > (1 - share) * steps]
    return sum(gaps) / len(gaps)
