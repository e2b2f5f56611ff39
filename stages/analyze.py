"""What happens inside of a trained run: runs/… -> analyses/RUN/seed-N.json. Of ablations/dvc.yaml.

python -m stages analyze RUN SEED

Layer use of the generator; the discriminator as a classifier, and its alignment with the teacher (without one, with the
extractor); and, for runs that override nothing, how far an optimizer step moves the outputs, in short trainings with
the width rule and with one learning rate for all widths, that of the model under test.
"""

from typing import Any

import torch
from diffusers.utils import logging

from gat.analysis import NO_AUGMENT, accuracy, cknna, discriminator_outputs, layer_use, relative_accuracy, step_sizes
from gat.config import MODEL, Params, Training
from gat.data.images import Images
from gat.data.latents import Latents, TrainingBatches
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import evenly_spaced
from gat.gan.augment import sample_augment_params
from gat.gan.networks import Discriminator
from gat.gan.optim import BASE_WIDTH
from gat.gan.repa import Teacher
from gat.pipeline import GATPipeline
from gat.runtime import make_accelerator
from gat.seeds import generator_of
from gat.study import make_trainer
from stages import ANALYSES, EXTRACTOR, IMAGES, LATENTS, RUNS, parse_training, write_json


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training = parse_training(params)
    settings = params.settings(training.run)
    accelerator = make_accelerator(params.compute)
    device, count = accelerator.device, params.analyze.samples
    folder, latents, images = RUNS / training.folder, Latents(LATENTS), Images(IMAGES)
    extractor = Extractor(EXTRACTOR, device)
    pipeline = GATPipeline.from_pretrained(folder / "pipeline").to(device)
    rng = generator_of(params.seeds[0], 6, device=device)
    labels = torch.arange(count, device=device) % len(latents.classes)
    z = torch.randn(count, 64, generator=rng, device=device)
    result: dict[str, Any] = {
        **training._asdict(),
        "width": settings.run.width,
        "patch": settings.run.patch,
        "baseline": params.baseline(training.run) if training.run in params.ablations else None,
        "guided": settings.loss.levels.schedule in ("exponential", "linear"),
        "layers": layer_use(pipeline.generator, pipeline.vae, z, labels, extractor),
    }
    if settings.run.pretrained is None:
        discriminator = Discriminator.from_pretrained(folder / "discriminator").to(device)
        kept = evenly_spaced(len(latents), count)
        moments = torch.from_numpy(latents.moments(kept, kept * 0)).to(device).float()
        own = torch.from_numpy(latents.labels[kept]).to(device)
        real = moments[:, : latents.channels] * latents.scaling_factor
        with torch.no_grad():
            fake = pipeline.generator(z, labels, return_levels=True)
        logits, cls = discriminator_outputs(discriminator, real[None], own, settings.loss, rng)
        of_fakes, _ = discriminator_outputs(discriminator, fake, labels, settings.loss, rng)
        pictures = images[kept]
        if settings.repa.teacher is None:
            reference = torch.from_numpy(extractor(pictures)).to(device)
        else:
            still = sample_augment_params(count, latents.size, NO_AUGMENT, rng)
            reference = Teacher(settings.repa.teacher, device)(torch.from_numpy(pictures), still, latents.size).cls
        result["discriminator"] = {
            "accuracy": accuracy(logits, own),
            "relative_accuracy": relative_accuracy(logits, own),
            "relative_accuracy_on_samples": relative_accuracy(of_fakes, labels),
            "chance": 1 / len(latents.classes),
            "cknna": cknna(cls, reference),
            "reference": settings.repa.teacher or extractor.name,
        }
    if not settings.run.overrides:
        result["steps"] = {
            rule: step_sizes_of(params, training, rule == "with", latents, images) for rule in ("with", "without")
        }
    write_json(ANALYSES / f"{training.folder}.json", result)


def step_sizes_of(
    params: Params, training: Training, by_width: bool, latents: Latents, images: Images
) -> dict[str, dict[str, float]]:
    """Those of a short training of a run, its learning rate by its own width or by that of the model under test."""
    train = params.settings(training.run).train
    if not by_width:
        rate = train.learning_rate * BASE_WIDTH / params.settings(MODEL).run.width
        train = train.model_copy(update={"scale_lr_by_width": False, "learning_rate": rate})
    changed = params.model_copy(update={"train": train})
    teacher_name = params.settings(training.run).repa.teacher
    accelerator = make_accelerator(params.compute)
    teacher = None if teacher_name is None else Teacher(teacher_name, accelerator.device)
    trainer = make_trainer(changed, training, latents, accelerator, teacher)
    batches = TrainingBatches(latents, train.batch_size, training.seed, images=images if teacher else None)
    return step_sizes(trainer, batches, params.analyze.steps, params.analyze.window)
