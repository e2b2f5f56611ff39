"""Statistics of the real images' features: data/images, data/extractor -> data/reference.npz.

python -m stages.reference          (as many processes as Accelerate is configured for)

With `metrics.reference` its mean and covariance are taken as they are; KID, precision and recall then use the images
that it holds, ADM's `arr_0`.
"""

from gat.config import Params
from stages import EXTRACTOR, IMAGES, REFERENCE, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    from gat.extractor import Extractor
    from gat.images import Images
    from gat.metrics import Reference, read_reference
    from gat.sampling import sample_features

    accelerator = make_accelerator()
    extractor, given = Extractor(EXTRACTOR, accelerator.device), params.metrics.reference
    known, images = (None, Images(IMAGES)) if given is None else read_reference(given)
    features = None
    if images is not None:
        features = sample_features(
            lambda start, stop: images[start:stop], extractor, len(images), params.evaluate.batch_size
        )
    if accelerator.is_main_process:
        keep = params.metrics.reference_features
        if known is not None:
            known.with_features(features, keep).save(REFERENCE)
        elif features is not None:
            Reference.of(features, keep).save(REFERENCE)


if __name__ == "__main__":
    run_stage(main, distributed=True)
