"""What no generator can be expected to beat: data/ -> data/floors.json, data/reals.png.

python -m stages.floors          (as many processes as Accelerate is configured for)

The FID of the autoencoder's reconstructions, and that of one half of the real images against the other.
"""

import json

from gat.config import Params
from stages import EXTRACTOR, FLOORS, IMAGES, REALS, REFERENCE, VAE, make_accelerator, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    import numpy as np
    from PIL import Image

    from gat.extractor import Extractor
    from gat.images import Images
    from gat.metrics import Reference, evenly_spaced, fid, fid_of_halves
    from gat.sampling import image_grid, sample_features
    from gat.vae import load_vae, reconstruct

    accelerator = make_accelerator(params.compute)
    images, vae = Images(IMAGES), load_vae(VAE, accelerator.device)
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    some = evenly_spaced(len(images), params.evaluate.samples)

    def rebuilt(start: int, stop: int) -> np.ndarray:
        return reconstruct(vae, images[some[start:stop]], params.compute.vae_batch)

    features = sample_features(rebuilt, extractor, len(some), params.evaluate.batch_size)
    if accelerator.is_main_process:
        floors = {"reconstructions": fid(features, reference)}
        if reference.features is not None:
            floors["real halves"] = fid_of_halves(reference.features)
        FLOORS.write_text(json.dumps(floors, indent=1) + "\n")
        Image.fromarray(image_grid(images.of_classes(), 10)).save(REALS)


if __name__ == "__main__":
    run_stage(main, distributed=True)
