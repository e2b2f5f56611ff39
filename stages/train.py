"""One training of the study, by the paper's recipe: data/ -> runs/…/pipeline, results/…/live, results/…/run.json.

python -m stages.train RUN SEED          (as many processes as Accelerate is configured for; `model` needs no seed)

A run that was interrupted goes on from its last checkpoint; `GAT_CHECKPOINTS` says where those are kept.
"""

import functools
import json
import shutil
from typing import TYPE_CHECKING

from gat.config import Params
from stages import (
    CHECKPOINTS,
    EXTRACTOR,
    IMAGES,
    LATENTS,
    REFERENCE,
    RESULTS,
    RUNS,
    VAE,
    make_accelerator,
    run_stage,
    training_named,
)

if TYPE_CHECKING:
    from dvclive import Live


def log(live: "Live", row: dict[str, float]) -> None:
    """Add a row of the history to the curves."""
    live.step = int(row["step"])
    for metric, value in row.items():
        if metric != "step":
            live.log_metric(metric, value)


def main(params: Params) -> None:
    """Run the stage."""
    training = training_named(params)
    from diffusers import AutoencoderKL
    from dvclive import Live

    from gat.extractor import Extractor
    from gat.latents import Latents
    from gat.metrics import Reference, fid
    from gat.networks import Generator
    from gat.pipeline import GATPipeline
    from gat.sampling import Sampler, sample_features
    from gat.study import build_run, describe_pretrained, fingerprint
    from gat.training import final_gap
    from gat.vae import load_vae

    accelerator = make_accelerator(params.compute)
    pipeline, results = RUNS / training.folder / "pipeline", RESULTS / training.folder
    pretrained = params.settings(training.run).run.pretrained
    if pretrained is not None:
        if accelerator.is_main_process:
            given = GATPipeline.from_pretrained(pretrained)
            given.save_pretrained(pipeline)
            (results / "live").mkdir(parents=True, exist_ok=True)
            description = describe_pretrained(training, given.generator)
            (results / "run.json").write_text(json.dumps(description, indent=1) + "\n")
        return

    latents = Latents(LATENTS)
    vae = load_vae(VAE, accelerator.device)
    extractor, reference = Extractor(EXTRACTOR, accelerator.device), Reference.load(REFERENCE)
    checkpoints = CHECKPOINTS / fingerprint(params, training, latents, [REFERENCE])
    run = build_run(params, training, latents, accelerator, checkpoints, IMAGES)
    live = None
    if accelerator.is_main_process:  # alone, since the folder is cleared first
        live = Live(str(results / "live"), dvcyaml=None, report=None, save_dvc_exp=False)

    def evaluate(generator: Generator) -> float:
        sampler = Sampler(generator, vae, training.seed, vae_batch=params.compute.vae_batch)
        return fid(sample_features(sampler, extractor, run.eval_samples, params.evaluate.batch_size), reference)

    history = run.fit(evaluate, None if live is None else functools.partial(log, live))
    if live is not None:
        whole_vae = AutoencoderKL.from_pretrained(VAE)  # not the one in bfloat16
        GATPipeline(run.trainer.ema, whole_vae, latents.classes).save_pretrained(pipeline)
        description = run.description | {"gap": final_gap(history, run.plan.steps)}
        (results / "run.json").write_text(json.dumps(description, indent=1) + "\n")
        live.end()
        shutil.rmtree(checkpoints)


if __name__ == "__main__":
    run_stage(main, distributed=True)
