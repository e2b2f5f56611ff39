"""Converts checkpoints of the paper's release; network sizes are inferred from the shapes of the weights.

python -m gat.official CHECKPOINT.pt OUT/          (writes a pipeline folder, with Stable Diffusion's VAE)
"""

import argparse
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gat.data.sources import imagenet_names
from gat.gan.networks import Discriminator, Generator
from gat.release.pipeline import GATPipeline
from gat.sizes import SIZES

VAE = "stabilityai/sd-vae-ft-ema"  # which the release samples with

_ROPE = "feat_rope."  # tables that the sizes determine


def _depth(state: dict[str, Tensor], blocks: str = "blocks.") -> int:
    return len({name.split(".")[1] for name in state if name.startswith(blocks)})


def load_generator(state_dict: dict[str, Tensor], heads: int) -> Generator:
    """A `Generator` with weights of the release; KeyError or RuntimeError where some are missing or unknown."""
    classes, width = state_dict["w_avg"].shape
    channels, patch = state_dict["x_embedder.proj.weight"].shape[1:3]
    generator = Generator(
        width=width,
        depth=_depth(state_dict),
        heads=heads,
        patch=patch,
        latent_size=int(state_dict["pos_embed"].shape[1] ** 0.5) * patch,
        channels=channels,
        classes=classes,
        levels=_depth(state_dict, "final_layers."),
    )
    unused = (_ROPE, "x_embedder.")  # the release multiplies its output by zero
    generator.load_state_dict({name: t for name, t in state_dict.items() if not name.startswith(unused)})
    return generator


def load_discriminator(state_dict: dict[str, Tensor], heads: int, channels: int = 4) -> Discriminator:
    """A `Discriminator` with weights of the release; KeyError or RuntimeError where some are missing or unknown.

    `channels` are those of one latent; the weights show only those of all levels together.
    """
    width, stacked, patch, _ = state_dict["x_embedder.proj.weight"].shape
    repa = state_dict.get("proj.4.weight")
    discriminator = Discriminator(
        width=width,
        depth=_depth(state_dict),
        heads=heads,
        patch=patch,
        latent_size=int(state_dict["pos_embed"].shape[1] ** 0.5) * patch,
        channels=channels,
        classes=len(state_dict["y_embedder.embedding_table.weight"]),
        levels=stacked // channels,
        cmap_dim=len(state_dict["final_layer.1.weight"]),
        repa_dim=None if repa is None else len(repa),
        projector_dim=2048 if repa is None else repa.shape[1],
    )
    discriminator.load_state_dict({name: t for name, t in state_dict.items() if not name.startswith(_ROPE)})
    return discriminator


def head_count(state_dict: dict[str, Tensor]) -> int:
    """Number of attention heads of a network of the release: its width over the size of q_norm's weight.

    Raises:
        ValueError: one of the two is missing, or the quotient is no integer.
    """
    weight, norm = (state_dict.get(f"blocks.0.attn.{name}.weight") for name in ("proj", "q_norm"))
    if weight is None or norm is None or len(weight) % len(norm):
        raise ValueError("blocks.0.attn.proj.weight or q_norm.weight is missing, or their sizes do not fit")
    return len(weight) // len(norm)


def size_name(generator: Generator) -> str:
    """The paper's name of a generator's size, such as XL/2, or its width, depth, heads and patch."""
    depth, width, heads, patch = (generator.config[key] for key in ("depth", "width", "heads", "patch"))
    for name, size in SIZES.items():
        if size == (depth, width, heads):
            return f"{name}/{patch}"
    return f"width {width}, depth {depth}, {heads} heads, patch {patch}"


def read_checkpoint(path: str | Path, weights: str = "ema") -> dict[str, Tensor]:
    """The weights of one network in a checkpoint of the release's training.

    The file may hold only tensors, plain values and the training's options; no code in it is executed.

    Args:
        path: the `.pt` file.
        weights: `ema`, `generator` or `discriminator`.

    Raises:
        ValueError: the file is broken, has no such weights, or holds other objects.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} holds more than weights ({str(error).splitlines()[0]})") from None
        except RuntimeError as error:
            raise ValueError(f"{path} is broken ({str(error).splitlines()[0]})") from None
    state = content.get(weights) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has no {weights!r}; it has {found}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def convert(checkpoint: str | Path, out: str | Path, vae: str | Path = VAE, weights: str = "ema") -> GATPipeline:
    """Write a checkpoint of the release as a pipeline folder, and return the pipeline.

    Args:
        checkpoint: a `.pt` file of the release's training.
        out: the folder to write.
        vae: a hub id or a folder in diffusers' format.
        weights: `ema` or `generator`.

    Raises:
        ValueError: the checkpoint has no such weights, or they do not fit the generator.
    """
    state = read_checkpoint(checkpoint, weights)
    try:
        generator = load_generator(state, head_count(state)).eval()
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{checkpoint} holds no generator of the release: {error}") from None
    autoencoder = AutoencoderKL.from_pretrained(vae)
    names = imagenet_names() if generator.config["classes"] == 1000 else None
    pipeline = GATPipeline(generator, autoencoder, names)
    pipeline.save_pretrained(out)
    return pipeline


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m gat.official", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a .pt file of the release's training")
    parser.add_argument("out", help="the pipeline folder to write")
    parser.add_argument("--vae", default=VAE, help="hub id or folder (default: %(default)s)")
    parser.add_argument("--weights", default="ema", choices=["ema", "generator"], help="which (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        pipeline = convert(arguments.checkpoint, arguments.out, arguments.vae, arguments.weights)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    config = pipeline.generator.config
    print(f"{arguments.out}: {size_name(pipeline.generator)}, {config['classes']} classes")


if __name__ == "__main__":
    main()
