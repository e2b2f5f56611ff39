"""The files of one training's results: their only reader and writer."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gat.files import write_json


class Results:
    """A folder of results.

    `run.json`      what was trained: size, steps, learning rate, γ, mean gap at the end (of `train`)
    `curves/`       DVCLive's folder, a `.tsv` of `step` and a value for each metric; empty if pretrained (of `train`)
    `metrics.json`  the numbers that DVC compares (of `evaluate`)
    `evaluation.json`  cost, how the metrics were measured, and `warnings` (of `evaluate`)
    `samples.png`   a row a class, a column a seed (of `evaluate`)
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.curves_folder, self.samples = folder, folder / "curves", folder / "samples.png"

    def write_run(self, content: Mapping[str, Any]) -> None:
        write_json(self.folder / "run.json", content)

    def write_evaluation(self, metrics: Mapping[str, float], evaluation: Mapping[str, Any]) -> None:
        write_json(self.folder / "metrics.json", metrics)
        write_json(self.folder / "evaluation.json", evaluation)

    def curve_logger(self) -> tuple[Callable[[Mapping[str, float]], None], Callable[[], None]]:
        """Begin the curves anew: a function that adds a row of `step` and metrics, and one that ends them."""
        from dvclive.live import Live

        live = Live(str(self.curves_folder), dvcyaml=None, report=None, save_dvc_exp=False)

        def log(row: Mapping[str, float]) -> None:
            live.step = int(row["step"])
            for name, value in row.items():
                if name != "step":
                    live.log_metric(name, value)

        return log, live.end

    def read(self, *parts: str) -> dict[str, Any]:
        """The content of `run`, `metrics` and `evaluation`, or of some of them, together."""
        paths = (self.folder / f"{part}.json" for part in parts or ("run", "metrics", "evaluation"))
        return {key: value for path in paths for key, value in json.loads(path.read_text()).items()}

    def curves(self) -> dict[str, np.ndarray]:
        """What was logged in training, by metric: rows (N, 2) of a step and a value; of a pretrained model nothing."""
        paths = sorted((self.curves_folder / "plots/metrics").glob("*.tsv"))
        return {path.stem: np.loadtxt(path, skiprows=1, ndmin=2) for path in paths}
