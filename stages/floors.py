"""All metrics of real images and of their reconstructions, as floors: data/ -> data/floors.json, data/reals.png.

python -m stages floors          (as many processes as Accelerate is configured for)

They are measured as those of samples are: of the autoencoder's reconstructions of training images, and of real images
that are not in the reference. These are the held-out images; without any, the training images, if the reference is that
of a file, or else one half of them against the other.
"""

import dataclasses

import numpy as np
from PIL import Image

from gat.config import Params
from gat.data.images import Images
from gat.data.vae import load_vae, reconstruct
from gat.evaluation.features import SampleFn
from gat.evaluation.fid import evenly_spaced
from gat.evaluation.grid import image_grid
from gat.evaluation.measure import Features, Measure, References
from gat.files import atomic_write, write_json
from gat.runtime import make_accelerator
from stages import ENCODER, EXTRACTOR, FLOORS, IMAGES, REALS, REFERENCE, STATISTICS, VAE


def main(params: Params) -> None:
    """Run the stage."""
    accelerator, count = make_accelerator(params.compute), params.evaluate.samples
    images, held, vae = Images(IMAGES), Images(IMAGES, held=True), load_vae(VAE, accelerator.device)
    measure = Measure(EXTRACTOR, ENCODER, accelerator.device)
    references = References.load(REFERENCE, STATISTICS)
    chosen, others = evenly_spaced(len(images), count), evenly_spaced(len(held), count)

    def rebuilt(source: Images, index: np.ndarray) -> SampleFn:
        return lambda start, stop: reconstruct(vae, source[index[start:stop]], params.compute.vae_batch)

    def reals(source: Images, index: np.ndarray) -> SampleFn:
        return lambda start, stop: source[index[start:stop]]

    def features(samples: SampleFn, index: np.ndarray) -> Features:
        return measure.features(samples, len(index), params.compute.sample_batch)

    def metrics(own: Features, labels: np.ndarray, against: References) -> dict[str, float]:
        return {"samples": len(own.main)} | measure.metrics(own, labels, against, params.evaluate.seed)

    floors = {"reconstructions": (features(rebuilt(images, chosen), chosen), images.labels[chosen], references)}
    unheld = references._replace(main=dataclasses.replace(references.main, held=None))
    if len(others) > len(references.main.mu):  # else their covariance is singular
        floors["held-out reals"] = features(reals(held, others), others), held.labels[others], unheld
    elif params.metrics.reference is not None:
        floors["training images"] = (
            features(reals(images, chosen), chosen),
            images.labels[chosen],
            unheld._replace(encoder=None),
        )
    elif len(halves := evenly_spaced(len(images), 2 * count)) > 2 * len(references.main.mu):
        first, second = (
            (features(reals(images, half), half), images.labels[half]) for half in (halves[::2], halves[1::2])
        )
        floors["half of the reals"] = *first, References.of(*second)
    if accelerator.is_main_process:
        write_json(FLOORS, {name: metrics(*own) for name, own in floors.items()})
        with atomic_write(REALS) as path:
            Image.fromarray(image_grid(images.class_examples(), 10)).save(path)
