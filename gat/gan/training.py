"""The training step and the training loop (paper, section 5 and appendix), with Hugging Face Accelerate."""

import copy
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from gat.config import Compute, Loss, Optimization, ParamsError
from gat.data.latents import Batch, TrainingBatches
from gat.gan.augment import sample_augment_params
from gat.gan.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from gat.gan.losses import Features, Perturbation, at_least_float32, discriminator_loss, generator_loss
from gat.gan.networks import Z_DIM, Discriminator, Generator, require_finite
from gat.gan.optim import make_optimizer, width_aware_learning_rate
from gat.gan.repa import Teacher
from gat.runtime import any_process, wait_for_everyone
from gat.seeds import Purpose, generator_of

LOG_EVERY = 20  # steps over which logged metrics are averaged
PREFETCHED = 2  # batches of each data-loading process that wait to be used, PyTorch's default
WORKER_SECONDS = 600  # in which a data-loading process must deliver a batch
GAP_SHARE = 0.1  # fraction of a training, at its end, over which the final gap is averaged


class RandomNumbers(NamedTuple):
    """All random numbers of a step, for the samples of this process."""

    posterior: Tensor  # (B, C, H, W) standard normal
    z: Tensor  # (B, 64) standard normal
    perturb_d: tuple[Perturbation, Perturbation]  # of reals and fakes, for the discriminator's loss
    perturb_g: tuple[Perturbation, Perturbation]  # of reals and fakes, for the generator's loss
    eps: tuple[Tensor, Tensor]  # (B, C, H, W) and (K, B, C, H, W) standard normal, for aR1 and aR2

    def select(self, samples: slice) -> "RandomNumbers":
        """The random numbers of a slice of the samples."""
        return RandomNumbers(
            self.posterior[samples],
            self.z[samples],
            (self.perturb_d[0].select(samples), self.perturb_d[1].select(samples)),
            (self.perturb_g[0].select(samples), self.perturb_g[1].select(samples)),
            (self.eps[0][samples], self.eps[1][:, samples]),
        )


class MicroBatch(NamedTuple):
    """The samples of one forward pass."""

    real: Tensor  # (b, C, H, W)
    class_labels: Tensor  # (b,)
    images: Tensor | None  # (b, H', W', 3)
    random: RandomNumbers


Generated = tuple[Tensor, Tensor]  # level images (K, b, C, H, W) and styles (b, width)


def sample_posterior(moments: Tensor, noise: Tensor) -> Tensor:
    """Sample latents mean + std·noise (B, C, H, W) from posterior moments (B, 2C, H, W) and standard normal noise."""
    mean, std = at_least_float32(moments).chunk(2, dim=1)
    return mean + std * noise


class Trainer:
    """Both networks, their optimizers and the EMA generator; `step` runs one training step.

    Args:
        accelerator: Accelerate's `Accelerator`, which defines device, processes and precision.
        generator, discriminator: untrained, with the same weights on all processes.
        scaling_factor: of the latents.
        train, loss, compute: sections of params.yaml; the defaults are the paper's values.
        seed: of all random numbers.
        teacher: computes the features that the discriminator learns to predict (REPA); None: no REPA.
        repa_weight: β of REPA.

    Raises:
        ParamsError: the batch size is not a multiple of processes times micro-batch.
        ValueError: a network has another number of levels than the loss.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        generator: Generator,
        discriminator: Discriminator,
        scaling_factor: float,
        train: Optimization = Optimization(),  # noqa: B008 (frozen)
        loss: Loss = Loss(),  # noqa: B008
        compute: Compute = Compute(),  # noqa: B008
        seed: int = 0,
        teacher: Teacher | None = None,
        repa_weight: float = 1.0,
    ) -> None:
        for network, count in ((generator, loss.levels.made), (discriminator, loss.levels.seen)):
            if network.config["levels"] != count:
                raise ValueError(f"levels: the network has {network.config['levels']}, the loss {count}")
        processes = accelerator.num_processes
        self.local_batch_size = train.batch_size // processes
        wanted = self.local_batch_size if compute.micro_batch in (None, "auto") else int(compute.micro_batch)
        self.micro_batch = min(wanted, self.local_batch_size)
        if train.batch_size % processes or self.local_batch_size % self.micro_batch:
            raise ParamsError(
                f"train.batch_size: {train.batch_size} is not a multiple of {processes} processes "
                f"times compute.micro_batch ({self.micro_batch})"
            )
        self.accelerator, self.scaling_factor, self.seed = accelerator, scaling_factor, seed
        self.train, self.loss, self.compute = train, loss, compute
        self.teacher, self.repa_weight = teacher, repa_weight
        self.ema = copy.deepcopy(generator).to(accelerator.device).eval().requires_grad_(False)
        self._update_average = get_ema_multi_avg_fn(train.ema_decay)
        classes, width = generator.w_avg.shape
        self._style_sums = generator.w_avg.new_zeros(
            classes, width + 1, device=accelerator.device
        )  # styles, and counts
        optimizers = [
            make_optimizer(network, width_aware_learning_rate(train, network.config["width"]), train)
            for network in (generator, discriminator)
        ]
        # Wrapped by Accelerate, which averages gradients over processes, and unwrapped.
        self.wrapped_generator, self.wrapped_discriminator, self.optimizer_g, self.optimizer_d = accelerator.prepare(
            generator, discriminator, *optimizers
        )
        self.generator: Generator = accelerator.unwrap_model(self.wrapped_generator)
        self.discriminator: Discriminator = accelerator.unwrap_model(self.wrapped_discriminator)
        for network in (self.wrapped_generator, self.wrapped_discriminator):
            if isinstance(network, DistributedDataParallel):
                network.forward_sync_buffers = False  # all processes update them alike
        self.steps_done = 0

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Train the discriminator, then the generator, on this process's share of a batch, which is on its device.

        Returns:
            Scalars on the device: `loss_d`, `loss_g`, `gap`, `r1`, `r2`, and with a teacher `repa`, over the samples of
            this process; `grad_d` and `grad_g`, the norms of the gradients of the whole batch before clipping.
        """
        micro_batches = self._split(batch, self.sample_random_numbers(self.steps_done))
        kept = self._keep(micro_batches)
        metrics = self._discriminator_backward(micro_batches, kept)
        metrics["grad_d"] = self._optimizer_step(self.wrapped_discriminator, self.optimizer_d)
        metrics["loss_g"] = self._generator_backward(micro_batches, kept)
        metrics["grad_g"] = self._optimizer_step(self.wrapped_generator, self.optimizer_g)
        self._update_w_avg()
        self._update_ema()
        self.steps_done += 1
        return metrics

    def fit_to_memory(self, batch: Batch) -> None:
        """Halve the micro-batch until a step fits the GPUs' memory. Trains nothing; all processes must call it.

        Args:
            batch: this process's share of any batch, on its device.

        Raises:
            ParamsError: a step does not fit with one sample or an odd number of samples at a time.
        """
        while True:
            try:
                self._rehearse(batch)
                full = False
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                full = True  # and free the memory that this error's traceback holds
            for network in (self.generator, self.discriminator):
                network.zero_grad()
            self._style_sums.zero_()
            clear_device_cache(garbage_collection=True)
            if not any_process(full)[0]:
                return
            if self.micro_batch % 2:
                raise ParamsError(
                    f"compute.micro_batch: not even {self.micro_batch} samples at a time fit the GPU's memory; "
                    "`python -m stages plan` shows what fits"
                )
            self.micro_batch //= 2
            self.accelerator.print(f"compute.micro_batch: the GPU's memory is full; trying {self.micro_batch} samples")

    def _rehearse(self, batch: Batch) -> None:
        """Use as much memory as a step does."""
        networks = (self.generator, self.discriminator)
        moments = 0 if self.steps_done else 1 if self.train.betas[0] == 0 else 2  # the optimizers' own, still to come
        reserved = [torch.empty_like(p) for network in networks for p in network.parameters() for _ in range(moments)]
        micro_batches = self._split(batch, self.sample_random_numbers(self.steps_done))[:2]  # two use as much as more
        kept = self._keep(micro_batches)
        self._discriminator_backward(micro_batches, kept, exchange=False)
        self.discriminator.zero_grad()
        self._generator_backward(micro_batches, kept, exchange=False)
        del reserved

    def _keep(self, micro_batches: list[MicroBatch]) -> list[Generated] | None:
        """With a single micro-batch, the output of the generator, whose graph both losses use."""
        return [self._generate(micro_batches[0])] if len(micro_batches) == 1 else None

    def _discriminator_backward(
        self, micro_batches: list[MicroBatch], kept: list[Generated] | None, exchange: bool = True
    ) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        for i, micro in enumerate(micro_batches):
            with torch.no_grad():
                fake, _ = kept[i] if kept else self._generate(micro)
            with self._gradient_exchange(self.wrapped_discriminator, exchange and micro is micro_batches[-1]):
                loss, terms = discriminator_loss(
                    self.wrapped_discriminator,
                    micro.real,
                    fake.detach(),
                    micro.class_labels,
                    micro.random.perturb_d,
                    micro.random.eps,
                    self.loss,
                    self._teacher_features(micro),
                    self.repa_weight,
                )
                self.accelerator.backward(loss / len(micro_batches))
            for name, value in terms.items():
                metrics[name] = metrics.get(name, 0) + value / len(micro_batches)
        return metrics

    def _generator_backward(
        self, micro_batches: list[MicroBatch], kept: list[Generated] | None, exchange: bool = True
    ) -> Tensor:
        loss_g = torch.zeros((), device=self.accelerator.device)
        with _frozen(self.discriminator):
            for i, micro in enumerate(micro_batches):
                with self._gradient_exchange(self.wrapped_generator, exchange and micro is micro_batches[-1]):
                    fake, w = kept[i] if kept else self._generate(micro)
                    with torch.no_grad(), self.accelerator.autocast():
                        class_embeddings = self.discriminator.y_embedder(micro.class_labels)
                    loss = generator_loss(
                        self.discriminator, micro.real, fake, class_embeddings, micro.random.perturb_g, self.loss
                    )
                    self.accelerator.backward(loss / len(micro_batches))
                loss_g = loss_g + loss.detach() / len(micro_batches)
                self._collect_styles(w.detach(), micro.class_labels)
        return loss_g

    def _generate(self, micro: MicroBatch) -> Generated:
        return self.wrapped_generator(micro.random.z, micro.class_labels, return_levels=True, return_style=True)

    def _teacher_features(self, micro: MicroBatch) -> Features | None:
        if self.teacher is None or micro.images is None:
            return None
        return self.teacher(micro.images, micro.random.perturb_d[0].augment, micro.real.shape[-1])

    def _optimizer_step(self, network: nn.Module, optimizer: Any) -> Tensor:
        """Clip the gradients and step; returns the norm of the gradients before clipping."""
        norm = self.accelerator.clip_grad_norm_(network.parameters(), self.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _gradient_exchange(self, network: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Synchronize gradients across processes only in the backward pass of the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(network)

    def _collect_styles(self, w: Tensor, class_labels: Tensor) -> None:
        """Add styles, and counts of samples, to the sums of their classes."""
        rows = torch.cat([w.to(self._style_sums.dtype), self._style_sums.new_ones(len(w), 1)], dim=1)
        self._style_sums.index_add_(0, class_labels, rows)

    def _update_w_avg(self) -> None:
        sums = self.accelerator.reduce(self._style_sums, reduction="sum")
        self.generator.update_w_avg(sums[:, :-1], sums[:, -1])
        self._style_sums.zero_()

    @torch.no_grad()
    def _update_ema(self) -> None:
        self._update_average(list(self.ema.parameters()), list(self.generator.parameters()), 1)
        self.ema.w_avg.copy_(self.generator.w_avg)

    def sample_random_numbers(self, step: int) -> RandomNumbers:
        """The random numbers of a step. Every process draws those of the whole batch and keeps those of its samples."""
        device, batch_size = self.accelerator.device, self.train.batch_size
        rng = generator_of(self.seed, Purpose.STEP, step, device=device)
        config = self.generator.config
        levels, size = config["levels"], config["latent_size"]
        shape = (config["channels"], size, size)
        start = self.accelerator.process_index * self.local_batch_size
        local = slice(start, start + self.local_batch_size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=device)

        def perturbation() -> Perturbation:
            augment = sample_augment_params(batch_size, size, self.loss.augment, rng)
            return Perturbation(augment, normal(levels, batch_size, *shape)).select(local)

        return RandomNumbers(
            posterior=normal(batch_size, *shape)[local],
            z=normal(batch_size, Z_DIM)[local],
            perturb_d=(perturbation(), perturbation()),
            perturb_g=(perturbation(), perturbation()),
            eps=(normal(batch_size, *shape)[local], normal(levels, batch_size, *shape)[:, local]),
        )

    def _split(self, batch: Batch, numbers: RandomNumbers) -> list[MicroBatch]:
        real = sample_posterior(batch.moments, numbers.posterior) * self.scaling_factor
        parts = [slice(i, i + self.micro_batch) for i in range(0, self.local_batch_size, self.micro_batch)]
        return [
            MicroBatch(
                real=real[part],
                class_labels=batch.labels[part],
                images=None if batch.images is None else batch.images[part],
                random=numbers.select(part),
            )
            for part in parts
        ]

    def require_finite(self) -> None:
        """Check that all weights are finite; see `gat.gan.networks.require_finite`."""
        for name, network in self._networks():
            require_finite(network, f"{name} after step {self.steps_done}")

    def state(self) -> dict[str, Tensor]:
        """The state of the training after a step, as named tensors."""
        tensors: dict[str, Tensor] = {}
        for prefix, network in self._networks():
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in network.state_dict().items()}
        for prefix, optimizer in self._optimizers():
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.{index}.{name}": tensor for name, tensor in values.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], steps_done: int) -> None:
        """Restore the `state()` that a trainer with networks of the same size had after `steps_done` steps."""

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
        yield from (("generator", self.generator), ("discriminator", self.discriminator), ("ema", self.ema))

    def _optimizers(self) -> Iterator[tuple[str, Any]]:
        yield from (("optimizer_g", self.optimizer_g), ("optimizer_d", self.optimizer_d))


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


Metrics = dict[str, float]


class _Log:
    """Logs the metrics of a training as rows of `step` and either the mean losses since the last row, or `fid`."""

    def __init__(self, accelerator: Accelerator, log_fn: Callable[[Metrics], None] | None) -> None:
        self.rows: list[Metrics] = []
        self._latest: Metrics = {}
        self._log_fn = log_fn if accelerator.is_main_process else None
        self._accelerator, self._window = accelerator, list[dict[str, Tensor]]()

    def add(self, row: Metrics) -> None:
        self.rows.append(row)
        self._latest |= row
        if self._log_fn is not None:
            self._log_fn(row)

    def collect(self, metrics: dict[str, Tensor]) -> None:
        self._window.append(metrics)

    def _by_name(self) -> dict[str, Tensor]:
        """Each metric in the steps since the last row of means, (steps,), averaged over processes."""
        names = list(self._window[0]) if self._window else []
        values = [torch.stack([row[name] for row in self._window]) for name in names]
        means = self._accelerator.reduce(torch.stack(values), reduction="mean") if values else []
        return dict(zip(names, means, strict=True))

    def add_means(self, step: int) -> None:
        """Add a row with means over the steps since the last such row, and over processes."""
        values = self._by_name()
        row = dict(zip(values, torch.stack([value.mean() for value in values.values()]).tolist(), strict=True))
        if not all(map(math.isfinite, row.values())):
            raise FloatingPointError(
                f"training diverged between steps {step - len(self._window)} and {step}: "
                + ", ".join(f"{name} {value:.3g}" for name, value in row.items())
            )
        self.add({"step": step} | row)
        self._window = []

    def window(self) -> dict[str, list[float]]:
        """The metrics that the next row of means begins with, for a checkpoint."""
        return {name: values.tolist() for name, values in self._by_name().items()}

    def resume(self, checkpoint: Checkpoint) -> None:
        """Log the rows of a checkpoint, and go on with its window."""
        for row in checkpoint.history:
            self.add(row)
        steps = zip(*checkpoint.window.values(), strict=True)
        values = [torch.tensor(step, device=self._accelerator.device) for step in steps]
        self._window = [dict(zip(checkpoint.window, step, strict=True)) for step in values]

    def postfix(self) -> dict[str, str]:
        """The latest values, for the progress bar."""
        shown = ("loss_d", "loss_g", "gap", "fid")
        return {name: f"{self._latest[name]:.2f}" for name in shown if name in self._latest}


def fit(
    trainer: Trainer,
    batches: TrainingBatches,
    checkpoints: Path | None = None,
    evaluate: Callable[[Generator], float] | None = None,
    log_fn: Callable[[Metrics], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Metrics]:
    """Train for `train.steps` steps, from the latest readable checkpoint if there is one.

    Args:
        trainer: untrained.
        batches: this process's share of the data.
        checkpoints: folder to save to and to resume from; None: neither.
        evaluate: returns the FID of the EMA generator; called on all processes every `train.eval_every` steps.
        log_fn: called with each row of metrics, on rank 0; after resuming, first with the rows of the checkpoint.
        stop: called after each step; if it returns True on any process, training saves and stops.

    Raises:
        KeyboardInterrupt: `stop` returned True.
        FloatingPointError: a loss, a gradient norm, a weight or an FID is not finite; earlier checkpoints are kept.
        ParamsError: see `Trainer.fit_to_memory`.

    Returns:
        All rows: `step` and either the means since the last row over all processes (see `Trainer.step`), or `fid`.
    """
    accelerator, steps, device = trainer.accelerator, trainer.train.steps, trainer.accelerator.device
    log = _Log(accelerator, log_fn)
    if checkpoints is not None and (checkpoint := _resume(trainer, checkpoints)) is not None:
        log.resume(checkpoint)
    start, saved = trainer.steps_done, time.monotonic()
    if trainer.compute.micro_batch == "auto" and start < steps:
        trainer.fit_to_memory(send_to_device(batches[start], device))
    loader, hidden = _loader(trainer, batches), not accelerator.is_main_process
    bar = tqdm(loader, "train", steps, initial=start, unit="step", disable=hidden, mininterval=1)
    for batch in bar:
        log.collect(trainer.step(send_to_device(batch, device, non_blocking=True)))
        step = trainer.steps_done
        if step % LOG_EVERY == 0 or step == steps:
            log.add_means(step)
            bar.set_postfix(log.postfix(), refresh=False)
        if evaluate is not None and (step % trainer.train.eval_every == 0 or step == steps):
            log.add({"step": step, "fid": evaluate(trainer.ema)})
        due = time.monotonic() - saved >= 60 * trainer.compute.save_minutes
        stopping, due = any_process(stop is not None and stop(), due)
        saving = checkpoints is not None and (due or stopping or step == steps)
        if saving or step == steps:
            trainer.require_finite()
        if saving and checkpoints is not None:
            window = log.window()
            if accelerator.is_main_process:
                save_checkpoint(checkpoints, Checkpoint(step, trainer.state(), log.rows, window))
            wait_for_everyone()
            saved = time.monotonic()
        if stopping:
            raise KeyboardInterrupt(f"stopped after step {step}")
    return log.rows


def _loader(trainer: Trainer, batches: TrainingBatches) -> DataLoader[Batch]:
    """A loader of the batches of all remaining steps."""
    workers = trainer.compute.workers
    if workers and (lack := lack_of_shared_memory(batches[trainer.steps_done], workers)):
        trainer.accelerator.print(f"compute.workers: {lack}; this process loads the data itself")
        workers = 0
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(trainer.steps_done, trainer.train.steps),
        num_workers=workers,
        timeout=WORKER_SECONDS if workers else 0,
        worker_init_fn=_ignore_signals,
        pin_memory=trainer.accelerator.device.type == "cuda",
    )


def lack_of_shared_memory(batch: Batch, workers: int, folder: str = "/dev/shm") -> str | None:
    """Why data-loading processes cannot pass such batches on: they hold several in shared memory. None if they can."""
    if not Path(folder).is_dir():
        return None
    tensors = [tensor for tensor in batch if isinstance(tensor, Tensor)]
    needed = sum(tensor.nbytes for tensor in tensors) * (PREFETCHED * workers + 1)
    free = shutil.disk_usage(folder).free
    if needed <= free:
        return None
    return (
        f"{workers} processes need {needed / 2**20:.0f} MiB of shared memory, and {folder} has {free / 2**20:.0f} MiB "
        "(Docker: --shm-size or --ipc=host)"
    )


def _ignore_signals(_: int) -> None:
    """Ignore signals to stop in a data-loading process; the training process saves, then ends its loaders."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _resume(trainer: Trainer, folder: Path) -> Checkpoint | None:
    """Load the latest readable checkpoint into the trainer."""
    checkpoint, messages = load_checkpoint(folder, trainer.accelerator.device)
    if checkpoint is not None:
        trainer.load_state(checkpoint.tensors, checkpoint.step)
        messages.append(f"resuming at step {checkpoint.step} from {folder}")
    if messages:
        trainer.accelerator.print(*messages, sep="\n")
    return checkpoint


def final_gap(history: list[Metrics], steps: int) -> float:
    """Mean of D(real) − D(fake) over the last tenth of a training; near 0, the discriminator separates nothing."""
    gaps = [row["gap"] for row in history if "gap" in row and row["step"] > (1 - GAP_SHARE) * steps]
    return sum(gaps) / len(gaps)
