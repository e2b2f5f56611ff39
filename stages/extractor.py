"""Feature extractor for FID: data/images -> data/extractor.

python -m stages extractor
"""

from gat.config import Params
from gat.data.images import Images
from gat.evaluation.extractor import save_extractor, train_classifier
from gat.files import atomic_write
from gat.runtime import make_accelerator
from stages import EXTRACTOR, IMAGES


def main(params: Params) -> None:
    """Run the stage."""
    metrics, trained = params.metrics, None
    make_accelerator(params.compute)
    if metrics.extractor == "classifier" and metrics.classifier is not None:
        trained = train_classifier(Images(IMAGES), **metrics.classifier.model_dump())
        print(f"held-out accuracy {trained.accuracy:.4f}")
    with atomic_write(EXTRACTOR) as folder:
        save_extractor(folder, metrics.extractor, metrics.mode, trained)
