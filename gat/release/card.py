"""The model card of a trained model: what it is, its metrics and how it was trained, as Markdown for a hub."""

import html
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gat.config import Recipe
from gat.report.columns import METRICS
from gat.report.settings import plain_name, recipe_yaml
from gat.report.tables import markdown_table

TASK = "unconditional-image-generation"


def model_card(
    results: Mapping[str, Any],
    recipe: Recipe,
    source: str,
    resolution: int,
    commit: str,
    command: str,
    reference: str | None = None,
) -> str:
    """Markdown with the metadata of a hub in front.

    Args:
        results: of the training, see `gat.study.results.Results.read`.
        recipe: of its run.
        source: of the images.
        resolution: of the images, pixels.
        commit: of this project.
        command: that trains the model.
        reference: of FID; None: the images.
    """
    name, title = plain_name(source), f"{results['run']}-seed-{results['seed']}"
    metrics = [column for column in METRICS if column.key in results]
    measured_on = name if reference is None else plain_name(reference)
    data = ModelCardData(
        license="other",
        license_name="apache-2.0-code-and-the-terms-of-the-images",
        library_name="diffusers",
        pipeline_tag=TASK,
        tags=["gan", "one-step", "class-conditional"],
        model_name=f"GAT {title}",
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=measured_on,
                dataset_name=measured_on,
                metric_type=column.key,
                metric_name=column.heading,
                metric_value=results[column.key],
            )
            for column in metrics
        ],
    )
    rows = [[column.title, column.text(results[column.key]), column.explanation] for column in metrics]
    warnings = [f"- {html.escape(warning)}" for warning in results["warnings"]]
    lines = [
        "---",
        data.to_yaml().strip(),
        "---",
        "",
        f"# GAT {title}",
        "",
        f"A class-conditional GAN of plain transformers that generates images of {resolution} × {resolution} pixels in "
        "one step, in the latent space of a VAE ([arXiv 2509.24935](https://arxiv.org/abs/2509.24935)), trained on "
        f"{html.escape(name)}. {results['params'] / 1e6:.3g} million parameters and {results['gmacs']:.3g} GMACs per "
        "image, without the VAE.",
        "",
        "![One row per class, one column per seed](samples.png)",
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
        markdown_table(["metric", "value", "meaning"], rows),
        "",
        f"Features: {html.escape(str(results['extractor']))}, clean-fid mode {results['mode']}. Truncation ψ: "
        f"{results['truncation_psi']:g} (0: off). Guidance scale: {results['guidance_scale']:g} (1: off). The values "
        "are those of one training; they vary with the seed.",
        "",
        *(["## Warnings", "", *warnings, ""] if warnings else []),
        "## Reproduce",
        "",
        f"`{command}` at commit {commit}, with these settings:",
        "",
        "```yaml",
        recipe_yaml(recipe).strip(),
        "```",
        "",
        "## License",
        "",
        "The code in this folder: Apache-2.0. The weights were trained on the images, whose own terms apply.",
        "",
    ]
    return "\n".join(lines)
