"""Sizes of networks, and the rules by which params.yaml's sizes become full ones. Imports nothing heavy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HEAD_SIZE = 64  # that `heads: auto` aims at


class Size(NamedTuple):
    """One row of the paper's table of sizes (DiT's): a model is a size and a patch, such as XL/2."""

    depth: int
    width: int
    heads: int


SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}


def head_count(width: int, heads: int | str) -> int:
    """`heads`, or for `auto` the number of heads whose size is nearest to 64 and a multiple of 4."""
    if isinstance(heads, int):
        return heads
    fitting = [h for h in range(1, width + 1) if width % h == 0 and (width // h) % 4 == 0]
    return min(fitting, key=lambda h: (abs(math.log(width / h / HEAD_SIZE)), h), default=1)


def discriminator_size(generator: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A discriminator's width, depth, heads and patch: its generator's, but for `changes` that are not None.

    Another width without a number of heads means `auto` heads.
    """
    changed = {key: value for key, value in changes.items() if value is not None}
    heads = {"heads": "auto"} if "width" in changed else {}
    return {key: generator[key] for key in ("width", "depth", "heads", "patch")} | heads | changed


def level_count(schedule: str, count: int) -> int:
    """Levels of a generator: `count`, or without noise guidance the finished image alone."""
    return 1 if schedule == "none" else count


def norm_groups(channels: Sequence[int]) -> int:
    """Normalization groups of a small autoencoder with layers of so many channels; it must divide all of them."""
    return min(8, *channels)
