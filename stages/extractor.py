"""What turns images into features for FID: data/images -> data/extractor.

python -m stages.extractor
"""

from gat.config import Params
from stages import EXTRACTOR, IMAGES, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    metrics = params.metrics
    from gat.extractor import save_extractor, train_classifier
    from gat.images import Images

    make_accelerator(params.compute)
    if metrics.extractor == "classifier" and metrics.classifier is not None:
        settings = metrics.classifier.model_dump()
        trained = train_classifier(Images(IMAGES), **settings)
        print(f"held-out accuracy {trained.accuracy:.4f}")
        save_extractor(EXTRACTOR, metrics.extractor, metrics.mode, trained)
    else:
        save_extractor(EXTRACTOR, metrics.extractor, metrics.mode)


if __name__ == "__main__":
    run_stage(main)
