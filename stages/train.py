"""One model of the study, by the paper's recipe: data/ -> runs/RUN/pipeline, results/RUN/live, results/RUN/run.json.

python -m stages.train RUN          (as many processes as Accelerate is configured for)

A run that was interrupted goes on from its last checkpoint; `GAT_CHECKPOINTS` says where those are kept.
"""

import json
import shutil

from gat.config import Params
from stages import (
    CHECKPOINTS,
    EXTRACTOR,
    LATENTS,
    REFERENCE,
    RESULTS,
    RUNS,
    VAE,
    make_accelerator,
    run_named,
    run_stage,
)


def main(params: Params) -> None:
    """Run the stage."""
    name = run_named(params)
    from diffusers import AutoencoderKL
    from dvclive import Live

    from gat.extractor import Extractor
    from gat.latents import Latents
    from gat.metrics import Reference, fid
    from gat.networks import Generator
    from gat.pipeline import GATPipeline
    from gat.sampling import sample_features, sample_images
    from gat.study import build_run, fingerprint

    accelerator = make_accelerator()
    latents = Latents(LATENTS)
    vae = AutoencoderKL.from_pretrained(VAE).to(accelerator.device).eval()
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    checkpoints = CHECKPOINTS / fingerprint(params, name, latents, [REFERENCE])
    run = build_run(params, name, latents, accelerator, checkpoints)
    live = Live(str(RESULTS / name / "live"), dvcyaml=None, report=None, save_dvc_exp=False)

    def evaluate(generator: Generator) -> float:
        features = sample_features(
            lambda start, stop: sample_images(generator, vae, params.evaluate.seed, start, stop),
            extractor,
            run.eval_samples,
            params.evaluate.batch_size,
        )
        return fid(features, reference)

    def log(row: dict[str, float]) -> None:
        live.step = int(row["step"])
        for metric, value in row.items():
            if metric != "step":
                live.log_metric(metric, value)

    run.fit(evaluate, log if accelerator.is_main_process else None)
    if accelerator.is_main_process:
        GATPipeline(run.trainer.ema, vae, latents.classes).save_pretrained(RUNS / name / "pipeline")
        (RESULTS / name / "run.json").write_text(json.dumps(run.description, indent=1) + "\n")
        live.end()
        shutil.rmtree(checkpoints)


if __name__ == "__main__":
    run_stage(main, distributed=True)
