"""Seconds of a training step, and the share of the machine's own matrix product that it reaches.

python benchmarks/train_step.py [--config mini S/2 …] [--classes N] [--batch N] [--precision bf16]
                                [--compile] [--steps N]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode

from gat.config import Loss, Optimization
from gat.data.latents import Batch
from gat.gan.networks import Discriminator, Generator
from gat.gan.training import Trainer
from gat.runtime import make_accelerator
from gat.sizes import SIZES

WARMUP = 3  # steps, in which torch.compile compiles
STEPS_A_PRODUCT = 4  # between two matrix products, which leave the caches cold
MINI = {"width": 64, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8}


def network(name: str) -> dict:
    """`mini`, or a size of the paper's and a patch, such as XL/2."""
    if name == "mini":
        return MINI
    size, patch = name.split("/")
    return {**SIZES[size]._asdict(), "patch": int(patch), "latent_size": 32}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long a piece of work takes, to its end on the device."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure(
    name: str, classes: int, batch: int, precision: str, compile: bool, steps: int, device: torch.device
) -> dict:
    config = {**network(name), "classes": classes}
    torch.compiler.reset()  # of the size before
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if precision == "bf16" else "no")
    torch.manual_seed(0)
    generator, discriminator = Generator(**config), Discriminator(**config)
    train = Optimization(batch_size=batch, learning_rate=1e-4)
    trainer = Trainer(accelerator, generator, discriminator, 1.0, train, Loss(scale_gamma_by_pixels=False))
    side = config["latent_size"]
    data = Batch(torch.rand(batch, 8, side, side, device=device), torch.arange(batch, device=device) % classes)
    with FlopCounterMode(display=False) as counter:  # it sees nothing of what is compiled
        trainer.step(data)
    if compile:
        generator.compile_repeated_blocks()
        discriminator.compile_repeated_blocks()
    size, dtype = 8192 if device.type == "cuda" else 2048, torch.bfloat16 if precision == "bf16" else torch.float32
    factors = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)]
    for _ in range(WARMUP):
        trainer.step(data)
    seconds, product_seconds = [], []
    for i in range(steps):
        if i % STEPS_A_PRODUCT == 0:  # machines are noisy
            product_seconds.append(seconds_of(lambda: torch.mm(*factors), device))
        seconds.append(seconds_of(lambda: trainer.step(data), device))
    second, peak = statistics.median(seconds), 2 * size**3 / statistics.median(product_seconds) / 1e9
    return {
        "size": name,
        "classes": classes,
        "batch": batch,
        "precision": precision,
        "compile": "yes" if compile else "no",
        "s/step": f"{second:.3f}",
        "fastest": f"{min(seconds):.3f}",
        "images/s": f"{batch / second:.1f}",
        "matmul GFLOP/s": f"{peak:.0f}",
        "GFLOP/step": f"{counter.get_total_flops() / 1e9:.1f}",
        "share of it": f"{counter.get_total_flops() / 1e9 / second / peak:.2f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", nargs="+", default=["mini", "S/2"])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, help="default: 64 for mini, 4 on a CPU or 64 on a GPU for the others")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="compute.compile")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    device = make_accelerator().device
    AcceleratorState._reset_state(reset_partial_state=True)  # `measure` sets the precision
    header = None
    for name in arguments.config:
        batch = arguments.batch or (64 if name == "mini" or device.type == "cuda" else 4)
        row = measure(name, arguments.classes, batch, arguments.precision, arguments.compile, arguments.steps, device)
        if header is None:
            header = " | ".join(row)
            print(f"| {header} |\n|{' --- |' * len(row)}")
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
