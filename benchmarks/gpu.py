"""What a training takes of this machine's first GPU, beside what `python -m stages plan` says. Needs no data.

python benchmarks/gpu.py [--params profiles/imagenet256.yaml] [--runs S-2 B-2 L-2 XL-2] [--share 64] [--json FILE]

Each run trains on random latents, eager and compiled, with the setting that the plan chooses for this GPU and `--share`
samples of a batch, what each of 8 GPUs has of 512. Exits with 1 if the memory at the peak differs from the plan by more
than 20%.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from transformers import Dinov2Config, Dinov2Model
from transformers.image_processing_base import ImageProcessingMixin

from gat.config import Params, load_params
from gat.data.latents import Batch
from gat.data.pixels import decode
from gat.gan.networks import Z_DIM
from gat.gan.repa import Teacher
from gat.runtime import choose_precision, make_accelerator
from gat.study.networks import make_trainer
from gat.study.plan import DataSize, Machine, guess_data, plan_run
from gat.study.planner import GIB, Card, find_card

WARMUP, STEPS, SAMPLES = 3, 8, 256
TOLERANCE = 0.2  # of the plan of memory


def random_teacher(folder: Path) -> Teacher:
    """DINOv2-base with random weights."""
    Dinov2Model(Dinov2Config()).save_pretrained(folder)
    size = {"height": 224, "width": 224}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ImageProcessingMixin(crop_size=size, image_mean=mean, image_std=std).save_pretrained(folder)
    return Teacher(folder, "cuda")


def random_vae() -> AutoencoderKL:
    """Stable Diffusion's autoencoder with random weights."""
    channels = (128, 256, 512, 512)
    down, up = (("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4)
    vae = AutoencoderKL(
        down_block_types=down, up_block_types=up, block_out_channels=channels, layers_per_block=2, latent_channels=4
    )
    return vae.cuda().eval().requires_grad_(False)


def seconds_of(work: Any, times: int) -> list[float]:
    """How long each of several calls takes, to its end on the GPU."""
    found = []
    for _ in range(times):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return found


def measure(
    params: Params, run: str, data: DataSize, card: Card, teacher: Teacher | None, vae: AutoencoderKL
) -> dict[str, Any]:
    """A row of the table."""
    plan = plan_run(params, run, data, Machine("", card, 1))
    row: dict[str, Any] = {"run": run, "compiled": params.compute.compile}
    if plan.best is None or plan.seconds is None:
        return row | {"note": f"does not fit: at least {plan.least_gib:.0f} GiB"}
    best, precision = plan.best, choose_precision(params.compute.precision)
    changed = {"micro_batch": best.micro_batch, "activation_checkpointing": best.checkpointing}
    compute, recipe = params.compute.model_copy(update=changed), params.recipe(run)
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.compiler.reset()  # of the run before
    accelerator: Accelerator = make_accelerator(compute)
    trainer = make_trainer(recipe, 0, data, accelerator, teacher, compute)
    count, side = recipe.train.batch_size, params.data.resolution
    images = None if teacher is None else torch.randint(256, (count, side, side, 3), dtype=torch.uint8, device="cuda")
    moments = torch.rand(count, 2 * data.channels, data.size, data.size, dtype=torch.float16, device="cuda")
    batch = Batch(moments, torch.arange(count, device="cuda") % len(data.classes), images)
    for _ in range(WARMUP):
        trainer.step(batch)
    torch.cuda.reset_peak_memory_stats()
    second = statistics.median(seconds_of(lambda: trainer.step(batch), STEPS))
    peak, planned = torch.cuda.max_memory_allocated() / GIB, best.gib_compiled if compute.compile else best.gib
    z, labels = torch.randn(SAMPLES, Z_DIM, device="cuda"), torch.arange(SAMPLES, device="cuda") % len(data.classes)

    def sample() -> None:
        with torch.no_grad(), accelerator.autocast():
            latents = trainer.ema(z, labels)
        decode(vae, latents.float(), params.compute.vae_batch)

    sampling = min(seconds_of(sample, 3)[1:])
    low, middle, high = plan.seconds
    return row | {
        "micro_batch": best.micro_batch,
        "checkpointing": best.checkpointing,
        "s_a_step": second,
        "planned_s": [low, middle, high],
        "share_of_peak": best.tflop / second / card.tflops(precision),
        "gib": peak,
        "planned_gib": planned,
        "gib_ratio": peak / planned,
        "sampled_images_a_s": SAMPLES / sampling,
    }


def as_row(found: dict[str, Any]) -> str:
    """A measurement as a row in Markdown."""
    compiled = "yes" if found["compiled"] else "no"
    if "note" in found:
        return f"| {found['run']} | {compiled} | {found['note']} | | | | | |"
    low, _, high = found["planned_s"]
    return (
        f"| {found['run']} | {compiled} | {found['micro_batch']} | {'yes' if found['checkpointing'] else 'no'} | "
        f"{found['s_a_step']:.3f} (planned {low:.2g} to {high:.2g}) | {found['share_of_peak']:.0%} | "
        f"{found['gib']:.1f} (planned {found['planned_gib']:.1f}) | {found['sampled_images_a_s']:.0f} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="profiles/imagenet256.yaml")
    parser.add_argument("--runs", nargs="+", default=["S-2", "B-2", "L-2", "XL-2"])
    parser.add_argument("--share", type=int, default=64, help="samples of a batch on this GPU")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU here")
    name = torch.cuda.get_device_name()
    card = find_card(name)
    if card is None:
        sys.exit(f"{name} is not in gat/study/gpus.yaml; add its data sheet")
    memory = torch.cuda.get_device_properties(0).total_memory / GIB
    card = card._replace(memory=memory)
    params = load_params(asked.params)
    data = guess_data(params, 1_281_167, 1000)
    train = params.train.model_copy(update={"batch_size": asked.share})
    print(f"{name}, {memory:.1f} GiB, PyTorch {torch.__version__}\n")
    print("| run | compiled | micro-batch | checkpointing | s a step | of the peak | GiB | sampled images a s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    found, vae = [], random_vae()
    with tempfile.TemporaryDirectory() as folder:
        teacher = random_teacher(Path(folder))
        for run in asked.runs:
            for compiled in (False, True):
                compute = params.compute.model_copy(update={"compile": compiled})
                changed = params.model_copy(update={"compute": compute, "train": train})
                taught = teacher if params.recipe(run).repa.teacher else None
                found.append({"gpu": name} | measure(changed, run, data, card, taught, vae))
                print(as_row(found[-1]), flush=True)
                gc.collect()
                torch.cuda.empty_cache()
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2))
    wrong = [row for row in found if abs(row.get("gib_ratio", 1) - 1) > TOLERANCE]
    sys.exit(f"{len(wrong)} plans of memory are more than {TOLERANCE:.0%} off" if wrong else 0)


if __name__ == "__main__":
    main()
