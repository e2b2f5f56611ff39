"""How good a trained model is: runs/…/pipeline -> results/…/metrics.json, evaluation.json, samples.png.

python -m stages.evaluate RUN SEED          (as many processes as Accelerate is configured for; `model` needs no seed)

metrics.json holds the few numbers that DVC compares; evaluation.json adds how they were measured.
"""

import json
from pathlib import Path

from gat.config import Params
from stages import EXTRACTOR, REFERENCE, RESULTS, RUNS, make_accelerator, run_stage, training_named


def main(params: Params) -> None:
    """Run the stage."""
    training = training_named(params)
    import numpy as np
    import torch
    from diffusers.utils import logging
    from PIL import Image

    from gat.extractor import Extractor
    from gat.metrics import Reference, class_spread, fid, kid, precision_recall
    from gat.pipeline import GATPipeline
    from gat.sampling import Sampler, sample_features, sample_inputs, save_npz
    from gat.vae import load_vae

    logging.disable_progress_bar()
    accelerator = make_accelerator(params.compute)
    settings = params.evaluate
    trained, folder = RUNS / training.folder / "pipeline", RESULTS / training.folder
    pipeline = GATPipeline.from_pretrained(trained)
    sampler = Sampler(
        pipeline.generator.to(accelerator.device),
        load_vae(trained / "vae", accelerator.device),
        settings.seed,
        settings.truncation_psi,
        settings.guidance_scale,
        params.compute.vae_batch,
    )
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    features = sample_features(sampler, extractor, settings.samples, settings.batch_size)
    rate = accelerator.reduce(torch.tensor(sampler.images_per_second, device=accelerator.device)).item()
    if settings.save_samples is not None:
        path = Path(settings.save_samples) / f"{training.folder}.npz"
        save_npz(sampler, path, settings.samples, settings.batch_size)
    if not accelerator.is_main_process:
        return
    labels = sample_inputs(settings.seed, 0, settings.samples, pipeline.generator.config["classes"])[1].numpy()
    metrics = {"fid": fid(features, reference)}
    if reference.features is not None:
        precision, recall = precision_recall(features, reference.features, accelerator.device)
        metrics |= {"kid": kid(features, reference.features, settings.seed), "precision": precision, "recall": recall}
    if reference.features is not None and reference.labels is not None:
        metrics["spread"] = class_spread(features, labels) / class_spread(reference.features, reference.labels)
    if (recognized := extractor.classify(features)) is not None:
        metrics["recognized"] = float(np.mean(recognized == labels))
    metrics["gmacs"] = json.loads((folder / "run.json").read_text())["gmacs"]
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    measured = {
        "images_per_second": rate,
        "samples": settings.samples,
        "extractor": extractor.name,
        "mode": extractor.mode,
        "truncation_psi": settings.truncation_psi,
        "guidance_scale": settings.guidance_scale,
    }
    (folder / "evaluation.json").write_text(json.dumps(measured, indent=1) + "\n")
    Image.fromarray(sampler.of_classes()).save(folder / "samples.png")


if __name__ == "__main__":
    run_stage(main, distributed=True)
