"""Any image source as square RGB images: data.source -> data/images.

python -m stages images          (as many processes as Accelerate is configured for)

An interrupted run resumes after the last complete file.
"""

from gat.config import Params
from gat.data.images import load_source, write_images
from gat.runtime import make_accelerator, publish
from stages import IMAGES, staging_dir

SKIPPED_SHOWN = 20


def main(params: Params) -> None:
    """Run the stage."""
    data = params.data
    accelerator = make_accelerator(params.compute)
    with accelerator.main_process_first():  # one process downloads, the others find the files
        source = load_source(data.source, data.split, data.image_column, data.label_column)
    folder = staging_dir("images", data.model_dump(), source._fingerprint)
    skipped = write_images(source, folder, data.resolution, data.encoding, data.on_error)
    if accelerator.is_main_process:
        for line in skipped[:SKIPPED_SHOWN]:
            print(f"skipped {line}")
        if skipped:
            print(f"{len(skipped)} of {len(source)} images could not be read; data/images/images.json lists them")
    publish(folder, IMAGES)
