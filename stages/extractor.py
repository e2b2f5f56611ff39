"""Feature extractor for FID: data/images -> data/extractor.

python -m stages extractor
"""

from pathlib import Path

import numpy as np

from gat.config import Params, ParamsError
from gat.data.images import Images
from gat.data.kinds import loading
from gat.evaluation.extractor import Extractor, save_extractor, train_classifier
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
        with loading(metrics.extractor, "metrics.extractor"):  # Inception is downloaded
            mode = metrics.mode if trained is None else "clean"  # as the classifier resizes, in any mode
            save_extractor(folder, metrics.extractor, mode, trained)
        check(folder)


def check(folder: Path) -> None:
    """Read an extractor and use it, as a download may have been cut short, or have brought something else.

    Raises:
        ParamsError: it cannot be used; the next run downloads it again.
    """
    try:
        Extractor(folder)(np.zeros((1, 32, 32, 3), np.uint8))
    except Exception as error:  # of PyTorch's reader, or of another model's code
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ParamsError(
            f"metrics.extractor: its weights cannot be read ({reason}); run again to download them"
        ) from None
