"""A Gradio app that samples from a pipeline and interpolates between two samples.

python -m gat.release.demo RUN [--seed N] [--share]          (RUN: a run's name, a pipeline folder or a hub repository)

Needs `pip install gradio`. In a Space: `make_demo(GATPipeline.from_pretrained("USER/NAME")).launch()`.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gat.release.pipeline import GATPipeline
from gat.release.styles import sample_styles, style_images

MIN_SIDE = 512  # pixels; smaller images are enlarged


def make_image(
    pipeline: GATPipeline,
    labels: tuple[int, int],
    seeds: tuple[int, int],
    mix: float = 0.0,
    truncation_psi: float = 0.0,
    guidance_scale: float = 1.0,
) -> np.ndarray:
    """One image uint8 (H, W, 3) of a style between two samples'.

    With `mix` 0 it is the pipeline's image of the first label and seed, with `mix` 1 that of the second.
    """
    w = sample_styles(pipeline, labels, seeds, truncation_psi, guidance_scale)
    return style_images(pipeline.generator, pipeline.vae, w[:1].lerp(w[1:], mix))[0].cpu().numpy()


def make_demo(pipeline: GATPipeline) -> Any:
    """The app, a `gradio.Blocks`."""
    import gradio as gr  # optional dependency

    names = pipeline.config.classes or [str(label) for label in range(pipeline.generator.config["classes"])]
    choices = [(name, label) for label, name in enumerate(names)]

    def show(label_a: int, seed_a: float, label_b: int, seed_b: float, *sliders: float) -> Image.Image:
        seeds = int(seed_a or 0), int(seed_b or 0)
        image = Image.fromarray(make_image(pipeline, (label_a, label_b), seeds, *sliders))
        factor = max(1, -(-MIN_SIDE // image.width))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)

    with gr.Blocks(title="GAT") as demo:
        gr.Markdown("# GAT: one-step image generation\nChoose two samples and interpolate between their styles.")
        with gr.Row():
            output = gr.Image(label="image", format="png")
            with gr.Column():
                inputs: list[Any] = []
                for sample, default in (("A", 0), ("B", min(1, len(choices) - 1))):
                    with gr.Row():
                        inputs.append(gr.Dropdown(choices, value=default, label=f"class of sample {sample}"))
                        inputs.append(gr.Number(default, label=f"seed of sample {sample}", precision=0, minimum=0))
                inputs.append(gr.Slider(0, 1, 0, label="interpolation from A to B"))
                inputs.append(gr.Slider(0, 1, 0, label="truncation ψ"))
                inputs.append(gr.Slider(0, 4, 1, label="guidance scale"))
        for control in inputs:
            control.change(show, inputs, output, show_progress="hidden")
        demo.load(show, inputs, output)
    return demo


def find(source: str, seed: int) -> str:
    """The pipeline folder of a run trained here if `source` is its name, else `source` itself."""
    folder = Path("runs") / source / ("" if source == "model" else f"seed-{seed}") / "pipeline"
    return str(folder) if folder.exists() else source


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gat.release.demo", description="Try a pipeline in a browser.")
    parser.add_argument("run", help="a run's name, a pipeline folder or a repository of the hub")
    parser.add_argument("--seed", type=int, default=0, help="of the run's training (default: %(default)s)")
    parser.add_argument("--share", action="store_true", help="also serve it at a public Gradio link")
    arguments = parser.parse_args()
    if find_spec("gradio") is None:
        parser.error("the demo needs Gradio: pip install gradio")
    pipeline = GATPipeline.from_pretrained(find(arguments.run, arguments.seed))
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    make_demo(pipeline).launch(share=arguments.share)


if __name__ == "__main__":
    main()
