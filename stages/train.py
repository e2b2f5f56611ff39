"""Trains a run with a seed: data/ -> runs/…/generator, runs/…/discriminator, results/…/curves, results/…/run.json.

python -m stages train RUN SEED          (as many processes as Accelerate is configured for; `model` needs no seed)

Trainings of `rates` leave only curves and run.json. In claims/dvc.yaml it is no error if a training diverges: run.json
says so, and the networks' folders are empty.
After an interruption it resumes from its latest checkpoint, in the folder `GAT_CHECKPOINTS` (default: checkpoints).
"""

import shutil
import signal
from collections.abc import Callable
from types import FrameType

from accelerate import Accelerator
from diffusers.utils import logging

from gat.config import Params, Recipe, Training
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
from gat.gan.training import final_gap, fit
from gat.runtime import exclusive, make_accelerator
from gat.study.networks import describe, make_trainer, training_key
from gat.study.results import Results
from stages import (
    CHECKPOINTS,
    EXTRACTOR,
    IMAGES,
    LATENTS,
    RATES,
    REFERENCE,
    RUNS,
    VAE,
    is_arm,
    parse_training,
    results_of,
    teacher_folder,
)
from stages.code import code_of


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training = parse_training(params)
    accelerator, recipe = make_accelerator(params.compute), params.recipe(training.run)
    results = results_of(params, training)
    if recipe.run.pretrained is None:
        train(params, recipe, training, results, accelerator)
    elif accelerator.is_main_process:
        use_pretrained(recipe, training, results)


def train(params: Params, recipe: Recipe, training: Training, results: Results, accelerator: Accelerator) -> None:
    """Train a run with a seed, and save its networks, curves and settings."""
    of_rates, diverged = params.key(training.run) == RATES, False
    latents, batch_size = Latents(LATENTS), recipe.train.batch_size
    params.check_latent_size(latents.size)
    teacher, teachers = None, teacher_folder(params, training.run)
    if recipe.repa.teacher is not None:
        teacher = Teacher(teachers, accelerator.device, params.compute.compile)
    trainer = make_trainer(recipe, training.seed, latents, accelerator, teacher, params.compute)
    rank, processes = accelerator.process_index, accelerator.num_processes
    images = None if teacher is None else Images(IMAGES)
    batches = TrainingBatches(latents, batch_size, training.seed, rank, processes, images)
    evaluate = make_evaluate(params, recipe, training.seed, accelerator)
    others = REFERENCE.read_bytes(), code_of("train").encode(), (teachers / "teacher.json").read_bytes()
    precision = accelerator.mixed_precision.encode()
    checkpoints = CHECKPOINTS / training_key(recipe, training.seed, latents, precision, *others)
    with exclusive(checkpoints) as awaited:
        stop = stop_signals()
        log, end_log = results.curve_logger() if accelerator.is_main_process else (None, None)
        try:
            history = fit(trainer, batches, checkpoints, evaluate, log, stop)
        except FloatingPointError as error:
            if is_arm(params, training.run):
                history, diverged = [], True
            else:
                kept = max(checkpoints.glob("step-*"), default="none")
                raise FloatingPointError(
                    f"{error}; latest checkpoint: {kept}. Try a lower train.learning_rate or a larger loss.gamma"
                ) from None
        if end_log is None:
            return
        networks = {} if of_rates else {"generator": trainer.ema, "discriminator": trainer.discriminator}
        for name, network in networks.items():
            with atomic_write(RUNS / training.folder / name) as folder:
                folder.mkdir()
                if not diverged:
                    network.save_pretrained(folder)
        gap = None if diverged else final_gap(history, recipe.train.steps)
        more = {"diverged": diverged} if of_rates or diverged else {}
        results.write_run(training._asdict() | describe(recipe, trainer) | {"gap": gap} | more)
        end_log()
        if stop():  # a signal after the last step; the next stages must not start
            raise KeyboardInterrupt
        if not awaited():
            shutil.rmtree(checkpoints, ignore_errors=diverged)  # which has none if it diverged early


def make_evaluate(params: Params, recipe: Recipe, seed: int, accelerator: Accelerator) -> Callable[[Generator], float]:
    """A function that computes the FID of a generator during training."""
    vae, extractor = load_vae(VAE, accelerator.device), Extractor(EXTRACTOR, accelerator.device)
    reference, compute = Reference.load(REFERENCE), params.compute

    def evaluate(generator: Generator) -> float:
        sampler = Sampler(generator, vae, seed, vae_batch=compute.vae_batch, class_counts=reference.class_counts)
        return fid(compute_features(sampler, extractor, recipe.train.eval_samples, compute.sample_batch), reference)

    return evaluate


def stop_signals() -> Callable[[], bool]:
    """Catch SIGTERM, Ctrl-C and hang-ups, so that training can save first; returns whether there was one."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)  # a second one ends training immediately

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, note)
    return lambda: bool(received)


def use_pretrained(recipe: Recipe, training: Training, results: Results) -> None:
    """Use the generator of a pipeline folder as the result; there is no discriminator and there are no curves."""
    generator = Generator.from_pretrained(recipe.run.pretrained, subfolder="generator")
    with atomic_write(RUNS / training.folder / "generator") as folder:
        generator.save_pretrained(folder)
    for path in (RUNS / training.folder / "discriminator", results.curves_folder):
        path.mkdir(parents=True, exist_ok=True)
    size = {key: generator.config[key] for key in ("width", "depth", "patch")}
    results.write_run(training._asdict() | size | {"steps": None, "gap": None})
