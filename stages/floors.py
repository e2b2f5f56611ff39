"""All metrics of real images and of their reconstructions, as floors: data/ -> data/floors.json, data/reals.png.

python -m stages floors          (as many processes as Accelerate is configured for)

They are measured as those of samples are: of the autoencoder's reconstructions of training images, and of real images
that are not in the reference, which are the held-out ones or, without any, one half of the reference against the other.
"""

import dataclasses

import numpy as np
from PIL import Image

from gat.config import Params
from gat.data.images import Images
from gat.data.vae import load_vae, reconstruct
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import compute_features
from gat.evaluation.fid import Reference, evenly_spaced
from gat.evaluation.grid import image_grid
from gat.evaluation.metrics import compute_metrics
from gat.files import atomic_write, write_json
from gat.runtime import make_accelerator
from stages import EXTRACTOR, FLOORS, IMAGES, REALS, REFERENCE, VAE


def main(params: Params) -> None:
    """Run the stage."""
    accelerator = make_accelerator(params.compute)
    images, held, vae = Images(IMAGES), Images(IMAGES, held=True), load_vae(VAE, accelerator.device)
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    index = evenly_spaced(len(images), params.evaluate.samples)

    def reconstructions(start: int, stop: int) -> np.ndarray:
        return reconstruct(vae, images[index[start:stop]], params.compute.vae_batch)

    def measure(features: np.ndarray, labels: np.ndarray, against: Reference) -> dict[str, float]:
        predicted = extractor.classify(features)
        metrics = compute_metrics(features, labels, against, predicted, accelerator.device, params.evaluate.seed)
        return {"samples": len(features)} | metrics

    features = compute_features(reconstructions, extractor, len(index), params.compute.sample_batch)
    if accelerator.is_main_process:
        floors = {"reconstructions": measure(features, images.labels[index], reference)}
        others = evenly_spaced(len(held), params.evaluate.samples)
        if reference.held is not None and len(others) > extractor.width:  # else their covariance is singular
            against = dataclasses.replace(reference, held=None)
            floors["held-out reals"] = measure(reference.held[others], held.labels[others], against)
        elif reference.features is not None and reference.labels is not None:
            halves = slice(0, None, 2), slice(1, None, 2)
            first, second = ((reference.features[half], reference.labels[half]) for half in halves)
            against = dataclasses.replace(Reference.from_features(second[0]), labels=second[1])
            floors["half of the reals"] = measure(*first, against)
        write_json(FLOORS, floors)
        with atomic_write(REALS) as path:
            Image.fromarray(image_grid(images.class_examples(), 10)).save(path)
