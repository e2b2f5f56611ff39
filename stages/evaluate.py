"""Metrics of a trained model: runs/…/pipeline -> results/…/metrics.json, evaluation.json, samples.png.

python -m stages evaluate RUN SEED          (as many processes as Accelerate is configured for; `model` needs no seed)

metrics.json holds the few numbers that DVC compares; evaluation.json says how they were measured.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from gat.config import Params
from gat.data.vae import load_vae
from gat.evaluation.extractor import Extractor
from gat.evaluation.features import compute_features
from gat.evaluation.fid import Reference
from gat.evaluation.grid import image_grid
from gat.evaluation.metrics import compute_metrics, diverging_fid, few_for_fid, flat_discriminator
from gat.evaluation.sampling import Sampler, sample_inputs, save_npz
from gat.files import atomic_write
from gat.gan.networks import require_finite
from gat.pipeline import GATPipeline
from gat.runtime import make_accelerator
from stages import EXTRACTOR, REFERENCE, RUNS, parse_training, results_of, write_json


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training, settings = parse_training(params), params.evaluate
    accelerator = make_accelerator(params.compute)
    trained, results = RUNS / training.folder / "pipeline", results_of(params, training)
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    generator = GATPipeline.from_pretrained(trained).generator.to(accelerator.device)
    require_finite(generator, str(trained))
    sampler = Sampler(
        generator,
        load_vae(trained / "vae", accelerator.device),
        settings.seed,
        settings.truncation_psi,
        settings.guidance_scale,
        params.compute.vae_batch,
        reference.class_counts,
    )
    features = compute_features(sampler, extractor, settings.samples, settings.batch_size)
    rate = accelerator.reduce(torch.tensor(sampler.images_per_second, device=accelerator.device)).item()
    if settings.save_samples is not None:
        path = Path(settings.save_samples) / f"{training.folder}.npz"
        save_npz(sampler, path, settings.samples, settings.batch_size)
    if not accelerator.is_main_process:
        return
    labels = sample_inputs(settings.seed, 0, settings.samples, sampler.cycle)[1].numpy()
    predicted = extractor.classify(features)
    metrics = compute_metrics(features, labels, reference, predicted, accelerator.device, settings.seed)
    gmacs = json.loads((results / "run.json").read_text())["gmacs"]
    write_json(results / "metrics.json", metrics | {"gmacs": gmacs})
    measured = {
        "images_per_second": rate,
        "samples": settings.samples,
        "labels": "uniform" if reference.class_counts is None else "reals",
        "extractor": extractor.name,
        "mode": extractor.mode,
        "truncation_psi": settings.truncation_psi,
        "guidance_scale": settings.guidance_scale,
        "warnings": warnings_of(results, settings.samples, reference, params.metrics.reference is None),
    }
    write_json(results / "evaluation.json", measured)
    with atomic_write(results / "samples.png") as path:
        Image.fromarray(image_grid(sampler.class_examples(), 10)).save(path)


def curve_of(results: Path, name: str) -> np.ndarray | None:
    """One of the curves that training left: rows of a step and a value; None: of a pretrained model there is none."""
    path = results / f"live/plots/metrics/{name}.tsv"
    return np.loadtxt(path, skiprows=1, ndmin=2) if path.exists() else None


def warnings_of(results: Path, samples: int, reference: Reference, own_reals: bool) -> list[str]:
    """What is doubtful about a model or its FID; how many reals there are is known where they are the data set's."""
    gap, fids = curve_of(results, "gap"), curve_of(results, "fid")
    counts = reference.class_counts if own_reals else None
    reals = None if counts is None else int(counts.sum())
    return [
        *(flat_discriminator(gap) if gap is not None else []),
        *(diverging_fid(fids) if fids is not None else []),
        *few_for_fid(samples, reals, len(reference.mu)),
    ]
