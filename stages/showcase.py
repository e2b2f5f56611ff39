"""What a trained model can do, as pictures: runs/…/pipeline -> showcase/RUN.

python -m stages showcase RUN SEED          (`model` needs no seed)

truncation_psi-N.webp, guidance_scale-N.webp (of the N-th shown class; rows: values, columns: seeds), levels.webp (rows:
samples, columns: levels), neighbours.webp (rows: an image and its nearest training images; samples first, then reals),
walk.mp4, generator.onnx (of a small model, for the page), and showcase.json, which says what is where.
"""

from diffusers.utils import logging
from tqdm import tqdm

from gat.config import Params, ParamsError
from gat.data.images import Images
from gat.evaluation.extractor import Extractor
from gat.evaluation.fid import Reference, evenly_spaced
from gat.evaluation.sampling import seed_noise
from gat.files import atomic_write, write_json
from gat.release.live import export_onnx, size_megabytes
from gat.release.pipeline import GATPipeline
from gat.release.showcase import SWEEPS, level_images, neighbours_of, save_sheet, save_video, sweep, walk
from gat.runtime import make_accelerator
from stages import EXTRACTOR, IMAGES, REFERENCE, RUNS, SHOWCASE, parse_training

LIVE_SEEDS = 64  # whose noise the page has


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
    shown = {
        **training._asdict(),
        "labels": labels,
        "names": [names[label] for label in labels],
        "all_names": names,
        "seeds": seeds,
        "levels": pipeline.generator.config["levels"],
        "neighbours": {},
        "live": size_megabytes(pipeline) <= settings.live_megabytes,
    }
    with atomic_write(SHOWCASE / training.run) as folder, tqdm(total=6, desc="showcase", unit="part") as bar:
        folder.mkdir()
        for option in SWEEPS:
            shown[option] = getattr(settings, option)
            swept = sweep(pipeline, labels, seeds, option, shown[option])
            for i, pictures in enumerate(swept):
                sheet = save_sheet(folder / f"{option}-{i}.webp", pictures)
                shown |= sheet | {"exact": sheet["exact"] and shown.get("exact", True)}
            bar.update()
        save_sheet(folder / "levels.webp", level_images(pipeline, labels, [0] * len(labels)))
        bar.update()
        images, reference = Images(IMAGES), Reference.load(REFERENCE)
        if reference.features is not None and params.metrics.reference is None:  # else they are not of these images
            kept = evenly_spaced(len(images), params.metrics.reference_features)
            samples = sweep(pipeline, labels, seeds, "truncation_psi", [0.0])[:, 0]
            pictures, shown["neighbours"] = neighbours_of(
                samples, images, kept, Extractor(EXTRACTOR, device), reference.features, settings.neighbours
            )
            save_sheet(folder / "neighbours.webp", pictures)
        bar.update()
        stops = [labels[i % len(labels)] for i in range(settings.walk_stops)]
        save_video(folder / "walk.mp4", walk(pipeline, stops, list(range(len(stops))), settings.walk_frames))
        bar.update()
        if shown["live"]:
            shown["noise"] = [[round(z, 7) for z in row] for row in seed_noise(range(LIVE_SEEDS)).tolist()]
            export_onnx(pipeline, folder / "generator.onnx")
        bar.update()
        write_json(folder / "showcase.json", shown | {"walk": [names[label] for label in stops]})
