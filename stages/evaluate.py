"""Metrics and cost of a trained model: runs/…, results/… -> results/…/metrics.json, evaluation.json, samples.png.

python -m stages evaluate RUN SEED          (as many processes as Accelerate is configured for; `model` needs no seed)

metrics.json has the metrics that DVC compares; evaluation.json has the cost and how the metrics were measured. An arm
that diverged has no metrics, only a warning.
"""

from pathlib import Path
from typing import Any

from diffusers.utils import logging
from PIL import Image

from gat.config import Params
from gat.data.vae import load_vae
from gat.evaluation.features import compute_features
from gat.evaluation.fid import fid
from gat.evaluation.grid import image_grid
from gat.evaluation.measure import Measure, References
from gat.evaluation.sampling import Sampler, sample_inputs, save_npz
from gat.evaluation.warnings import warnings_of
from gat.files import atomic_write
from gat.gan.networks import Discriminator, Generator, require_finite
from gat.runtime import make_accelerator
from gat.study.cost import cost_of
from stages import ENCODER, EXTRACTOR, REFERENCE, RUNS, STATISTICS, VAE, parse_training, results_of, teacher_folder


def main(params: Params) -> None:
    """Run the stage."""
    logging.disable_progress_bar()
    training, settings, batch_size = parse_training(params), params.evaluate, params.compute.sample_batch
    accelerator, pretrained = make_accelerator(params.compute), params.run(training.run).pretrained
    networks, results = RUNS / training.folder, results_of(params, training)
    run = results.read("run")
    if run.get("diverged"):
        if accelerator.is_main_process:
            results.write_evaluation({}, {"warnings": ["training diverged"]})
            with atomic_write(results.samples) as path:
                Image.new("L", (1, 1)).save(path)
        return
    measure = Measure(EXTRACTOR, ENCODER, accelerator.device)
    references = References.load(REFERENCE, STATISTICS)
    generator = Generator.from_pretrained(networks / "generator").to(accelerator.device)
    require_finite(generator, str(networks / "generator"))
    vae = load_vae(VAE if pretrained is None else Path(pretrained) / "vae", accelerator.device)
    samplers = [
        Sampler(
            generator,
            vae,
            settings.seed + i,
            settings.truncation_psi,
            settings.guidance_scale,
            params.compute.vae_batch,
            references.main.class_counts,
        )
        for i in range(settings.sample_sets)
    ]
    sampler = samplers[0]
    features = measure.features(sampler, settings.samples, batch_size)
    others = [compute_features(other, measure.main, settings.samples, batch_size) for other in samplers[1:]]
    if settings.save_samples is not None:
        path = Path(settings.save_samples) / f"{training.folder}.npz"
        save_npz(sampler, path, settings.samples, batch_size)
    if not accelerator.is_main_process:
        return
    labels = sample_inputs(settings.seed, 0, settings.samples, sampler.cycle)[1].numpy()
    metrics = measure.metrics(features, labels, references, settings.seed)
    discriminator = None if pretrained is not None else Discriminator.load_config(networks / "discriminator")
    teacher = None if run.get("teacher") is None else teacher_folder(params, training.run)
    cost = cost_of(generator.config, discriminator, run, teacher)
    measured: dict[str, Any] = {
        "fid_sets": [metrics["fid"], *(fid(other, references.main) for other in others)],
        "labels": "uniform" if references.main.class_counts is None else "reals",
        "truncation_psi": settings.truncation_psi,
        "guidance_scale": settings.guidance_scale,
    }
    own_reals = params.metrics.reference is None
    warnings = warnings_of(results.curves(), settings.samples, references.main, own_reals)
    measured |= measure.description | {"samples": settings.samples, "warnings": warnings}
    with atomic_write(results.samples) as path:
        Image.fromarray(image_grid(sampler.class_examples(), 10)).save(path)
    results.write_evaluation(metrics | {"gmacs": cost["gmacs"]}, cost | measured)
