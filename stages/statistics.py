"""Statistics of real images that only metrics of finished models need: data/ -> data/statistics.

python -m stages statistics          (as many processes as Accelerate is configured for)

`encoder.npz` in the encoder's features; with Inception also `spatial.npz` in those of sFID: of the images or, with
`metrics.reference`, as in that file (`mu_s` and `sigma_s` in ADM's), if it has them.
"""

import dataclasses

import numpy as np

from gat.config import Params
from gat.data.images import Images
from gat.evaluation.features import FeatureFn, compute_reference
from gat.evaluation.fid import Reference
from gat.evaluation.inception import split
from gat.evaluation.measure import Measure
from gat.files import atomic_write
from gat.runtime import make_accelerator
from stages import ENCODER, EXTRACTOR, IMAGES, STATISTICS


def main(params: Params) -> None:
    """Run the stage."""
    accelerator, images = make_accelerator(params.compute), Images(IMAGES)
    measure, given = Measure(EXTRACTOR, ENCODER, accelerator.device), params.metrics.reference

    def statistics(extract: FeatureFn) -> Reference:
        batch_size = params.compute.sample_batch
        computed = compute_reference(lambda start, stop: images[start:stop], extract, len(images), batch_size, keep=1)
        return dataclasses.replace(computed, features=None)

    found: dict[str, Reference] = {}
    if measure.encoder is not None and len(images) > measure.encoder.width:  # else their covariance is singular
        found["encoder"] = statistics(measure.encoder)
    if measure.extractor.name == "inception":
        if given is None:
            found["spatial"] = statistics(lambda batch: split(measure.extractor(batch))[1])
        else:
            with np.load(given, allow_pickle=False) as file:
                if {"mu_s", "sigma_s"} <= {*file.files}:
                    found["spatial"] = Reference(file["mu_s"], file["sigma_s"])
    if accelerator.is_main_process:
        with atomic_write(STATISTICS) as folder:
            folder.mkdir()
            for name, reference in found.items():
                reference.save(folder / f"{name}.npz")
