"""What a trained model can do, as pictures: runs/…/pipeline -> showcase/RUN.

python -m stages showcase RUN SEED          (`model` needs no seed)

explorer.webp (rows: label, then ψ; columns: seeds), guidance.webp (the same with guidance), levels.webp (rows: samples;
columns: levels), neighbours.webp (rows: an image and its nearest training images; samples first, then reals),
walk.mp4, and showcase.json, which says what is where.
"""

from pathlib import Path

import numpy as np
from diffusers.utils import logging
from tqdm import tqdm

from gat.config import Params, ParamsError
from gat.data.images import Images
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import Reference, evenly_spaced
from gat.files import atomic_write
from gat.pipeline import GATPipeline
from gat.runtime import make_accelerator
from gat.showcase import level_images, mosaic, nearest, save_video, save_webp, sweep, walk
from stages import EXTRACTOR, IMAGES, REFERENCE, RUNS, SHOWCASE, parse_training, write_json


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training, settings = parse_training(params), params.showcase
    device = make_accelerator(params.compute).device
    pipeline = GATPipeline.from_pretrained(RUNS / training.folder / "pipeline").to(device)
    count = pipeline.generator.config["classes"]
    labels = settings.classes if settings.classes is not None else list(range(min(10, count)))
    if max(labels) >= count:
        raise ParamsError(f"showcase.classes: {max(labels)} is not allowed; allowed: 0 to {count - 1}")
    seeds, names = list(range(settings.seeds)), pipeline.config.classes or [str(label) for label in range(count)]
    with atomic_write(SHOWCASE / training.run) as folder, tqdm(total=5, desc="showcase", unit="picture") as bar:
        folder.mkdir()
        by_truncation = sweep(pipeline, labels, seeds, "truncation_psi", settings.truncation_psi)
        save_webp(folder / "explorer.webp", mosaic(by_truncation.reshape(-1, *by_truncation.shape[2:])))
        bar.update()
        by_guidance = sweep(pipeline, labels, seeds, "guidance_scale", settings.guidance_scale)
        save_webp(folder / "guidance.webp", mosaic(by_guidance.reshape(-1, *by_guidance.shape[2:])))
        bar.update()
        save_webp(folder / "levels.webp", mosaic(level_images(pipeline, labels, [0] * len(labels))))
        bar.update()
        neighbours = save_neighbours(folder, params, pipeline, labels)
        bar.update()
        stops = [labels[i % len(labels)] for i in range(settings.walk_stops)]
        save_video(folder / "walk.mp4", walk(pipeline, stops, list(range(len(stops))), settings.walk_frames))
        bar.update()
        write_json(
            folder / "showcase.json",
            {
                **training._asdict(),
                "side": by_truncation.shape[-2],
                "labels": labels,
                "names": [names[label] for label in labels],
                "seeds": seeds,
                "truncation_psi": settings.truncation_psi,
                "guidance_scale": settings.guidance_scale,
                "levels": pipeline.generator.config["levels"],
                "neighbours": neighbours,
                "walk": [names[label] for label in stops],
            },
        )


def save_neighbours(folder: Path, params: Params, pipeline: GATPipeline, labels: list[int]) -> dict[str, object]:
    """neighbours.webp, and distances: of samples to their nearest training images, and of reals to the other reals.

    Samples that are copies would be much nearer to some training image than a real is to the other ones.
    """
    device, count = pipeline.generator.w_avg.device, params.showcase.neighbours
    extractor, reference, images = Extractor(EXTRACTOR, device), Reference.load(REFERENCE), Images(IMAGES)
    if reference.features is None or params.metrics.reference is not None:
        return {}
    kept = evenly_spaced(len(images), params.metrics.reference_features)
    samples = sweep(pipeline, labels, range(params.showcase.seeds), "truncation_psi", [0.0])[:, 0]
    flat = samples.reshape(-1, *samples.shape[2:])
    rows, distances = nearest(extractor(flat), reference.features, count)
    own = np.linspace(0, len(kept) - 1, len(flat)).round().astype(int)
    real_rows, real_distances = nearest(reference.features[own], reference.features, count, own)
    shown = range(0, len(flat), len(samples[0]))  # the first seed of each class
    pictures = [[flat[i], *images[kept[rows[i]]]] for i in shown]
    pictures += [[images[kept[own[i : i + 1]]][0], *images[kept[real_rows[i]]]] for i in shown]
    save_webp(folder / "neighbours.webp", mosaic(np.array(pictures)))
    return {
        "training_images": len(kept),
        "of": len(images),
        "samples": distances[:, 0].round(4).tolist(),
        "reals": real_distances[:, 0].round(4).tolist(),
    }
