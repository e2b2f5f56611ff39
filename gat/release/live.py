"""The live generator of the report's page: a pipeline as one ONNX graph that a browser runs."""

import copy
import logging
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from gat.gan.networks import Z_DIM
from gat.release.pipeline import GATPipeline
from gat.release.styles import style_images

INPUTS = ("z", "labels", "truncation_psi", "mix")


class LiveGenerator(nn.Module):
    """A generator and its VAE, which interpolate between two samples."""

    def __init__(self, pipeline: GATPipeline) -> None:
        super().__init__()
        self.generator, self.vae = pipeline.generator, pipeline.vae

    def forward(self, z: Tensor, labels: Tensor, truncation_psi: Tensor, mix: Tensor) -> Tensor:
        """Pixels uint8 (H, W, 3).

        Args:
            z: (2, Z_DIM) standard normal noise of the two samples.
            labels: (2,) integers.
            truncation_psi: (1,) in [0, 1], as in `GATPipeline`.
            mix: (1,) in [0, 1], from the first sample's style to the second's.
        """
        w = self.generator.mapping(z, labels)
        w = w.lerp(self.generator.w_avg[labels], truncation_psi)  # `mapping` takes a number, not an input of a graph
        return style_images(self.generator, self.vae, w[:1].lerp(w[1:], mix))[0]


def size_megabytes(pipeline: GATPipeline) -> float:
    """Size in MB of the weights of the generator and of the VAE's decoder in float32."""
    parts = (pipeline.generator, pipeline.vae.decoder, pipeline.vae.post_quant_conv)
    return sum(p.numel() for part in parts if part is not None for p in part.parameters()) * 4 / 1e6


def export_onnx(pipeline: GATPipeline, path: Path) -> None:
    """Write the graph of a `LiveGenerator` in float32, without paths of this machine.

    A copy on the CPU is traced, since ONNX does not have all operations that networks on a GPU use. The pipeline stays
    on its device, in its dtype.
    """
    live = copy.deepcopy(LiveGenerator(pipeline)).to("cpu", torch.float32).eval()
    example = (torch.zeros(2, Z_DIM), torch.zeros(2, dtype=torch.int64), torch.zeros(1), torch.zeros(1))
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
