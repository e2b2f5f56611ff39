"""What the trainings of a study take of GPUs, disks and hosts, before anything is rented or downloaded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from gat.config import Compute, Params, ParamsError
from gat.gan.checkpoints import KEEP_LATEST
from gat.gan.training import PREFETCHED
from gat.study.planner import Card, StepCost, StepPlanner

SD_FACTOR, SD_CHANNELS, SD_BYTES = 8, 4, 335e6  # of Stable Diffusion's autoencoders, which ImageNet's studies use
WEBP_BYTES = 90e3  # of an image of 256 × 256 pixels, so that ImageNet's take 115 GB, as its profile says; jpeg: half


class DataSize(NamedTuple):
    """Size of the training data."""

    images: int
    classes: list[str]
    size: int  # side of a latent
    channels: int
    scaling_factor: float = 1.0

    @property
    def latent_bytes(self) -> int:
        """Of one image's posterior moments in float16."""
        return 2 * 2 * self.channels * self.size**2


def guess_data(params: Params, images: int, classes: int) -> DataSize:
    """The size of the data before it is made: of latents by `vae.recipe`, or else by Stable Diffusion's autoencoder."""
    recipe = params.vae.recipe if params.vae.pretrained is None else None
    factor, channels = (recipe.downsampling_factor, recipe.latent_channels) if recipe else (SD_FACTOR, SD_CHANNELS)
    return DataSize(images, [str(label) for label in range(classes)], params.data.resolution // factor, channels)


class Machine(NamedTuple):
    """GPUs for a study."""

    name: str
    card: Card
    gpus: int
    jobs: int = 1  # trainings side by side, among which the GPUs are divided

    @property
    def gpus_each(self) -> int:
        """GPUs of one training."""
        return self.gpus // self.jobs


@dataclass(frozen=True)
class RunPlan:
    """What one training of a run takes."""

    run: str
    seeds: int
    parameters: list[int]  # of the generator and the discriminator
    gpus: int
    steps: int
    best: StepCost | None  # the fastest setting that fits; None: none does
    least: StepCost  # the one that needs the least memory
    least_gib: float
    gib: float | None  # that the best one needs of a GPU
    seconds: tuple[float, float, float] | None  # a step: matrix products alone, at 45 % of the peak, eager
    checkpoint_bytes: int

    def hours(self, which: int = 1) -> float:
        """Of one training, by one of `seconds`."""
        return 0.0 if self.seconds is None else self.seconds[which] * self.steps / 3600

    def gpu_hours(self, which: int = 1) -> float:
        """Of all seeds."""
        return self.hours(which) * self.gpus * self.seeds


def plan_run(
    params: Params, run: str, data: DataSize, machine: Machine, progress: Callable[[str], object] = lambda _: None
) -> RunPlan:
    """The fastest micro-batch, with or without checkpointing, that fits the memory.

    Args:
        params: with `compute.compile` and `compute.precision`.
        run: its name.
        data: what it trains on.
        machine: on which.
        progress: called with what is about to be tried.

    Raises:
        ParamsError: the batch does not divide among the GPUs.
    """
    recipe, compute, gpus = params.recipe(run), params.compute, machine.gpus_each
    precision = "fp32" if compute.precision == "fp32" else "bf16"
    if recipe.train.batch_size % gpus:
        raise ParamsError(f"train.batch_size: {recipe.train.batch_size} does not divide among {gpus} GPUs")
    costs: list[StepCost] = []
    for checkpointing in (False, True):
        what = f"{run}{', checkpointing' * checkpointing}"
        progress(what)
        planner = StepPlanner(recipe, data, params.data.resolution, machine.card, precision, gpus, checkpointing)

        def cost(micro_batch: int, planner: StepPlanner = planner, what: str = what) -> StepCost:
            progress(f"{what}, micro-batch {micro_batch}")
            return planner.cost(micro_batch)

        costs += _costs(planner.local, cost, lambda cost: machine.card.memory - cost.needs(compute.compile))
        if costs[0].needs(compute.compile) <= machine.card.memory:
            break  # nothing is faster
    fitting = [cost for cost in costs if cost.needs(compute.compile) <= machine.card.memory]
    best = min(fitting, key=lambda cost: cost.eager_seconds, default=None)
    least = min(costs, key=lambda cost: cost.needs(compute.compile))
    return RunPlan(
        run,
        seeds=len(params.seeds) if run in params.study else 1,
        parameters=planner.parameters,
        gpus=gpus,
        steps=recipe.train.steps,
        best=best,
        least=least,
        least_gib=least.needs(compute.compile),
        gib=None if best is None else best.needs(compute.compile),
        seconds=None if best is None else best.seconds(machine.card, precision),
        checkpoint_bytes=planner.checkpoint_bytes,
    )


def _costs(local: int, cost: Callable[[int], StepCost], free: Callable[[StepCost], float]) -> list[StepCost]:
    """Costs of the whole share of a batch and, if it does not fit, of the largest micro-batch that does.

    Args:
        local: the share; micro-batches are halves of it, halves of these, and so on.
        cost: of a micro-batch.
        free: memory that is left; it is linear in the micro-batch where there are several.
    """
    sizes = [local]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    found = [cost(local)]
    if free(found[0]) >= 0 or len(sizes) == 1:
        return found
    found.append(cost(sizes[-1]))
    if free(found[1]) < 0 or len(sizes) == 2:
        return found
    found.append(cost(sizes[-2]))
    each = (free(found[1]) - free(found[2])) / (sizes[-2] - sizes[-1])
    for size in sizes[1:-2]:
        if free(found[1]) - each * (size - sizes[-1]) >= 0:
            found.append(cost(size))
            if free(found[-1]) >= 0:
                break
    return found


def disk_bytes(params: Params, data: DataSize, plans: Sequence[RunPlan], jobs: int) -> dict[str, float]:
    """What the study leaves or needs on disks."""
    image = WEBP_BYTES * (params.data.resolution / 256) ** 2 * (0.5 if params.data.encoding == "jpeg" else 1)
    results = sum(plan.seeds * 4 * (sum(plan.parameters) + plan.parameters[0]) for plan in plans)
    vae = SD_BYTES if params.vae.pretrained else 0
    return {
        "images": data.images * image,
        "latents": data.images * data.latent_bytes * (2 if params.data.mirror else 1),
        # The latest are kept, and one more is being written.
        "checkpoints": (KEEP_LATEST + 1) * sum(sorted(plan.checkpoint_bytes for plan in plans)[-jobs:]),
        "results": results + vae * sum(plan.seeds for plan in plans),
    }


def host_bytes(params: Params, data: DataSize, plans: Sequence[RunPlan], machine: Machine) -> dict[str, float]:
    """What one machine's memory must hold beside the programs: a copy of each checkpoint, and batches in /dev/shm."""
    compute: Compute = params.compute
    batches = 0.0
    for plan in plans:
        recipe = params.recipe(plan.run)
        sample = data.latent_bytes + 8 + (3 * params.data.resolution**2 if recipe.repa.teacher else 0)
        waiting = PREFETCHED * compute.workers + 1 if compute.workers else 0
        batches = max(batches, waiting * recipe.train.batch_size * sample)
    checkpoints = sorted(plan.checkpoint_bytes for plan in plans)[-machine.jobs :]
    return {"checkpoints": float(sum(checkpoints)), "/dev/shm": batches * machine.jobs}


def as_json(params: Params, data: DataSize, plans: Sequence[RunPlan], machine: Machine) -> dict[str, Any]:
    """All figures of a plan."""
    return {
        "gpu": machine.name,
        "gpus": machine.gpus,
        "jobs": machine.jobs,
        "card": machine.card._asdict(),
        "precision": params.compute.precision,
        "compile": params.compute.compile,
        "images": data.images,
        "classes": len(data.classes),
        "latents": [data.channels, data.size, data.size],
        "runs": [
            asdict(plan)
            | {"best": None if plan.best is None else plan.best._asdict(), "least": plan.least._asdict()}
            | {"hours": plan.hours(), "gpu_hours": plan.gpu_hours()}
            for plan in plans
        ],
        "gpu_hours": sum(plan.gpu_hours() for plan in plans),
        "disk_bytes": disk_bytes(params, data, plans, machine.jobs),
        "host_bytes": host_bytes(params, data, plans, machine),
    }


def plan_page(params: Params, data: DataSize, plans: Sequence[RunPlan], machine: Machine) -> str:
    """A plan in Markdown."""
    lines = [
        "| run | parameters of G and D | micro-batch | checkpointing | GiB | s a step | hours | GPU-hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for plan in plans:
        millions = " + ".join(f"{count / 1e6:.0f} M" for count in plan.parameters)
        seeds = f" × {plan.seeds}" if plan.seeds > 1 else ""
        if plan.best is None or plan.seconds is None:
            least = f"does not fit: at least {plan.least_gib:.0f} GiB"
            lines.append(f"| {plan.run}{seeds} | {millions} | {least} | | | | | |")
            continue
        low, _, high = plan.seconds
        lines.append(
            f"| {plan.run}{seeds} | {millions} | {plan.best.micro_batch} | "
            f"{'yes' if plan.best.checkpointing else 'no'} | {plan.gib:.0f} | {low:.2g} to {high:.2g} | "
            f"{plan.hours(0):.3g} to {plan.hours(2):.3g} | {plan.gpu_hours():,.0f} |"
        )
    total = [sum(plan.gpu_hours(which) for plan in plans) for which in range(3)]
    disk, host = disk_bytes(params, data, plans, machine.jobs), host_bytes(params, data, plans, machine)
    compiled = "compiled" if params.compute.compile else "not compiled (compute.compile)"
    lines += [
        "",
        f"All trainings: {total[1]:,.0f} GPU-hours at 45% of the peak ({total[0]:,.0f} to {total[2]:,.0f}), "
        f"{total[1] / machine.gpus:.3g} hours.",
        f"Disk: {', '.join(f'{name} {_size(count)}' for name, count in disk.items())}.",
        f"Host memory, beside the programs: {', '.join(f'{name} {_size(count)}' for name, count in host.items())}.",
        "",
        f"Memory is what PyTorch's allocator reserves, {compiled}; the range of time is from matrix products alone to "
        "operations one by one. Time for images, latents, evaluation and showcase is not in it.",
    ]
    return "\n".join(lines)


def _size(count: float) -> str:
    """Bytes in the unit that fits."""
    power = max(0, min(4, int(math.log10(count) // 3))) if count >= 1 else 0
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
