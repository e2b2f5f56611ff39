"""A pipeline as one ONNX graph that a browser runs: noise, labels and two sliders in, pixels out."""

import logging
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from gat.data.pixels import to_uint8
from gat.gan.networks import Z_DIM
from gat.release.pipeline import GATPipeline

INPUTS = ("z", "labels", "truncation_psi", "mix")


class LiveGenerator(nn.Module):
    """A generator and its decoder, for one image on the way from one sample to another."""

    def __init__(self, pipeline: GATPipeline) -> None:
        super().__init__()
        self.generator, self.vae = pipeline.generator, pipeline.vae

    def forward(self, z: Tensor, labels: Tensor, truncation_psi: Tensor, mix: Tensor) -> Tensor:
        """Pixels uint8 (H, W, 3).

        Args:
            z: (2, 64) standard normal, of the two samples.
            labels: (2,) integers.
            truncation_psi: (1,) in [0, 1], as the pipeline's.
            mix: (1,) in [0, 1], from the first sample's style to the second one's.
        """
        w = self.generator.mapping(z, labels)
        w = w.lerp(self.generator.w_avg[labels], truncation_psi)
        w = w[:1].lerp(w[1:], mix)
        latents = self.generator.synthesis(w)[-1]
        return to_uint8(self.vae.decode(latents / self.vae.config["scaling_factor"]).sample)[0]


def size_megabytes(pipeline: GATPipeline) -> float:
    """Size of the weights of the generator and of the VAE's decoder, in float32."""
    parts = (pipeline.generator, pipeline.vae.decoder, pipeline.vae.post_quant_conv)
    return sum(p.numel() for part in parts if part is not None for p in part.parameters()) * 4 / 1e6


def export_onnx(pipeline: GATPipeline, path: Path) -> None:
    """Write the graph of a `LiveGenerator`, in float32, without where it was made."""
    device = pipeline.generator.w_avg.device
    live = LiveGenerator(pipeline).eval()
    example = (
        torch.zeros(2, Z_DIM, device=device),
        torch.zeros(2, dtype=torch.int64, device=device),
        torch.zeros(1, device=device),
        torch.zeros(1, device=device),
    )
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = torch.onnx.export(
        live, example, input_names=INPUTS, output_names=["pixels"], dynamo=True, verbose=False, external_data=False
    )
    model = program.model_proto  # type: ignore[union-attr]
    parts = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info, *model.functions]
    for part in (*parts, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")  # they hold lines of code with their paths
        part.ClearField("doc_string")
    onnx.save(model, str(path))
