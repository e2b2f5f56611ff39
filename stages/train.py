"""One training: data/ -> runs/…/pipeline, runs/…/discriminator, results/…/live, results/…/run.json.

python -m stages train RUN SEED          (as many processes as Accelerate is configured for; `model` needs no seed)

An interrupted training resumes from its latest checkpoint; `GAT_CHECKPOINTS` is the folder where those are kept.
"""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from accelerate import Accelerator
from diffusers import AutoencoderKL
from dvclive.live import Live

from gat.config import Params, Training
from gat.data.images import Images
from gat.data.latents import Latents, TrainingBatches
from gat.data.vae import load_vae
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import compute_features
from gat.evaluation.fid import Reference, fid
from gat.evaluation.sampling import Sampler
from gat.files import atomic_write
from gat.gan.networks import Generator
from gat.gan.repa import Teacher
from gat.gan.training import Metrics, final_gap, fit
from gat.pipeline import GATPipeline
from gat.runtime import exclusive, make_accelerator
from gat.study import describe, describe_pretrained, fingerprint, make_trainer
from stages import (
    CHECKPOINTS,
    EXTRACTOR,
    IMAGES,
    LATENTS,
    REFERENCE,
    RUNS,
    VAE,
    code_of,
    parse_training,
    results_of,
    write_json,
)


def main(params: Params) -> None:
    """Run the stage."""
    training = parse_training(params)
    accelerator = make_accelerator(params.compute)
    pretrained = params.settings(training.run).run.pretrained
    if pretrained is None:
        train(params, training, accelerator)
    elif accelerator.is_main_process:
        use_pretrained(pretrained, training, results_of(params, training))


def train(params: Params, training: Training, accelerator: Accelerator) -> None:
    """Train a run with a seed, and save its pipeline, curves and description."""
    latents, settings = Latents(LATENTS), params.settings(training.run)
    teacher = None
    if settings.repa.teacher is not None:
        teacher = Teacher(settings.repa.teacher, accelerator.device, params.compute.compile is not None)
    description = describe(params, training, latents, teacher)
    trainer = make_trainer(params, training, latents, accelerator, teacher)
    batches = TrainingBatches(
        latents,
        settings.train.batch_size,
        training.seed,
        accelerator.process_index,
        accelerator.num_processes,
        images=None if teacher is None else Images(IMAGES),
    )
    evaluate = make_evaluate(params, training, accelerator)
    checkpoints = CHECKPOINTS / fingerprint(params, training, latents, [REFERENCE, *code_of("train")])
    results, live = results_of(params, training), None
    with exclusive(checkpoints) as awaited:
        stop = stop_signals()
        if accelerator.is_main_process:  # only there, since it clears the folder first
            live = Live(str(results / "live"), dvcyaml=None, report=None, save_dvc_exp=False)
        try:
            history = fit(trainer, batches, checkpoints, evaluate, None if live is None else log_to(live), stop)
        except FloatingPointError as error:
            kept = max(checkpoints.glob("step-*"), default="none")
            raise FloatingPointError(
                f"{error}; latest checkpoint: {kept}. A lower train.learning_rate may help, or a larger loss.gamma"
            ) from None
        if live is None:
            return
        with atomic_write(RUNS / training.folder / "pipeline") as folder:
            full_precision_vae = AutoencoderKL.from_pretrained(VAE)
            GATPipeline(trainer.ema, full_precision_vae, latents.classes).save_pretrained(folder)
        with atomic_write(RUNS / training.folder / "discriminator") as folder:
            trainer.discriminator.save_pretrained(folder)
        gap = final_gap(history, settings.train.steps)
        write_json(results / "run.json", description | {"gap": gap})
        live.end()
        if stop():  # since the last step; what follows in the graph is not to begin
            raise KeyboardInterrupt
        if not awaited():
            shutil.rmtree(checkpoints)


def make_evaluate(params: Params, training: Training, accelerator: Accelerator) -> Callable[[Generator], float]:
    """FID of a generator in training, as the curves have it."""
    vae, extractor = load_vae(VAE, accelerator.device), Extractor(EXTRACTOR, accelerator.device)
    reference, samples = Reference.load(REFERENCE), params.settings(training.run).train.eval_samples

    def evaluate(generator: Generator) -> float:
        sampler = Sampler(
            generator,
            vae,
            training.seed,
            vae_batch=params.compute.vae_batch,
            class_counts=reference.class_counts,
        )
        return fid(compute_features(sampler, extractor, samples, params.evaluate.batch_size), reference)

    return evaluate


def log_to(live: Live) -> Callable[[Metrics], None]:
    """Curves of a training's metrics, a file each."""

    def log(metrics: Metrics) -> None:
        live.step = int(metrics["step"])
        for name, value in metrics.items():
            if name != "step":
                live.log_metric(name, value)

    return log


def stop_signals() -> Callable[[], bool]:
    """From now on SIGTERM and Ctrl-C are only noted, once, so that training saves before it ends: was there one?"""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)  # a second one ends it at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return lambda: bool(received)


def use_pretrained(pretrained: str, training: Training, results: Path) -> None:
    """Take a pipeline folder for the result of a training; a discriminator it has none."""
    pipeline = GATPipeline.from_pretrained(pretrained)
    with atomic_write(RUNS / training.folder / "pipeline") as folder:
        pipeline.save_pretrained(folder)
    for path in (RUNS / training.folder / "discriminator", results / "live"):
        path.mkdir(parents=True, exist_ok=True)
    write_json(results / "run.json", describe_pretrained(training, pipeline.generator))
