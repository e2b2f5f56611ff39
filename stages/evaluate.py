"""How good a trained model is: runs/RUN/pipeline -> results/RUN/metrics.json, evaluation.json, samples.png.

python -m stages.evaluate RUN          (as many processes as Accelerate is configured for)

metrics.json holds the few numbers that DVC compares; evaluation.json adds how they were measured.
"""

import json
from pathlib import Path

from gat.config import Params
from stages import EXTRACTOR, REFERENCE, RESULTS, RUNS, make_accelerator, run_named, run_stage


def main(params: Params) -> None:
    """Run the stage."""
    name = run_named(params)
    import torch
    from diffusers.utils import logging
    from PIL import Image

    from gat.extractor import Extractor
    from gat.metrics import Reference, fid, kid, precision_recall
    from gat.pipeline import GATPipeline
    from gat.sampling import Sampler, sample_features, save_npz
    from gat.vae import load_vae

    logging.disable_progress_bar()
    accelerator = make_accelerator()
    settings = params.evaluate
    pipeline = GATPipeline.from_pretrained(RUNS / name / "pipeline")
    sampler = Sampler(
        pipeline.generator.to(accelerator.device),
        load_vae(RUNS / name / "pipeline/vae", accelerator.device),
        settings.seed,
        settings.truncation_psi,
        settings.guidance_scale,
        params.compute.vae_batch,
    )
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    features = sample_features(sampler, extractor, settings.samples, settings.batch_size)
    rate = accelerator.reduce(torch.tensor(sampler.images_per_second, device=accelerator.device)).item()
    if settings.save_samples is not None:
        path = Path(settings.save_samples) / f"{name}.npz"
        save_npz(sampler, path, settings.samples, settings.batch_size)
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
