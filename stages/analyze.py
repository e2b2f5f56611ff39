"""Analyses of a trained run: runs/… -> analyses/RUN/seed-N.json. In claims/dvc.yaml.

python -m stages analyze RUN SEED

Layer use of the generator; how well the discriminator's tokens tell classes, and their alignment with the encoder or,
without one, with the extractor; and, for runs that override nothing, how far an optimizer step moves each layer with
the width rule and with one learning rate for all widths, which is that of the model under test. Of a training that
diverged, it writes only that.
"""

import json
from pathlib import Path

import torch
from diffusers.utils import logging

from gat.config import Params
from gat.data.images import Images
from gat.data.latents import Latents
from gat.data.vae import load_vae
from gat.evaluation.encoder import Encoder
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import evenly_spaced
from gat.files import write_json
from gat.gan.networks import Z_DIM, Discriminator, Generator
from gat.gan.repa import Teacher
from gat.runtime import make_accelerator
from gat.seeds import Purpose, generator_of
from gat.study.network_analysis import coordinate_check, discriminator_knowledge, layer_use, other_features, probed
from stages import ANALYSES, ENCODER, EXTRACTOR, IMAGES, LATENTS, RUNS, VAE, parse_training, teacher_folder


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training = parse_training(params)
    recipe, settings, path = params.recipe(training.run), params.analyze, ANALYSES / f"{training.folder}.json"
    if not any((RUNS / training.folder / "generator").iterdir()):
        write_json(path, training._asdict() | {"diverged": True})
        return
    accelerator = make_accelerator(params.compute, precision="fp32")
    device, networks = accelerator.device, RUNS / training.folder
    latents, images, pretrained = Latents(LATENTS), Images(IMAGES), recipe.run.pretrained
    vae = load_vae(VAE if pretrained is None else Path(pretrained) / "vae", device)
    extractor = Extractor(EXTRACTOR, device)
    teacher = None if recipe.repa.teacher is None else Teacher(teacher_folder(params, training.run), device)
    encoder = json.loads((ENCODER / "encoder.json").read_text())["name"]
    other = extractor if encoder is None else Encoder(ENCODER, device)
    generator = Generator.from_pretrained(networks / "generator").to(device)
    rng = generator_of(0, Purpose.ANALYSIS, device=device)  # the same samples for all trainings
    z = torch.randn(settings.samples, Z_DIM, generator=rng, device=device)
    labels = torch.arange(settings.samples, device=device) % generator.config["classes"]
    result = training._asdict() | {
        "width": recipe.run.width,
        "patch": recipe.run.patch,
        "layers": layer_use(generator, vae, z, labels, extractor),
    }
    if pretrained is None and len(latents.classes) > 1:
        discriminator = Discriminator.from_pretrained(networks / "discriminator").to(device)
        held, count = Images(IMAGES, held=True), settings.reals
        if len(held):
            tested, rows, others = held, evenly_spaced(len(held), count), evenly_spaced(len(images), count)
        else:
            rows = evenly_spaced(len(images), 2 * count)
            tested, rows, others = images, rows[1::2], rows[::2]
        features = other_features(tested, rows, other)
        result["discriminator"] = discriminator_knowledge(
            discriminator,
            probed(images, others, vae),
            probed(tested, rows, vae),
            features,
            recipe.loss,
            training.seed,
        ) | {
            "classes": len(latents.classes),
            "held_out": len(held) > 0,
            "reference": encoder or extractor.name,
        }
    if recipe.train.scale_lr_by_width and not recipe.run.changes_recipe:
        result["steps"] = coordinate_check(
            recipe, training.seed, params.model.width, settings, latents, images, accelerator, teacher, params.compute
        )
    write_json(path, result)
