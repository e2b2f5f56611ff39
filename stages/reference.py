"""Reference statistics of the features of real images: data/images, data/extractor -> data/reference.npz.

python -m stages reference          (as many processes as Accelerate is configured for)

With `metrics.reference`, mean and covariance are read from that file, and KID, precision and recall use the images in
it (`arr_0` in ADM's files).
"""

import dataclasses

import numpy as np

from gat.config import Params, ParamsError
from gat.data.images import Images
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import compute_features, compute_reference
from gat.evaluation.fid import read_reference
from gat.evaluation.metrics import NEIGHBOURS
from gat.files import atomic_write
from gat.runtime import make_accelerator
from stages import EXTRACTOR, IMAGES, REFERENCE


def main(params: Params) -> None:
    """Run the stage."""
    accelerator = make_accelerator(params.compute)
    extractor, given = Extractor(EXTRACTOR, accelerator.device), params.metrics.reference
    images: Images | np.ndarray | None
    if given is None:
        known, images = None, Images(IMAGES)
    else:
        known, images = read_reference(given, extractor.name, extractor.width)
    computed = None
    if images is not None and len(images) <= NEIGHBOURS:
        key = "data.source" if given is None else "metrics.reference"
        raise ParamsError(
            f"{key}: {len(images)} images are too few; precision and recall need {NEIGHBOURS + 1} or more"
        )
    if images is not None:
        keep, batch_size = params.metrics.reference_features, params.compute.sample_batch
        labels = images.labels if isinstance(images, Images) else None
        computed = compute_reference(
            lambda start, stop: images[start:stop], extractor, len(images), batch_size, keep, labels
        )
    if known is not None:
        computed = dataclasses.replace(computed, mu=known.mu, sigma=known.sigma) if computed else known
    if len(held := Images(IMAGES, held=True)) and computed is not None:
        batch_size = params.compute.sample_batch
        features = compute_features(lambda start, stop: held[start:stop], extractor, len(held), batch_size)
        computed = dataclasses.replace(computed, held=features)
    if accelerator.is_main_process and computed is not None:
        if params.metrics.labels == "reals":
            reals = Images(IMAGES)
            counts = np.bincount(reals.labels, minlength=len(reals.classes))
            computed = dataclasses.replace(computed, class_counts=counts)
        with atomic_write(REFERENCE) as path:
            computed.save(path)
