"""A self-supervised encoder, pretrained or trained on the images: data/images -> data/encoder.

python -m stages encoder

Without one, the folder has only encoder.json.
"""

import numpy as np

from gat.config import Params
from gat.data.images import Images
from gat.data.vision import fetch_vision_model
from gat.evaluation.encoder import Encoder, train_encoder
from gat.evaluation.fid import evenly_spaced
from gat.evaluation.metrics import neighbour_accuracy
from gat.files import atomic_write, write_json
from gat.runtime import make_accelerator
from stages import ENCODER, IMAGES

COUNT = 5000  # of images at most, for the accuracy


def main(params: Params) -> None:
    """Run the stage."""
    settings, device, images = params.encoder, make_accelerator(params.compute).device, Images(IMAGES)
    info: dict[str, float | str | None] = {"name": settings.pretrained, "accuracy": None}
    with atomic_write(ENCODER) as folder:
        folder.mkdir()
        if settings.pretrained is not None:
            fetch_vision_model(settings.pretrained, folder, "encoder.pretrained")
        elif settings.recipe is not None:
            train_encoder(images, folder, device=device, **settings.recipe.model_dump())
            info["name"] = "SimCLR"
        if info["name"] is not None and len(images.classes) > 1:
            info["accuracy"] = accuracy(Encoder(folder, device), images, params.compute.sample_batch)
            print(f"accuracy of the ten nearest neighbours {info['accuracy']:.4f}")
        write_json(folder / "encoder.json", info)


def accuracy(encoder: Encoder, images: Images, batch_size: int) -> float:
    """Of classifying held-out images by their nearest training images or, without any, each tenth one by the others."""
    held = Images(IMAGES, held=True)
    rows = evenly_spaced(len(images), COUNT)
    known = rows if len(held) else np.delete(rows, slice(0, None, 10))
    tested = evenly_spaced(len(held), COUNT) if len(held) else rows[::10]
    parts = []
    for source, index in ((held if len(held) else images, tested), (images, known)):
        batches = (source[index[start : start + batch_size]] for start in range(0, len(index), batch_size))
        parts += [np.concatenate([encoder(batch) for batch in batches]), source.labels[index]]
    return neighbour_accuracy(*parts)
