"""Statistics of the real images' features: data/images, data/extractor -> data/reference.npz.

python -m stages.reference          (as many processes as Accelerate is configured for)

With `metrics.reference` its mean and covariance are taken as they are; KID, precision and recall then use the images
that it holds, ADM's `arr_0`.
"""

import dataclasses

from gat.config import Params, ParamsError
from stages import EXTRACTOR, IMAGES, REFERENCE, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    import numpy as np

    from gat.extractor import Extractor
    from gat.images import Images
    from gat.metrics import read_reference
    from gat.sampling import reference_of

    accelerator = make_accelerator(params.compute)
    extractor, given = Extractor(EXTRACTOR, accelerator.device), params.metrics.reference
    known, images = (None, Images(IMAGES)) if given is None else read_reference(given)
    if known is not None:
        width = extractor(np.zeros((1, 32, 32, 3), np.uint8)).shape[1]
        if len(known.mu) != width:
            raise ParamsError(
                f"metrics.reference: {given} is about {len(known.mu)} features, metrics.extractor {extractor.name} "
                f"has {width}; ADM's go with inception"
            )
    made = None
    if images is not None:
        keep, batch_size = params.metrics.reference_features, params.evaluate.batch_size
        labels = images.labels if isinstance(images, Images) else None
        made = reference_of(lambda start, stop: images[start:stop], extractor, len(images), batch_size, keep, labels)
    if accelerator.is_main_process:
        if known is not None:
            made = dataclasses.replace(made, mu=known.mu, sigma=known.sigma) if made else known
        if made is not None:
            made.save(REFERENCE)


if __name__ == "__main__":
    run_stage(main, distributed=True)
