"""Many items in a few large files, which processes share out among themselves and which survive a kill."""

import os
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

SHARD = 16384  # items of one file: however many processes write, the files are the same

Advance = Callable[[int], object]


def write_shards(
    folder: Path,
    name: str,
    suffix: str,
    count: int,
    write: Callable[[Path, range, Advance], None],
    shard: int = SHARD,
    progress: bool = True,
) -> None:
    """Write this process's share of the files `name-00000.suffix`, …; those that are there are whole, and stay.

    Args:
        folder: where to; it is made.
        name: of the items.
        suffix: of the files.
        count: how many items there are.
        write: writes the items of a range to a path and tells its last argument how many it has done.
        shard: items of one file.
        progress: show a bar of this process's share.
    """
    state = PartialState()
    folder.mkdir(parents=True, exist_ok=True)
    parts = [range(start, min(start + shard, count)) for start in range(0, count, shard)]
    mine = list(enumerate(parts))[state.process_index :: state.num_processes]
    hidden = not (progress and state.is_main_process)
    with tqdm(desc=name, total=sum(len(part) for _, part in mine), unit="image", disable=hidden) as bar:
        for index, part in mine:
            path = folder / f"{name}-{index:05d}.{suffix}"
            if path.exists():
                bar.update(len(part))
                continue
            unfinished = path.with_name(f"unfinished-{path.name}")
            write(unfinished, part, bar.update)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.rename(path)
    state.wait_for_everyone()
