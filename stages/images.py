"""Any image source as square RGB images: data.source -> data/images.

python -m stages.images
"""

from gat.config import Params
from stages import IMAGES, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    data = params.data
    from gat.images import load_source, write_images

    source = load_source(data.source, data.split, data.image_column, data.label_column)
    write_images(source, IMAGES, data.resolution)


if __name__ == "__main__":
    run_stage(main)
