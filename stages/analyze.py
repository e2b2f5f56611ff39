"""Analyses of a trained run: runs/… -> analyses/RUN/seed-N.json. In ablations/dvc.yaml.

python -m stages analyze RUN SEED

Layer use of the generator; how well the discriminator's tokens tell classes, and their alignment with the teacher or,
without one, with the extractor; and, for runs that override nothing, how far an optimizer step moves each layer with
the width rule and with one learning rate for all widths, which is that of the model under test.
"""

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging

from gat.config import Params
from gat.data.images import Images
from gat.data.latents import Latents
from gat.data.vae import encode, load_vae
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import evenly_spaced
from gat.files import write_json
from gat.gan.augment import sample_augment_params
from gat.gan.networks import Z_DIM, Discriminator, Generator
from gat.gan.repa import Teacher
from gat.runtime import make_accelerator
from gat.seeds import Purpose, generator_of
from gat.study.network_analysis import NO_AUGMENT, Probed, coordinate_check, discriminator_knowledge, layer_use
from stages import ANALYSES, EXTRACTOR, IMAGES, LATENTS, RUNS, VAE, parse_training


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training = parse_training(params)
    recipe, accelerator, settings = params.recipe(training.run), make_accelerator(params.compute), params.analyze
    device, networks = accelerator.device, RUNS / training.folder
    latents, images, vae = Latents(LATENTS), Images(IMAGES), load_vae(VAE, device)
    extractor = Extractor(EXTRACTOR, device)
    teacher = None if recipe.repa.teacher is None else Teacher(recipe.repa.teacher, device)
    generator = Generator.from_pretrained(networks / "generator").to(device)
    rng = generator_of(0, Purpose.ANALYSIS, device=device)  # the same samples for all trainings
    z = torch.randn(settings.samples, Z_DIM, generator=rng, device=device)
    labels = torch.arange(settings.samples, device=device) % len(latents.classes)
    result = training._asdict() | {
        "width": recipe.run.width,
        "patch": recipe.run.patch,
        "layers": layer_use(generator, vae, z, labels, extractor),
    }
    if recipe.run.pretrained is None and len(latents.classes) > 1:
        discriminator = Discriminator.from_pretrained(networks / "discriminator").to(device)
        (known, _), (tested, pixels), held_out = probed_images(images, vae, settings.reals)
        batches = [pixels[start : start + 64] for start in range(0, len(pixels), 64)]
        features = np.concatenate(
            [teacher_features(teacher, batch, latents.size) if teacher else extractor(batch) for batch in batches]
        )
        result["discriminator"] = discriminator_knowledge(
            discriminator, known, tested, features, recipe.loss, training.seed
        ) | {
            "classes": len(latents.classes),
            "held_out": held_out,
            "reference": recipe.repa.teacher or extractor.name,
        }
    if not recipe.run.changes_recipe:
        result["steps"] = coordinate_check(
            recipe, training.seed, params.model.width, settings, latents, images, accelerator, teacher, params.compute
        )
    write_json(ANALYSES / f"{training.folder}.json", result)


def probed_images(
    images: Images, vae: AutoencoderKL, count: int
) -> tuple[tuple[Probed, np.ndarray], tuple[Probed, np.ndarray], bool]:
    """Real images, `count` at most, and as many others; and whether the latter are held out."""
    held = Images(IMAGES, held=True)
    rows = evenly_spaced(len(images), count if len(held) else 2 * count)
    parts = (
        [(images, rows), (held, evenly_spaced(len(held), count))]
        if len(held)
        else [(images, rows[::2]), (images, rows[1::2])]
    )
    probed = []
    for source, index in parts:
        pixels = source[index]
        batches = (pixels[start : start + 64] for start in range(0, len(pixels), 64))
        means = torch.cat([encode(vae, batch)[0] for batch in batches]) * vae.config["scaling_factor"]
        probed.append((Probed(means, source.labels[index]), pixels))
    return probed[0], probed[1], len(held) > 0


def teacher_features(teacher: Teacher, pixels: np.ndarray, latent_size: int) -> np.ndarray:
    """The teacher's [cls] of images uint8 (N, H, W, 3)."""
    rng = generator_of(0, Purpose.ANALYSIS, device=teacher.device)
    still = sample_augment_params(len(pixels), latent_size, NO_AUGMENT, rng)
    return teacher(torch.from_numpy(pixels), still, latent_size).cls.float().cpu().numpy()
