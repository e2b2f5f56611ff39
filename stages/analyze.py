"""Analyses of a trained run: runs/… -> analyses/RUN/seed-N.json. In ablations/dvc.yaml.

python -m stages analyze RUN SEED

Layer use of the generator; the discriminator as a classifier, and its alignment with the teacher or, without one, with
the extractor; and, for runs that override nothing, the change of outputs per optimizer step, in short trainings with
the width rule and with one learning rate for all widths, which is that of the model under test.
"""

import torch
from diffusers.utils import logging

from gat.config import Params
from gat.data.images import Images
from gat.data.latents import Latents
from gat.data.vae import load_vae
from gat.evaluation.extractor import Extractor
from gat.files import write_json
from gat.gan.networks import Z_DIM, Discriminator, Generator
from gat.gan.repa import Teacher
from gat.runtime import make_accelerator
from gat.seeds import Purpose, generator_of
from gat.study.network_analysis import discriminator_knowledge, layer_use, step_sizes_by_rule
from stages import ANALYSES, EXTRACTOR, IMAGES, LATENTS, RUNS, VAE, parse_training


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training = parse_training(params)
    recipe, accelerator, settings = params.recipe(training.run), make_accelerator(params.compute), params.analyze
    device, networks = accelerator.device, RUNS / training.folder
    latents, images, extractor = Latents(LATENTS), Images(IMAGES), Extractor(EXTRACTOR, device)
    teacher = None if recipe.repa.teacher is None else Teacher(recipe.repa.teacher, device)
    generator = Generator.from_pretrained(networks / "generator").to(device)
    rng = generator_of(0, Purpose.ANALYSIS, device=device)  # the same samples for all trainings
    z = torch.randn(settings.samples, Z_DIM, generator=rng, device=device)
    labels = torch.arange(settings.samples, device=device) % len(latents.classes)
    result = training._asdict() | {
        "width": recipe.run.width,
        "patch": recipe.run.patch,
        "layers": layer_use(generator, load_vae(VAE, device), z, labels, extractor),
    }
    if recipe.run.pretrained is None:
        discriminator = Discriminator.from_pretrained(networks / "discriminator").to(device)
        with torch.no_grad():
            fake = generator(z, labels, return_levels=True)
        known = discriminator_knowledge(
            discriminator, fake, labels, recipe.loss, latents, images, teacher or extractor, rng
        )
        result["discriminator"] = known | {"reference": recipe.repa.teacher or extractor.name}
    if not recipe.run.changes_recipe:
        result["steps"] = step_sizes_by_rule(
            recipe, training.seed, params.model.width, settings, latents, images, accelerator, teacher, params.compute
        )
    write_json(ANALYSES / f"{training.folder}.json", result)
