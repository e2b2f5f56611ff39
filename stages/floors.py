"""FID floors, which no generator is expected to beat: data/ -> data/floors.json, data/reals.png.

python -m stages floors          (as many processes as Accelerate is configured for)

They are the FID of the autoencoder's reconstructions, and the FID between two halves of the real images.
"""

import numpy as np
from PIL import Image

from gat.config import Params
from gat.data.images import Images
from gat.data.vae import load_vae, reconstruct
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import compute_features
from gat.evaluation.fid import Reference, evenly_spaced, fid, fid_of_halves
from gat.evaluation.grid import image_grid
from gat.files import atomic_write, write_json
from gat.runtime import make_accelerator
from stages import EXTRACTOR, FLOORS, IMAGES, REALS, REFERENCE, VAE


def main(params: Params) -> None:
    """Run the stage."""
    accelerator = make_accelerator(params.compute)
    images, vae = Images(IMAGES), load_vae(VAE, accelerator.device)
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    index = evenly_spaced(len(images), params.evaluate.samples)

    def reconstructions(start: int, stop: int) -> np.ndarray:
        return reconstruct(vae, images[index[start:stop]], params.compute.vae_batch)

    features = compute_features(reconstructions, extractor, len(index), params.compute.sample_batch)
    if accelerator.is_main_process:
        floors = {"reconstructions": fid(features, reference)}
        if reference.features is not None:
            floors["real halves"] = fid_of_halves(reference.features)
        write_json(FLOORS, floors)
        with atomic_write(REALS) as path:
            Image.fromarray(image_grid(images.class_examples(), 10)).save(path)
