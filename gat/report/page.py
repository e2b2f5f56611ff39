"""The study as one HTML file that needs no network: interactive figures, samples, a generator that runs in the page."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from gat.config import MODEL, Params, Training
from gat.report.columns import COLUMNS, CURVES, Column, mean_text
from gat.report.figures import Curves, run_colors, size_colors
from gat.report.scaling_laws import EqualCompute, Scaling
from gat.report.settings import as_yaml, plain_name, recipe_yaml
from gat.report.tables import equal_text, law_texts, trend_text
from gat.report.trainings import smallest_and_largest, study_of

TEMPLATE = Path(__file__).parent / "template"
VENDOR = TEMPLATE / "vendor"
TYPES = {".webp": "image/webp", ".mp4": "video/mp4", ".png": "image/png"}


def study_content(
    table: pd.DataFrame,
    curves: Curves,
    scalings: Sequence[Scaling],
    equal: EqualCompute | None,
    colors: Sequence[str],
    highlight: str,
    floors: Mapping[str, float],
) -> dict[str, Any]:
    """The study's numbers for the page; arguments as for `gat.report.figures.draw_scaling`, with all curves."""
    logged = {name for own in curves.values() for name in own}
    scaling = {
        "runs": list(dict.fromkeys(table.sort_values(["gmacs", "seed"]).run)),
        "sizes": list(size_colors(study_of(table), colors)),
        "colors": run_colors(table, colors, highlight),
        "rows": table.to_dict("records"),
        "costs": [_cost_content(one) for one in scalings],
        "floors": dict(floors),
        "curves": [
            training._asdict() | {name: rows.T.tolist() for name, rows in own.items()}
            for training, own in curves.items()
        ],
    }
    return {
        "scaling": scaling,
        "cost_options": [(i, one.axis.name) for i, one in enumerate(scalings)],
        "facts": _facts(table, scalings[0]),
        "statements": [*filter(None, (trend_text(study_of(table)), equal_text(table, equal) if equal else ""))],
        "curve_columns": [column._asdict() for column in CURVES if column.key in logged],
    }


def _facts(table: pd.DataFrame, scaling: Scaling) -> list[tuple[str, str]]:
    """A few numbers for the head of the page, with their labels."""
    count = int(table.seed.notna().sum())
    facts = [(f"FID of {run}", mean_text(table.fid[table.run == run])) for run in smallest_and_largest(table)]
    for fit in scaling.fits[:1]:
        facts.append((f"exponent of FID in {scaling.axis.name}", f"{fit.law.exponent:.2f}".replace("-", "−")))
    return [*facts, ("trainings" if count > 1 else "training", str(count))]


def _cost_content(scaling: Scaling) -> dict[str, Any]:
    means = [
        {"run": run, "cost": cost, "seeds": len(fids), "fid": mean, "deviation": pd.Series(fids).std()}
        for run, cost, fids, mean in zip(*scaling.points, scaling.points.means, strict=True)
    ]
    grid, drawn, forecast = scaling.grid if means else np.zeros(0), None, None
    for fit in scaling.fits[:1]:
        drawn = {"costs": grid.tolist(), "fids": fit.law(grid).tolist(), "band": fit.law.band(grid).tolist()}
        forecast = None if fit.forecast is None else fit.forecast._asdict()
    text = " ".join(law_texts(scaling)) or "A power law needs three runs of the study."
    return scaling.axis._asdict() | {"means": means, "law": drawn, "forecast": forecast, "text": text}


def showcase_content(folders: Mapping[str, Path], table: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Path]]:
    """What the page shows of samples, and the files that it embeds.

    Args:
        folders: of each run what `stages/showcase.py` writes, in the order in which they are shown.
        table: of all trainings; the best of the showcased ones that are small enough runs in the page.
    """
    if not folders:
        return {"showcases": None, "live": None}, {}
    showcases = {run: json.loads((folder / "showcase.json").read_text()) for run, folder in folders.items()}
    paths = [(run, path) for run, folder in folders.items() for path in folder.iterdir() if path.suffix in TYPES]
    assets = {f"{run}/{path.name}": path for run, path in paths}
    first, live = next(iter(showcases.values())), None
    able = [run for run, shown in showcases.items() if shown["live"]]
    best = table[table.run.isin(able) & (table.seed == first["seed"])].sort_values("fid").run
    if len(best):
        run = str(best.iloc[0])
        shown = showcases[run]
        assets["generator.onnx"] = folders[run] / "generator.onnx"
        live = {"run": run, "side": shown["side"], "names": shown["all_names"], "noise": shown["noise"]}
    content = {
        "showcases": {run: shown | {"noise": None} for run, shown in showcases.items()},
        "showcase_seed": first["seed"],
        "exact": all(shown["exact"] for shown in showcases.values()),
        "class_options": list(enumerate(first["names"])),
        "inside_runs": [(run, run) for run in showcases],
        "live": live,
    }
    return content, assets


def about_content(
    params: Params, table: pd.DataFrame, commit: str, commands: Mapping[str, str], trainings: Mapping[Training, str]
) -> dict[str, Any]:
    """What was trained, and how to reproduce it: commands with what they run, and the command of each training."""
    return {
        "title": f"Scaling transformer GANs on {plain_name(params.data.source)}",
        "lead": _lead(table, params.data.resolution),
        "commit": commit,
        "commands": commands,
        "params": as_yaml(params.model_dump(exclude={"compute"})),
        "trainings": [
            {**training._asdict(), "text": f"{command}\n\n{recipe_yaml(params.recipe(training.run))}"}
            for training, command in trainings.items()
        ],
    }


def _lead(table: pd.DataFrame, resolution: int) -> str:
    """A sentence on what was trained, on images of so many pixels."""
    study = table[(table.run != MODEL) & table.seed.notna()]
    runs, seeds = study.run.nunique(), study.seed.nunique()
    what = f"{runs} run{'s' * (runs != 1)} × {seeds} seed{'s' * (seeds != 1)} and the" if runs else "The"
    steps = table.steps.dropna().unique()
    length = f" for {int(steps[0]):,} steps" if len(steps) == 1 else ""
    return (
        f"{what} model under test, trained{length} on {resolution} × {resolution} images in the latent space of a VAE. "
        "The generator makes an image in one step."
    )


def render_page(content: Mapping[str, Any], assets: Mapping[str, Path]) -> str:
    """The page's HTML.

    Args:
        content: all that `page.html` and `page.js` read: that of the functions above, the `notes` on measurements, and
            `claims`, `rates` and `analyses`, see `gat.report.claims.summarize`.
        assets: files by the names that `content` gives them; pictures and videos are embedded as they are, `.onnx`
            compressed.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False, "allow_nan": False}
    encoded = {name: _encode(path) for name, path in sorted(assets.items())}
    if any(name.endswith(".onnx") for name in assets):
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm.gz"):
            encoded[name] = _encode(VENDOR / name)
    content = _finite(content)
    return environment.get_template("page.html").render(
        content=content,
        columns=_filled(content["scaling"]["rows"]),
        assets=encoded,
        css=Markup((TEMPLATE / "page.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup((VENDOR / "plotly-basic.min.js").read_text(encoding="utf-8")),
    )


def _filled(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of which some training has a value."""
    return [column for column in COLUMNS if any(row.get(column.key) not in (None, "") for row in rows)]


def _finite(value: Any) -> Any:
    """The same without infinities and NaN, which JSON has not: null in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _encode(path: Path) -> dict[str, str]:
    """An asset as the page holds it: its type, and base64 of it, compressed where its type is not so already."""
    content, kind = path.read_bytes(), TYPES.get(path.suffix, "application/octet-stream")
    if path.suffix in (".onnx", ".mjs"):
        content, kind = gzip.compress(content, mtime=0), "application/gzip"
    return {"type": kind, "data": base64.b64encode(content).decode()}
