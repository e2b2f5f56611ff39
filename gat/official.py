"""Reads networks of the paper's release, whose sizes are taken from the shapes of their weights.

python -m gat.official CHECKPOINT.pt OUT/ turns a checkpoint into a pipeline folder, with Stable Diffusion's VAE.
"""

import argparse
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gat.images import imagenet_names
from gat.networks import SIZES, Discriminator, Generator
from gat.pipeline import GATPipeline

VAE = "stabilityai/sd-vae-ft-ema"  # with which the release samples

_COMMON = {
    r"\.attn\.proj\.": ".attention.out.",
    r"\.attn\.": ".attention.",
    r"\.mlp\.w12\.": ".mlp.w_in.",
    r"\.mlp\.w3\.": ".mlp.w_out.",
    r"\.adaLN_modulation\.1\.": ".style.",
    r"\.ls_attn$": ".scale1",
    r"\.ls_mlp$": ".scale2",
    r"^x_embedder\.proj\.": "patchify.",
    r"^y_embedder\.embedding_table\.": "class_embedding.",
    r"^y_embedder\.latent_embedder\.": "class_mapping.",
    r"^latent_embedder\.": "mapping.",
    r"^final_layers\.": "image_heads.",
    r"^final_layer\.0\.": "norm.",
    r"^final_layer\.1\.": "to_class_map.",
    r"^proj\.": "repa_head.",
    r"^w_avg$": "class_means",
    r"^pos_embed$": "positions",
}
_DERIVED = ("feat_rope.",)  # tables that follow from the sizes


def _renamed(state_dict: dict[str, Tensor], *, drop: tuple[str, ...] = ()) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        if not name.startswith(_DERIVED + drop):
            for pattern, replacement in _COMMON.items():
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor[0] if name == "positions" else tensor  # theirs has a dimension for the batch
    return renamed


def _depth(state: dict[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def load_generator(state_dict: dict[str, Tensor], heads: int) -> Generator:
    """`Generator` with the weights of the release's; KeyError or RuntimeError on missing or unknown names."""
    state = _renamed(state_dict, drop=("x_embedder.",))  # which the release multiplies by zero
    classes, width = state_dict["w_avg"].shape
    channels, patch = state_dict["x_embedder.proj.weight"].shape[1:3]
    generator = Generator(
        width=width,
        depth=_depth(state),
        heads=heads,
        patch=patch,
        latent_size=int(state_dict["pos_embed"].shape[1] ** 0.5) * patch,
        channels=channels,
        classes=classes,
        levels=len({name.split(".")[1] for name in state if name.startswith("image_heads.")}),
    )
    generator.load_state_dict(state)
    return generator


def load_discriminator(state_dict: dict[str, Tensor], heads: int, channels: int = 4) -> Discriminator:
    """`Discriminator` with the weights of the release's; raises RuntimeError on missing or unknown names.

    `channels` is those of one latent; the stacked levels do not tell.
    """
    state = _renamed(state_dict)
    width, stacked, patch, _ = state["patchify.weight"].shape
    repa = state.get("repa_head.4.weight")
    discriminator = Discriminator(
        width=width,
        depth=_depth(state),
        heads=heads,
        patch=patch,
        latent_size=int(state_dict["pos_embed"].shape[1] ** 0.5) * patch,
        channels=channels,
        classes=len(state["class_embedding.weight"]),
        levels=stacked // channels,
        class_map_dim=len(state["to_class_map.weight"]),
        repa_dim=None if repa is None else len(repa),
        projector_dim=2048 if repa is None else repa.shape[1],
    )
    discriminator.load_state_dict(state)
    return discriminator


def head_count(state_dict: dict[str, Tensor]) -> int:
    """Heads of a network of the release, off the weights that normalize its queries.

    Raises:
        ValueError: there are none, or they do not fit.
    """
    weight, norm = (state_dict.get(f"blocks.0.attn.{name}.weight") for name in ("proj", "q_norm"))
    if weight is None or norm is None or len(weight) % len(norm):
        raise ValueError("its weights blocks.0.attn.q_norm and .proj are missing or odd")
    return len(weight) // len(norm)


def size_name(generator: Generator) -> str:
    """The paper's name of a generator's size, such as XL/2, or its width, depth and heads."""
    config = generator.config
    size = (config["depth"], config["width"], config["heads"])
    names = [name for name, known in SIZES.items() if known == size]
    name = names[0] if names else f"width {size[1]}, depth {size[0]}, {size[2]} heads, patch "
    return f"{name}/{config['patch']}" if names else f"{name}{config['patch']}"


def read_checkpoint(path: str | Path, weights: str = "ema") -> dict[str, Tensor]:
    """The weights of one network of a checkpoint that the release's training saved.

    Nothing in the file is executed: besides tensors, only the options of the training are let in.

    Args:
        path: the file.
        weights: `ema`, `generator` or `discriminator`.

    Raises:
        ValueError: there are no such weights in it, or it holds objects of other kinds.
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
    """Write the pipeline folder of a checkpoint of the release, and return the pipeline.

    Args:
        checkpoint: a `.pt` that the release's training saved.
        out: the folder to write.
        vae: a hub id or a folder in diffusers' format.
        weights: `ema` or `generator`.

    Raises:
        ValueError: the checkpoint has no such weights, or they are not a generator's of the release.
    """
    state = read_checkpoint(checkpoint, weights)
    try:
        generator = load_generator(state, head_count(state)).eval()
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{checkpoint} is no generator of the release: {error}") from None
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
