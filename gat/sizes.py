"""Network sizes of the paper, and rules that complete the sizes in params.yaml. Imports nothing heavy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HEAD_SIZE = 64  # target of `heads: auto`


class Size(NamedTuple):
    """A row of the paper's table of sizes, which are DiT's. A size and a patch make a model, such as XL/2."""

    depth: int
    width: int
    heads: int


SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}


def head_count(width: int, heads: int | str) -> int:
    """`heads`, or for `auto` the number of heads whose size is a multiple of 4 and closest to 64."""
    if isinstance(heads, int):
        return heads
    fitting = [h for h in range(1, width + 1) if width % h == 0 and (width // h) % 4 == 0]
    return min(fitting, key=lambda h: (abs(math.log(width / h / HEAD_SIZE)), h), default=1)


def discriminator_size(generator: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A discriminator's width, depth, heads and patch: its generator's, overridden by `changes` that are not None.

    If the width is overridden and the number of heads is not, heads are `auto`.
    """
    changed = {key: value for key, value in changes.items() if value is not None}
    heads = {"heads": "auto"} if "width" in changed else {}
    return {key: generator[key] for key in ("width", "depth", "heads", "patch")} | heads | changed


def level_counts(schedule: str, count: int) -> tuple[int, int]:
    """Numbers of level images that a generator makes and that its discriminator sees."""
    return {"none": (1, 1), "heads": (count, 1)}.get(schedule, (count, count))


def norm_groups(channels: Sequence[int]) -> int:
    """Number of normalization groups of a small autoencoder with these channels; it must divide all of them."""
    return min(8, *channels)
