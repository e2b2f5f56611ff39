"""Reads and writes all files with the results of a training."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gat.files import write_json


class Results:
    """The results folder of a training.

    `run.json`         size, steps, learning rate, γ, and mean gap at the end; written by `train`
    `curves/`          DVCLive's folder: a `.tsv` of `step` and value per metric, none if pretrained; written by `train`
    `metrics.json`     the metrics that DVC compares; written by `evaluate`
    `evaluation.json`  cost, how the metrics were measured, and `warnings`; written by `evaluate`
    `samples.png`      rows: classes; columns: seeds; written by `evaluate`
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.curves_folder, self.samples = folder, folder / "curves", folder / "samples.png"

    def write_run(self, content: Mapping[str, Any]) -> None:
        write_json(self.folder / "run.json", content)

    def write_evaluation(self, metrics: Mapping[str, float | None], evaluation: Mapping[str, Any]) -> None:
        write_json(self.folder / "metrics.json", metrics)
        write_json(self.folder / "evaluation.json", evaluation)

    def curve_logger(self) -> tuple[Callable[[Mapping[str, float]], None], Callable[[], None]]:
        """Start new curves: returns a function that adds a row of `step` and metrics, and one that ends the curves."""
        from dvclive.live import Live

        live = Live(str(self.curves_folder), dvcyaml=None, report=None, save_dvc_exp=False)

        def log(row: Mapping[str, float]) -> None:
            live.step = int(row["step"])
            for name, value in row.items():
                if name != "step":
                    live.log_metric(name, value)

        return log, live.end

    def read(self, *parts: str) -> dict[str, Any]:
        """The merged content of the JSON files named in `parts`; by default `run`, `metrics` and `evaluation`."""
        paths = (self.folder / f"{part}.json" for part in parts or ("run", "metrics", "evaluation"))
        return {key: value for path in paths for key, value in json.loads(path.read_text()).items()}

    def curves(self) -> dict[str, np.ndarray]:
        """The curves of the training by metric, rows (N, 2) of a step and a value; empty for a pretrained model."""
        paths = sorted((self.curves_folder / "plots/metrics").glob("*.tsv"))
        return {path.stem: np.loadtxt(path, skiprows=1, ndmin=2) for path in paths}
