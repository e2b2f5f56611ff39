"""Latents by index out of the memory-mapped folder, against one .npy file a sample, as the release reads them.

python benchmarks/loader.py [--folder DIR]

Throughput on real files, cold (after the page cache was told to forget them) and warm, medians of five; start-up
time and memory of a fresh process (its own; mapped files come and go) at 10⁴, 10⁵ and 10⁶ samples, in sparse files.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gat.data.latents import Latents, TrainingBatches
from gat.data.shards import SHARD

SHAPE = (2, 8, 32, 32)  # mirror images, 2C, H, W of ImageNet-256
BATCH, FILES, ROUNDS = 64, 5000, 5


def write_folder(folder: Path, count: int, sparse: bool) -> None:
    folder.mkdir(parents=True)
    for i, start in enumerate(range(0, count, SHARD)):
        rows = min(SHARD, count - start)
        path = folder / f"moments-{i:05d}.npy"
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, *SHAPE))
        if not sparse:
            for row in range(rows):
                file[row] = row % 7
        file.flush()
    np.save(folder / "labels.npy", np.arange(count) % 1000)
    info = {"scaling_factor": 0.18215, "classes": [str(i) for i in range(1000)], "digest": ""}
    (folder / "latents.json").write_text(json.dumps(info))


def forget(folder: Path) -> None:
    """Tell the page cache that a folder's files are not needed."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def rate(read, steps: int) -> float:
    begin = time.perf_counter()
    for step in range(steps):
        read(step)
    return steps * BATCH / (time.perf_counter() - begin)


def throughput(folder: Path) -> None:
    write_folder(folder / "shards", FILES, sparse=False)
    (folder / "files").mkdir()
    for i in range(FILES):
        np.save(folder / f"files/{i}.npy", np.full(SHAPE[1:], i % 7, dtype=np.float16))
    batches = TrainingBatches(Latents(folder / "shards"), BATCH, seed=0)

    def one_file_a_sample(step: int) -> np.ndarray:
        return np.stack([np.load(folder / f"files/{i}.npy") for i in batches.indices(step)])

    print("| state | folder, samples/s | one file a sample, samples/s | ratio |\n| --- | --- | --- | --- |")
    for state in ("cold", "warm"):
        rates = []
        for _ in range(ROUNDS):
            if state == "cold":
                forget(folder / "shards")
                forget(folder / "files")
            rates.append((rate(batches.__getitem__, 78), rate(one_file_a_sample, 78)))
        ours, theirs = np.median(rates, axis=0)
        print(f"| {state} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} |", flush=True)


STARTUP = """
import resource, sys, time
from gat.data.latents import Latents, TrainingBatches
def resident(): return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) / 1024
before, begin = resident(), time.perf_counter()
batches = TrainingBatches(Latents(sys.argv[1]), 64, seed=0)
batches[0]
ready = time.perf_counter() - begin
for step in range(1, 100): batches[step]
print(f"{ready * 1000:.0f} {before:.0f} {resident() - before:.0f}")
"""


def start_up(folder: Path) -> None:
    print("\n| samples | first batch, ms | memory of the process before, MiB | added after 100 batches, MiB |")
    print("| --- | --- | --- | --- |")
    for count in (10**4, 10**5, 10**6):
        write_folder(folder / str(count), count, sparse=True)
        done = subprocess.run(
            [sys.executable, "-c", STARTUP, folder / str(count)], capture_output=True, text=True, check=True
        )
        print(f"| {count:,} | {' | '.join(done.stdout.split())} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as place:
        throughput(Path(place))
        start_up(Path(place))
