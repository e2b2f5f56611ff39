"""The model card of a trained model: what it is, how good, how it was made, as Markdown for a hub."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from gat.config import Recipe

NAMES = {  # of metrics.json
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "spread": "spread",
    "recognized": "recognized",
}
MEANINGS = {
    "spread": "variance within classes over that of the reals",
    "recognized": "share of samples that the extractor's classifier takes for their class",
}


def plain_name(source: str) -> str:
    """A data source or teacher without the folders in which this machine has it."""
    path = Path(source).expanduser()
    return " ".join((path.name if path.exists() else source).split())


def model_card(
    results: Mapping[str, Any],
    settings: Recipe,
    source: str,
    resolution: int,
    commit: str,
    command: str,
    reference: str | None = None,
) -> str:
    """Markdown with the metadata of a hub in front.

    Args:
        results: `run.json`, `metrics.json` and `evaluation.json` of a training, together.
        settings: of its run.
        source: of the images.
        resolution: of the images, pixels.
        commit: of this project.
        command: that trains the model.
        reference: of FID, where that is not the images.
    """
    name, metrics = plain_name(source), {key: results[key] for key in NAMES if key in results}
    measured_on = name if reference is None else plain_name(reference)
    title, task = f"{results['run']}-seed-{results['seed']}", "unconditional-image-generation"
    data = ModelCardData(
        license="other",
        license_name="apache-2.0-code-and-the-terms-of-the-images",
        library_name="diffusers",
        pipeline_tag=task,
        tags=["gan", "one-step", "class-conditional"],
        model_name=f"GAT {title}",
        eval_results=[
            EvalResult(
                task_type=task,
                dataset_type=measured_on,
                dataset_name=measured_on,
                metric_type=key,
                metric_name=NAMES[key],
                metric_value=v,
            )
            for key, v in metrics.items()
        ],
    )
    recipe = {
        "run": settings.run.model_dump(exclude={"pretrained", "train", "loss", "repa"}),
        "loss": settings.loss.model_dump(),
        "train": settings.train.model_dump(),
        "repa": settings.repa.model_dump(),
    }
    if settings.repa.teacher is not None:
        recipe["repa"]["teacher"] = plain_name(settings.repa.teacher)
    rows = [f"| {NAMES[key]} | {value:.4g} | {MEANINGS.get(key, '')} |" for key, value in metrics.items()]
    warnings = [f"- {html.escape(warning)}" for warning in results["warnings"]]
    lines = [
        "---",
        data.to_yaml().strip(),
        "---",
        "",
        f"# GAT {title}",
        "",
        f"Class-conditional images of {resolution} × {resolution} pixels in one step: a GAN of plain transformers in a "
        f"VAE's latent space ([arXiv 2509.24935](https://arxiv.org/abs/2509.24935)), trained on {html.escape(name)}. "
        f"{results['params'] / 1e6:.3g} million parameters, {results['gmacs']:.3g} GMACs an image without the VAE.",
        "",
        "![A row a class, a column a seed](samples.png)",
        "",
        "```python",
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        'pipeline = DiffusionPipeline.from_pretrained("this repository or folder", trust_remote_code=True)',
        "pipeline(class_labels=[1], generator=torch.Generator().manual_seed(0)).images[0]",
        "```",
        "",
        f"## Metrics of {results['samples']:,} samples",
        "",
        "| metric | value | |",
        "| --- | --- | --- |",
        *rows,
        "",
        f"Features of {html.escape(str(results['extractor']))}, clean-fid's mode {results['mode']}; truncation ψ "
        f"{results['truncation_psi']:g} (0: off), guidance {results['guidance_scale']:g} (1: off). One training: other "
        "seeds of the same recipe have other values.",
        "",
        *(["## Warnings", "", *warnings, ""] if warnings else []),
        "## Made by",
        "",
        f"`{command}` at commit {commit}, with",
        "",
        "```yaml",
        yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        "```",
        "",
        "## Licence",
        "",
        "The code in this folder: Apache-2.0. The weights were learned from the images, whose own terms apply.",
        "",
    ]
    return "\n".join(lines)
