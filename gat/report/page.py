"""The study as one HTML file that needs no network: figures to touch, images to choose, a generator that runs in it."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from gat.config import MODEL, Training
from gat.report.figures import COSTS, MEASURES, Scaling, mean_text, shades, size_shades, study_of

HERE = Path(__file__).parent / "template"
VENDOR = HERE / "vendor"
TYPES = {".webp": "image/webp", ".mp4": "video/mp4", ".png": "image/png"}

METRICS = {
    "fid": "FID",
    "loss_d": "discriminator's loss",
    "loss_g": "generator's loss",
    "gap": "D(real) − D(fake)",
    "r1": "approximate R1",
    "r2": "approximate R2",
    "repa": "REPA's loss",
    "grad_d": "discriminator's gradient norm",
    "grad_g": "generator's gradient norm",
}
COLUMNS = [  # key, heading, digits: after the point, or −significant; None: text
    ("run", "run", None),
    ("seed", "seed", 0),
    ("width", "width", 0),
    ("depth", "depth", 0),
    ("patch", "patch", 0),
    ("params", "parameters", 0),
    ("gmacs", "GMACs", -3),
    ("train_gflops", "training GMACs", -4),
    *((key, name, digits) for key, (name, digits) in MEASURES.items()),
    ("warnings", "warnings", None),
]


def study_content(
    table: pd.DataFrame,
    curves: Mapping[Training, Mapping[str, pd.DataFrame]],
    colors: Sequence[str],
    highlight: str,
    floors: Mapping[str, float],
    resamplings: int,
) -> dict[str, Any]:
    """What the page draws of the study.

    Args:
        table: as for `gat.report.draw_scaling`.
        curves: of each training, frames with `step` and a column of the metric's name, by that name.
        colors: from the smallest size to the largest.
        highlight: colour of the model under test.
        floors: names and FIDs of what no generator is expected to beat.
        resamplings: behind the intervals.
    """
    costs = [_cost_content(Scaling.of(table, cost, resamplings)) | cost._asdict() for cost in COSTS]
    logged = {name for own in curves.values() for name in own}
    scaling = {
        "runs": list(dict.fromkeys(table.sort_values(["gmacs", "seed"]).run)),
        "sizes": list(size_shades(study_of(table), colors)),
        "colors": shades(table, colors, highlight),
        "rows": table.to_dict("records"),
        "costs": costs,
        "floors": dict(floors),
        "curves": [
            {"run": training.run, "seed": training.seed}
            | {name: [frame.step.tolist(), frame[name].tolist()] for name, frame in own.items()}
            for training, own in curves.items()
        ],
    }
    return {
        "scaling": scaling,
        "facts": _facts(table, costs[0]["law"]),
        "cost_names": [(i, cost.name) for i, cost in enumerate(COSTS)],
        "metric_names": [(name, text) for name, text in METRICS.items() if name in logged],
        "columns": [column for column in COLUMNS if column[0] in table and (table[column[0]] != "").any()],
    }


def lead_of(table: pd.DataFrame, resolution: int) -> str:
    """A sentence on what was run, on images of so many pixels."""
    study = table[table.run != MODEL]
    runs, seeds = study.run.nunique(), study.seed.nunique()
    what = f"{runs} {'run' if runs == 1 else 'runs'} with {seeds} {'seed' if seeds == 1 else 'seeds'} each and a model"
    steps = table.steps.dropna().unique()
    length = f", trained for {int(steps[0]):,} steps" if len(steps) == 1 else ""
    return (
        f"{what if runs else 'A model'} under test{length}, on images of side {resolution} in the latent "
        "space of an autoencoder. One step of a generator makes an image."
    )


def _facts(table: pd.DataFrame, law: Mapping[str, float] | None) -> list[dict[str, str]]:
    """A few numbers for the head of the page."""
    study, facts = study_of(table), []
    runs = study.run.unique()
    for run in dict.fromkeys([*runs[:1], *runs[-1:]]):
        facts.append({"label": f"FID of {run}", "value": mean_text(study.fid[study.run == run])})
    if law is not None:
        exponent = f"{law['exponent']:.2f}".replace("-", "−")
        facts.append({"label": f"exponent of FID in {COSTS[0].name}", "value": exponent})
    facts.append({"label": "trainings" if len(table) > 1 else "training", "value": str(len(table))})
    return facts


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON has not: null in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _cost_content(scaling: Scaling) -> dict[str, Any]:
    points, law, grid, band, forecast = scaling
    if law is not None and not all(map(np.isfinite, law)):  # runs of one cost
        law = forecast = None
    means = [
        {
            "run": run,
            "cost": float(cost),
            "fid": float(fids.mean()),
            "deviation": float(fids.std(ddof=1)) if len(fids) > 1 else None,
            "seeds": len(fids),
        }
        for run, cost, fids in zip(points.runs, points.costs, points.fids, strict=True)
    ]
    return {
        "means": means,
        "law": None if law is None else law._asdict() | {"grid": grid.tolist(), "fids": law(grid).tolist()},
        "band": band.tolist(),
        "forecast": None if forecast is None else forecast._asdict(),
    }


def render_page(content: Mapping[str, Any], assets: Mapping[str, Path]) -> str:
    """The page's HTML.

    Args:
        content: what `page.html` and `page.js` read: that of `study_content`, and more by section.
        assets: files by the names that `content` gives them; pictures and videos are embedded as they are, `.onnx`
            compressed.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["shown"] = _shown
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False, "allow_nan": False}
    encoded = {name: _encode(path) for name, path in sorted(assets.items())}
    if any(name.endswith(".onnx") for name in assets):
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm.gz"):
            encoded[name] = _encode(VENDOR / name)
    return environment.get_template("page.html").render(
        content=_finite(content),
        assets=encoded,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        js=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup((VENDOR / "plotly-basic.min.js").read_text(encoding="utf-8")),
    )


def _shown(value: object, digits: int | None) -> str:
    """A cell of the table: a number with so many digits after the point, or significant ones if negative."""
    if value is None or digits is None:
        return "" if value is None else str(value)
    return f"{value:.{digits}f}" if digits >= 0 else f"{value:.{-digits}g}"


def _encode(path: Path) -> dict[str, str]:
    """An asset as the page holds it: its type, and base64 of it, compressed where its type is not so already."""
    content, kind = path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream")
    if path.suffix in (".onnx", ".mjs"):
        content, kind = gzip.compress(content, mtime=0), "application/gzip"
    return {"type": kind, "data": base64.b64encode(content).decode()}
