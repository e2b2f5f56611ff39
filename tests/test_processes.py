"""Shares of 64 processes, by the functions that compute them, and how long two real ones wait for each other."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import on_processes

from gat import runtime
from gat.data import shards
from gat.data.latents import TrainingBatches
from gat.data.shards import write_shards
from gat.evaluation import features
from gat.evaluation.features import _local_batches

PROCESSES = 64
IMAGENET, SAMPLES = 1_281_167, 50_000


@pytest.fixture
def as_process(monkeypatch):
    def become(index: int) -> None:
        state = SimpleNamespace(process_index=index, num_processes=PROCESSES, is_main_process=index == 0)
        for module in (shards, features):
            monkeypatch.setattr(module, "PartialState", lambda: state)

    monkeypatch.setattr(shards, "wait_for_everyone", lambda: None)
    return become


def test_files_of_imagenet_are_shared_evenly(as_process, tmp_path):
    shares: list[list[range]] = [[] for _ in range(PROCESSES)]
    for index, share in enumerate(shares):
        as_process(index)

        def note(path: Path, rows: range, _: object, share: list[range] = share) -> None:
            path.touch()
            share.append(rows)

        write_shards(tmp_path / str(index), "images", "arrow", IMAGENET, note, progress=False)
    counts = [sum(len(rows) for rows in share) for share in shares]
    covered = sorted((rows for share in shares for rows in share), key=lambda rows: rows.start)
    assert [rows.start for rows in covered[1:]] == [rows.stop for rows in covered[:-1]]
    assert (covered[0].start, covered[-1].stop, sum(counts)) == (0, IMAGENET, IMAGENET)
    assert max(counts) <= 1.05 * IMAGENET / PROCESSES  # the time of all is that of the last
    names = [path.name for folder in tmp_path.iterdir() for path in folder.iterdir()]
    assert len(names) == len({*names}) == len(covered)


def test_samples_are_shared_evenly_and_none_is_made_twice(as_process):
    found = []
    for index in range(PROCESSES):
        as_process(index)
        batches = [*_local_batches(np.arange, lambda images: images, SAMPLES, 64, progress=False)]
        assert 12 <= len(batches) <= 13
        found += [images for _, images in batches]
    assert np.array_equal(np.sort(np.concatenate(found)), np.arange(SAMPLES))


def test_a_batch_is_the_same_on_any_number_of_processes_and_an_epoch_has_every_image_once():
    latents: Any = range(1000)  # of which only the number is asked
    data = [TrainingBatches(latents, 512, 0, rank, PROCESSES) for rank in range(PROCESSES)]
    parts = [batches.indices(3)[batches.local_slice] for batches in data]
    assert {len(part) for part in parts} == {8}
    assert np.array_equal(np.concatenate(parts), TrainingBatches(latents, 512, 0).indices(3))
    order = np.concatenate([data[0].indices(step) for step in range(125)])  # 64 epochs
    assert all(np.array_equal(np.sort(epoch), np.arange(1000)) for epoch in order.reshape(64, 1000))


@pytest.mark.thorough
def test_a_process_that_downloads_may_take_longer_than_any_other_work(tmp_path):
    on_processes(2, __file__, tmp_path / "work")


if __name__ == "__main__":  # one of two processes
    runtime.COLLECTIVE_TIMEOUT = timedelta(seconds=6)
    process = runtime.make_accelerator()
    with runtime.main_process_first():
        if process.is_main_process:
            time.sleep(12)
    with runtime.exclusive(Path(sys.argv[1])):
        assert runtime.any_process(process.is_main_process, False) == [True, False]
