"""How good a trained model is: runs/RUN/pipeline -> results/RUN/metrics.json, evaluation.json, samples.png.

python -m stages.evaluate RUN          (as many processes as Accelerate is configured for)

metrics.json holds the few numbers that DVC compares; evaluation.json adds how they were measured.
"""

import json
import time

from gat.config import Params
from stages import EXTRACTOR, REFERENCE, RESULTS, RUNS, make_accelerator, run_named, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    name = run_named(params)
    import numpy as np
    from diffusers.utils import logging
    from PIL import Image

    from gat.extractor import Extractor
    from gat.metrics import Reference, fid, kid, precision_recall
    from gat.pipeline import GATPipeline
    from gat.sampling import image_grid, sample_features, sample_images

    logging.disable_progress_bar()
    accelerator = make_accelerator()
    settings = params.evaluate
    pipeline = GATPipeline.from_pretrained(RUNS / name / "pipeline").to(accelerator.device)
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    seconds = 0.0

    def images(start: int, stop: int) -> np.ndarray:
        nonlocal seconds
        begin = time.perf_counter()
        made = sample_images(
            pipeline.generator,
            pipeline.vae,
            settings.seed,
            start,
            stop,
            settings.truncation_psi,
            settings.guidance_scale,
        )
        seconds += time.perf_counter() - begin
        return made

    features = sample_features(images, extractor, settings.samples, settings.batch_size)
    rate = settings.samples / accelerator.num_processes / seconds
    if not accelerator.is_main_process:
        return
    metrics = {"fid": fid(features, reference)}
    if reference.features is not None:
        precision, recall = precision_recall(features, reference.features, accelerator.device)
        metrics |= {"kid": kid(features, reference.features, settings.seed), "precision": precision, "recall": recall}
    run = json.loads((RESULTS / name / "run.json").read_text())
    metrics["gmacs"] = run["gmacs"]
    folder = RESULTS / name
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    measured = {
        "images_per_second": rate * accelerator.num_processes,
        "samples": settings.samples,
        "extractor": extractor.name,
        "mode": extractor.mode,
        "truncation_psi": settings.truncation_psi,
        "guidance_scale": settings.guidance_scale,
    }
    (folder / "evaluation.json").write_text(json.dumps(measured, indent=1) + "\n")
    classes = min(10, len(pipeline.config.classes))
    labels = np.arange(settings.samples) % len(pipeline.config.classes)
    shown = np.concatenate([np.flatnonzero(labels == label)[:10] for label in range(classes)])
    rows = np.concatenate([images(int(i), int(i) + 1) for i in shown])
    Image.fromarray(image_grid(rows, columns=len(rows) // classes)).save(folder / "samples.png")


if __name__ == "__main__":
    run_stage(main, distributed=True)
