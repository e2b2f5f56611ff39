"""Reads networks of the paper's release, whose sizes are taken from the shapes of their weights."""

import re

from torch import Tensor

from gat.networks import Discriminator, Generator

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
}
# Tables that follow from the sizes, and the generator's patch embedding, which the release multiplies by zero.
_DERIVED = ("pos_embed", "feat_rope.")


def _renamed(state_dict: dict[str, Tensor], *, drop: tuple[str, ...] = ()) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state_dict.items():
        if not name.startswith(_DERIVED + drop):
            for pattern, replacement in _COMMON.items():
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
    return renamed


def _depth(state: dict[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def load_generator(state_dict: dict[str, Tensor], heads: int) -> Generator:
    """`Generator` with the weights of the release's; raises RuntimeError on missing or unknown names."""
    state = _renamed(state_dict, drop=("x_embedder.",))
    classes, width = state["class_means"].shape
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
