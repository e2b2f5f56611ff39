"""Metrics of another model's samples: params.yaml's `samples.NAME` -> results/NAME/samples.

python -m stages samples NAME          (as many processes as Accelerate is configured for)

They are measured as those of trained models are, of the first `evaluate.samples` images or, if there are more, of as
many evenly spaced ones.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from gat.config import Params, ParamsError
from gat.data.images import Images
from gat.evaluation.fid import evenly_spaced
from gat.evaluation.given import read_samples
from gat.evaluation.grid import image_grid
from gat.evaluation.measure import Measure, References
from gat.evaluation.warnings import warnings_of
from gat.files import atomic_write
from gat.runtime import make_accelerator
from stages import ENCODER, EXTRACTOR, IMAGES, REFERENCE, STATISTICS, results_of_samples


def main(params: Params) -> None:
    """Run the stage."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in params.samples:
        raise ParamsError(f"samples: {name!r} is not allowed; allowed: {', '.join(params.samples) or 'no entry yet'}")
    entry, results, accelerator = params.samples[name], results_of_samples(name), make_accelerator(params.compute)
    measure = Measure(EXTRACTOR, ENCODER, accelerator.device)
    references = References.load(REFERENCE, STATISTICS)
    given = read_samples(Path(entry.path), Images(IMAGES).classes, f"samples.{name}.path")
    index = evenly_spaced(given.number, params.evaluate.samples)

    def images(start: int, stop: int) -> np.ndarray:
        return np.concatenate([given.images(i, i + 1) for i in index[start:stop]])

    features = measure.features(images, len(index), params.compute.sample_batch)
    if not accelerator.is_main_process:
        return
    labels = None if given.labels is None else given.labels[index]
    metrics = measure.metrics(features, labels, references, params.evaluate.seed)
    warnings = warnings_of({}, len(index), references.main, params.metrics.reference is None)
    if len(index) < params.evaluate.samples:
        warnings.append(f"FID of {len(index)} samples, not {params.evaluate.samples}: fewer make it larger")
    warnings += [f"left out: {line}" for line in given.left_out]
    results.write_run({"run": name, "seed": None})
    with atomic_write(results.samples) as path:
        Image.fromarray(image_grid(images(0, min(100, len(index))), 10)).save(path)
    measured = measure.description | {"samples": len(index), "warnings": warnings, "params": entry.params}
    results.write_evaluation({**metrics, "gmacs": entry.gmacs}, measured)
