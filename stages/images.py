"""Converts an image source to square RGB images: data.source, data/source.json -> data/images.

python -m stages images          (as many processes as Accelerate is configured for)

After an interruption it resumes after the last complete file.
"""

from gat.config import Params
from gat.data.crop import write_images
from gat.data.sources import load_source
from gat.runtime import exclusive, main_process_first, make_accelerator, publish
from stages import IMAGES, SOURCE, staging_dir

LINES_SHOWN = 20


def main(params: Params) -> None:
    """Run the stage."""
    data = params.data
    accelerator = make_accelerator(params.compute)
    with main_process_first():  # one process downloads for all
        source = load_source(data.source, data.split, data.image_column, data.label_column)
    if accelerator.is_main_process:
        print(f"{data.source}: {len(source.data):,} images of {len(source.classes):,} classes")
        show("left out", source.left_out)
    cut = data.resolution, data.encoding, data.on_error, data.holdout
    chosen = data.split, data.image_column, data.label_column
    folder = staging_dir("images", chosen, cut, source.data._fingerprint, SOURCE.read_bytes())
    with exclusive(folder) as awaited:
        skipped = write_images(source, folder, *cut)
        publish(folder, IMAGES, keep=awaited())
    if accelerator.is_main_process:
        show("cannot be read", skipped)


def show(what: str, lines: list[str]) -> None:
    """Print the first lines of a list, and the number of further ones."""
    for line in lines[:LINES_SHOWN]:
        print(f"{what}: {line}")
    if len(lines) > LINES_SHOWN:
        print(f"{what}: {len(lines) - LINES_SHOWN:,} more, listed in data/images/images.json")
