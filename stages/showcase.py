"""Images and a video of what a trained model makes: runs/…/pipeline -> showcase/RUN.

python -m stages showcase RUN SEED          (`model` needs no seed)

truncation_psi-N.webp, guidance_scale-N.webp   of the N-th shown class; rows: values, columns: seeds
levels.webp        rows: samples, columns: level images
neighbours.webp    rows: an image, then its nearest training images; samples first, then reals
walk.mp4           an interpolation through the styles of samples
generator.onnx     the live generator of the report's page, of a small model
showcase.json      labels, seeds and values of all of them, see `gat.release.showcase.write_showcase`
"""

from diffusers.utils import logging

from gat.config import Params
from gat.data.images import Images
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import Reference, evenly_spaced
from gat.files import atomic_write, write_json
from gat.release.pipeline import GATPipeline
from gat.release.showcase import TrainingFeatures, write_showcase
from gat.runtime import make_accelerator
from stages import EXTRACTOR, IMAGES, REFERENCE, RUNS, SHOWCASE, parse_training


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training, device = parse_training(params), make_accelerator(params.compute).device
    pipeline = GATPipeline.from_pretrained(RUNS / training.folder / "pipeline").to(device)
    features, known = Reference.load(REFERENCE).features, None
    if features is not None and params.metrics.reference is None:  # else they are not of these images
        images = Images(IMAGES)
        rows = evenly_spaced(len(images), params.metrics.reference_features)
        known = TrainingFeatures(images, rows, features, Extractor(EXTRACTOR, device))
    with atomic_write(SHOWCASE / training.run) as folder:
        folder.mkdir()
        shown = write_showcase(folder, pipeline, params.showcase, known)
        write_json(folder / "showcase.json", training._asdict() | shown)
