"""Statistics of the real images' features: data/images, data/extractor -> data/reference.npz.

python -m stages.reference
"""

import shutil

from gat.config import Params
from stages import EXTRACTOR, IMAGES, REFERENCE, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    if params.metrics.reference is not None:
        shutil.copyfile(params.metrics.reference, REFERENCE)
        return
    from gat.extractor import Extractor
    from gat.images import Images
    from gat.metrics import Reference
    from gat.sampling import sample_features

    accelerator = make_accelerator()
    images, extractor = Images(IMAGES), Extractor(EXTRACTOR, accelerator.device)
    features = sample_features(
        lambda start, stop: images[start:stop], extractor, len(images), params.evaluate.batch_size
    )
    if accelerator.is_main_process:
        Reference.of(features, keep=params.metrics.reference_features).save(REFERENCE)


if __name__ == "__main__":
    run_stage(main, distributed=True)
