"""Writes many items to a few large files on all processes; complete files survive an interruption."""

from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm

from gat.files import atomic_write
from gat.runtime import wait_for_everyone

SHARD = 5120  # items per file, for any number of processes; ImageNet is 251 files, which 64 processes share evenly

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
    """Write this process's share of the files `name-00000.suffix`, …; existing files are complete and kept.

    Args:
        folder: created if missing.
        name: of the items; starts the file names.
        suffix: of the file names.
        count: number of items.
        write: writes the items of a range to a path, and calls its last argument with the number of items just written.
        shard: items per file.
        progress: show a progress bar.
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
            with atomic_write(path) as temporary:
                write(temporary, part, bar.update)
    wait_for_everyone()
