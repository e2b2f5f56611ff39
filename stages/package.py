"""A trained generator and the VAE as a diffusers pipeline: runs/…/generator, data/ -> runs/…/pipeline.

python -m stages package RUN SEED          (`model` needs no seed)
"""

from pathlib import Path

from diffusers import AutoencoderKL
from diffusers.utils import logging

from gat.config import Params, Training
from gat.data.images import Images
from gat.files import atomic_write
from gat.gan.networks import Generator
from gat.release.pipeline import GATPipeline
from stages import IMAGES, RUNS, VAE, parse_training


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training = parse_training(params)
    package(params, training, RUNS / training.folder / "pipeline")


def package(params: Params, training: Training, target: Path) -> None:
    """Write a training's pipeline folder with its own code; a pretrained run keeps its VAE and class names."""
    pretrained = params.run(training.run).pretrained
    if pretrained is None:
        generator = Generator.from_pretrained(RUNS / training.folder / "generator")
        pipeline = GATPipeline(generator, AutoencoderKL.from_pretrained(VAE), Images(IMAGES).classes)
    else:
        pipeline = GATPipeline.from_pretrained(pretrained)
    with atomic_write(target) as folder:
        pipeline.save_pretrained(folder)
