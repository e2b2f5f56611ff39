"""Any image source as square RGB images: data.source -> data/images.

python -m stages.images          (as many processes as Accelerate is configured for)

An interrupted run goes on from the last file that it finished.
"""

from gat.config import Params
from stages import IMAGES, make_accelerator, publish, run_stage, workplace


def main(params: Params) -> None:
    """Run the stage."""
    data = params.data
    from gat.images import load_source, write_images

    accelerator = make_accelerator(params.compute)
    with accelerator.main_process_first():  # one process fetches, the others find it
        source = load_source(data.source, data.split, data.image_column, data.label_column)
    folder = workplace("images", data.model_dump(), source._fingerprint)
    skipped = write_images(source, folder, data.resolution, data.encoding, data.on_error)
    if accelerator.is_main_process:
        for line in skipped[:20]:
            print(f"skipped {line}")
        if skipped:
            print(f"{len(skipped)} of {len(source)} images could not be read; data/images/images.json lists them")
    publish(folder, IMAGES)


if __name__ == "__main__":
    run_stage(main, distributed=True)
