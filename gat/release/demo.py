"""A pipeline to try, as a Gradio app: class, seed, truncation, guidance, and a walk between two samples.

python -m gat.release.demo RUN [--seed N] [--share]          (RUN: a run's name, a pipeline folder or a repository)

Needs `pip install gradio`. In a Space: `make_demo(GATPipeline.from_pretrained("USER/NAME")).launch()`.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gat.data.pixels import decode
from gat.evaluation.sampling import seed_noise
from gat.release.pipeline import GATPipeline

SIDE = 512  # pixels at which small images are shown, at least


def make_image(
    pipeline: GATPipeline,
    labels: tuple[int, int],
    seeds: tuple[int, int],
    mix: float = 0.0,
    truncation_psi: float = 0.0,
    guidance_scale: float = 1.0,
) -> np.ndarray:
    """One image, uint8 (H, W, 3), on the way from one sample (`mix` 0) to another (1).

    At its ends it is the pipeline's own of that label and seed.
    """
    generator, device = pipeline.generator, pipeline.generator.w_avg.device
    with torch.no_grad():
        at = seed_noise(seeds).to(device, generator.dtype), torch.tensor(labels, device=device)
        w = generator.mapping(*at, truncation_psi, guidance_scale)
        latents = generator.synthesis(w[:1].lerp(w[1:], mix))[-1]
    return decode(pipeline.vae, latents)[0].cpu().numpy()


def make_demo(pipeline: GATPipeline) -> Any:
    """The app, a `gradio.Blocks`."""
    import gradio as gr  # an extra

    names = pipeline.config.classes or [str(label) for label in range(pipeline.generator.config["classes"])]
    choices = [(name, label) for label, name in enumerate(names)]

    def show(label_a: int, seed_a: float, label_b: int, seed_b: float, *sliders: float) -> Image.Image:
        seeds = int(seed_a or 0), int(seed_b or 0)
        picture = Image.fromarray(make_image(pipeline, (label_a, label_b), seeds, *sliders))
        factor = max(1, -(-SIDE // picture.width))
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)

    with gr.Blocks(title="GAT") as demo:
        gr.Markdown("# GAT: one-step image generation\nChoose two samples and walk between their styles.")
        with gr.Row():
            picture = gr.Image(label="image", format="png")
            with gr.Column():
                inputs: list[Any] = []
                for name, place in (("A", 0), ("B", min(1, len(choices) - 1))):
                    with gr.Row():
                        inputs.append(gr.Dropdown(choices, value=place, label=f"class of {name}"))
                        inputs.append(gr.Number(place, label=f"seed of {name}", precision=0, minimum=0))
                inputs.append(gr.Slider(0, 1, 0, label="walk from A to B"))
                inputs.append(gr.Slider(0, 1, 0, label="truncation ψ"))
                inputs.append(gr.Slider(0, 4, 1, label="guidance"))
        for control in inputs:
            control.change(show, inputs, picture, show_progress="hidden")
        demo.load(show, inputs, picture)
    return demo


def find(source: str, seed: int) -> str:
    """The pipeline of a run's seed if `source` is the name of one made here, or `source` itself."""
    folder = Path("runs") / source / ("" if source == "model" else f"seed-{seed}") / "pipeline"
    return str(folder) if folder.exists() else source


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gat.release.demo", description="Try a pipeline in a browser.")
    parser.add_argument("run", help="a run's name, a pipeline folder or the name of a repository on the hub")
    parser.add_argument("--seed", type=int, default=0, help="of the run's training")
    parser.add_argument("--share", action="store_true", help="also under a public address of Gradio's")
    arguments = parser.parse_args()
    if find_spec("gradio") is None:
        parser.error("it needs Gradio: pip install gradio")
    pipeline = GATPipeline.from_pretrained(find(arguments.run, arguments.seed))
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    make_demo(pipeline).launch(share=arguments.share)


if __name__ == "__main__":
    main()
