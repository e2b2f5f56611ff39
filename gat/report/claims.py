"""The paper's claims, judged by comparisons over seeds, and what analyses of trained networks show."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gat.config import Claim, Recipe
from gat.report.columns import METRICS, mean_text, range_text
from gat.report.comparisons import Comparison, ExpectedDifference, Verdict, compare, judge
from gat.report.learning_rates import UNKNOWN, fit_rates, rates_content

Result = Mapping[str, Any]  # of one training, or its analysis
Runs = Mapping[str, Sequence[Result]]  # those of the seeds of each run


class Measured(NamedTuple):
    """What is known of all trainings, by run, of its seeds in order.

    Trainings that diverged have an infinite FID, and no curves and analyses.
    """

    fids: Mapping[str, Sequence[float]]
    curves: Mapping[str, Sequence[np.ndarray]]  # rows (N, 2) of a step and FID
    analyses: Runs  # what `stages/analyze.py` writes

    def values(self, measure: str, run: str) -> list[float]:
        """A measure of `gat.config.Claim`, of each seed."""
        if measure == "fid":
            return [*self.fids[run]]
        of_result = {"early_movement": early_movement, "cknna": alignment}[measure]
        return [of_result(result) for result in self.analyses.get(run, [])]

    def text(self, measure: str, run: str) -> str:
        """The typical value of a measure with its range over seeds, and how many trainings diverged."""
        fids = np.asarray(self.fids[run], float)
        diverged = np.isposinf(fids).sum()
        values = [value for value in self.values(measure, run) if np.isfinite(value)]
        known = range_text(values)
        return f"{known or 'unknown'} ({diverged} of {len(fids)} diverged)" if diverged else known


MEASURES = {"fid": "FID", "early_movement": "early movement", "cknna": "CKNNA"}
SHOWN = {"fid", "fid_held", "fd_encoder", "recall"}  # of the metrics, in the table of runs
IN_COLUMNS = {"learning_rate", "scale_lr_by_width", "steps"}  # settings of `train` that this table has columns for
IDLE = 0.1  # of the distance between two images: a block that moves images by less when skipped hardly does anything


def has_diverged(result: Result) -> bool:
    """Whether the result of a training, or its analysis, says so."""
    return bool(result.get("diverged", False))


def early_movement(result: Result) -> float:
    """How far images move if a block is skipped, the least of the generator's blocks 2 to depth / 3."""
    skipped = result["layers"]["skipped"]
    return float(min(skipped[1 : max(2, len(skipped) // 3)], default=float("nan")))


def alignment(result: Result) -> float:
    """CKNNA of the discriminator's [cls] token; NaN without classes, with which its analysis is left out."""
    return float(result["discriminator"]["trained"]["cknna"]) if "discriminator" in result else float("nan")


def summarize(
    claims: Mapping[str, Claim], measured: Measured, rates: pd.DataFrame | None, count: int = 0
) -> dict[str, Any]:
    """What tables, figures and the page show of claims and analyses, as JSON.

    Args:
        claims: by name.
        measured: the trainings that they compare, and all that were analyzed.
        rates: a row for each training of `rates`, see `gat.report.learning_rates`; None: not asked for.
        count: of all claims, if these are only some.
    """
    comparisons = {}
    for name, claim in claims.items():
        arm, baseline = (measured.values(claim.measure, run) for run in (claim.arm, claim.baseline))
        comparisons[name] = compare(arm, baseline, logarithmic=min([*arm, *baseline], default=1) > 0)
    expected = [ExpectedDifference(comparisons[name], claim.expected) for name, claim in claims.items()]
    verdicts = judge(expected, count)
    rows = [
        _row(name, claim, measured, comparisons[name], verdict)
        for (name, claim), verdict in zip(claims.items(), verdicts, strict=True)
    ]
    fit = None if rates is None else fit_rates(rates)
    power = {} if rates is None else UNKNOWN if fit is None else fit.content()
    parts = [_progress(baseline, arms, measured) for baseline, arms in _groups(claims).items()]
    parts += [] if rates is None else rates_content(rates, fit)
    analyses = [one for own in measured.analyses.values() for one in own]
    return {
        "claims": rows,
        "rates": power,
        "analyses": parts + (analyses_content(analyses) if analyses else []),
    }


def _row(name: str, claim: Claim, measured: Measured, comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    arm, baseline = (measured.values(claim.measure, run) for run in (claim.arm, claim.baseline))
    texts = {f"{side}_text": measured.text(claim.measure, getattr(claim, side)) for side in ("arm", "baseline")}
    ends = np.exp(comparison[:3]) if comparison.logarithmic else np.asarray(comparison[:3])
    ends = np.full(3, np.nan) if np.isinf(comparison.difference) else ends
    found = (
        f"{MEASURES[claim.measure]} is {texts['arm_text']} for {claim.arm}, {texts['baseline_text']} for "
        f"{claim.baseline}."
    )
    equal, seeds = comparison.p_equal < comparison.p, len(measured.fids[claim.arm])
    lead = {
        "shows": "It holds here:",
        "contradicted": "Equal within ±10% here:" if equal else "The reverse holds here:",
        "undecided": "Not decided by one seed:" if seeds == 1 else f"Not decided by {seeds} seeds:",
    }[verdict]
    return {
        "name": name,
        **claim.model_dump(),
        **texts,
        "arm_values": arm,
        "baseline_values": baseline,
        "ratio": comparison.text,
        "interval": [float(end) for end in ends],
        "logarithmic": comparison.logarithmic,
        "p": comparison.p_text,
        "verdict": verdict,
        "sentence": f"{lead} {found}",
    }


def same_baselines(content: Mapping[str, Any], table: pd.DataFrame) -> bool:
    """Whether a summary compares with the FIDs that the table of trainings has."""
    return all(
        np.allclose(sorted(claim["baseline_values"]), sorted(table.fid[table.run == claim["baseline"]]))
        for claim in content["claims"]
        if claim["measure"] == "fid" and claim["baseline"] in {*table.run}
    )


def runs_content(recipes: Mapping[str, Recipe], results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A title, a text and a table of the runs that claims compare, as JSON.

    Args:
        recipes: by run.
        results: by run, of each seed, what `gat.study.results` reads. Shown are the metrics of `SHOWN` that all have.
    """
    known = [own for seeds in results.values() for own in seeds if not has_diverged(own)]
    shown = [column for column in METRICS if column.key in SHOWN and all(column.key in own for own in known)]
    rows = []
    for name, (run, *_) in recipes.items():
        own = results[name]
        sizes = [f"{network.width} × {network.depth}" for network in (run, run.discriminator_network)]
        train = {key: value for key, value in run.train.items() if key not in IN_COLUMNS}
        overrides = {"train": train, "loss": run.loss, "repa": run.repa}
        flat = pd.json_normalize(overrides).to_dict("records")[0]  # such as {"loss.levels.count": 4}
        changed = ", ".join(f"{key}={value}" for key, value in flat.items())
        trained = [one for one in own if not has_diverged(one)]
        measured = [mean_text([one[column.key] for one in trained], column.format) for column in shown]
        flagged = sum(bool(one["warnings"]) for one in own) or ""
        settings = [*sizes, run.patch, f"{own[0]['learning_rate']:.3g}", own[0]["steps"], changed]
        rows.append([name, *settings, *measured, flagged])
    titles = ["run", "G width × depth", "D width × depth", "patch", "learning rate", "steps", "changed"]
    text = (
        "G, D: generator, discriminator. The learning rate is that of G, at its width and the batch size. Changed: "
        "settings other than those of the study, besides rates and steps; `study` in params.yaml has all of them. "
        "Flagged: trainings with a warning, such as that of a flat discriminator. Trainings that diverged are flagged, "
        "and have no metrics."
    )
    columns = [*titles, *(column.title for column in shown), "flagged"]
    return {"title": "Runs", "text": text, "columns": columns, "rows": rows, "plot": None}


def _groups(claims: Mapping[str, Claim]) -> dict[str, list[str]]:
    """The arms that are compared with each baseline."""
    groups: dict[str, list[str]] = {}
    for claim in claims.values():
        own = groups.setdefault(claim.baseline, [])
        own += [] if claim.arm in own else [claim.arm]
    return groups


def _series(
    name: str, x: Sequence[Any], values: Sequence[Sequence[float]], logarithmic: bool = False, **more: Any
) -> dict[str, Any]:
    """A line of a plot: at each x the mean over seeds, and how far one standard deviation reaches above and below.

    With a logarithmic axis both are those of the logarithms.
    """
    own = [np.log(at) if logarithmic else np.asarray(at, float) for at in values]
    means = np.array([at.mean() for at in own])
    deviations = np.array([at.std(ddof=1) if len(at) > 1 else 0.0 for at in own])
    y, low, high = (np.exp(at) if logarithmic else at for at in (means, means - deviations, means + deviations))
    return {"name": name, "x": [*x], "y": y.tolist(), "above": (high - y).tolist(), "below": (y - low).tolist(), **more}


def _progress(baseline: str, arms: Sequence[str], measured: Measured) -> dict[str, Any]:
    """FID while a baseline and its arms are trained."""
    rows, lines, steps = [], [], list[int]()
    for run in (baseline, *arms):
        if not measured.curves[run]:  # all diverged
            continue
        own = np.stack([*measured.curves[run]])  # (seeds, N, 2)
        x, values = own[0, :, 0].astype(int).tolist(), own[:, :, 1].T.tolist()
        lines.append(_series(run, x, values, logarithmic=True))
        steps = steps if len(steps) >= len(x) else x
        rows.append([run, *(mean_text(at) for at in values)])
    width = len(steps) + 1
    return {
        "title": f"FID during training: {baseline} and its arms",
        "text": "",
        "columns": ["run", *(f"step {step:,}" for step in steps)],
        "rows": [row + [""] * (width - len(row)) for row in rows],
        "plot": {"kind": "line", "x": "step", "y": "FID", "logarithmic": "y", "series": lines},
    }


def analyses_content(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A title, a text, a table and a plot of each analysis, as JSON."""
    runs = list(dict.fromkeys(result["run"] for result in results))
    by_run = {run: [result for result in results if result["run"] == run] for run in runs}

    def having(key: str) -> Runs:
        return {run: own for run, own in by_run.items() if all(key in one for one in own)}

    depths = sorted({_depth(own) for own in by_run.values()}, reverse=True)
    parts = []
    for depth in depths:
        parts += _layers({run: own for run, own in by_run.items() if _depth(own) == depth})
    if with_discriminator := having("discriminator"):
        parts += _discriminators(with_discriminator)
    if stepped := having("steps"):
        parts += [_steps(stepped, when) for when in ("start", "later")]
    return parts


def _depth(results: Sequence[Result]) -> int:
    return len(results[0]["layers"]["skipped"])


def _layers(by_run: Runs) -> list[dict[str, Any]]:
    """Layer use of generators of one depth."""
    depth, runs = _depth(next(iter(by_run.values()))), [*by_run]
    blocks = [str(i + 1) for i in range(depth)]

    def of_blocks(key: str) -> dict[str, np.ndarray]:
        """For each run (blocks, seeds)."""
        return {run: np.array([one["layers"][key] for one in own]).T for run, own in by_run.items()}

    def rows(use: Mapping[str, np.ndarray]) -> list[list[str]]:
        return [[block, *(mean_text(own[i], ".2f") for own in use.values())] for i, block in enumerate(blocks)]

    skipped, cosine, cka = (of_blocks(key) for key in ("skipped", "cosine", "cka"))
    bars = [_series(run, blocks, own.tolist()) for run, own in skipped.items()]
    moved = rows(skipped)
    for start, stop in ((0, depth // 2), (depth // 2, depth)) if depth > 1 else ():
        idle = [(own[start:stop] < IDLE).sum(axis=0) for own in skipped.values()]  # (seeds,) of each run
        name = f"idle: {start + 1}" + f" to {stop}" * (stop > start + 1)
        moved.append([name, *(", ".join(map(str, counts)) for counts in idle)])
    spreads = [mean_text([one["layers"]["spread"] for one in own]) for own in by_run.values()]
    both = [
        [left[0], *np.ravel([left[1:], right[1:]], "F")] for left, right in zip(rows(cosine), rows(cka), strict=True)
    ]
    return [
        {
            "title": f"Layer use of generators with {depth} blocks",
            "text": "Distance that an image moves in the extractor's feature space when one block is skipped, relative "
            "to the mean distance between two images, which is in the last row; near 0, the block is not used. Idle: "
            f"how many of these blocks move images by less than {IDLE:g}, for each seed.",
            "columns": ["block", *runs],
            "rows": [*moved, ["distance", *spreads]],
            "plot": {"kind": "bar", "x": "block", "y": "change when skipped", "series": bars},
        },
        {
            "title": f"Tokens before and after each of {depth} blocks",
            "text": "Cosine similarity, and CKA.",
            "columns": ["block", *(f"{run}, {name}" for run in runs for name in ("cosine", "CKA"))],
            "rows": both,
            "plot": None,
        },
    ]


SEEN = (
    "Each discriminator sees images as in its training, with the noise of its levels if there is any, so that only "
    "runs with the same guidance compare."
)


def _discriminators(by_run: Runs) -> list[dict[str, Any]]:
    rows, aligned, runs = [], [], list(by_run)
    depth = max(len(own[0]["discriminator"]["trained"]["cls"]) for own in by_run.values())
    last: dict[str, dict[str, list[list[float]]]] = {}  # by quantity and weights, for each run its seeds
    for name in ("trained", "untrained"):
        for run, own in by_run.items():
            known = [one["discriminator"][name] for one in own]
            cells = []
            for pooling in ("cls", "mean"):
                at = np.array([one[pooling] for one in known]).T  # (blocks, seeds)
                cells += [mean_text(own, ".3f") for own in at] + [""] * (depth - len(at))
            rows.append([run, name, *cells])
            aligned.append([run, name, mean_text([one["cknna"] for one in known], ".3f")])
            last.setdefault("accuracy", {}).setdefault(name, []).append([one["mean"][-1] for one in known])
            last.setdefault("CKNNA", {}).setdefault(name, []).append([one["cknna"] for one in known])
    first = next(iter(by_run.values()))[0]["discriminator"]
    images = "held-out images" if first["held_out"] else "training images, of others among them"

    def plot(quantity: str, label: str) -> dict[str, Any]:
        bars = [_series(name, runs, values) for name, values in last[quantity].items()]
        return {"kind": "bar", "x": "run", "y": label, "series": bars}

    blocks = [f"{pooling}, block {i + 1}" for pooling in ("[cls]", "mean") for i in range(depth)]
    return [
        {
            "title": "What the discriminator knows of classes",
            "text": f"Accuracy on {images}: share whose class most of the ten nearest training images have, in the "
            f"[cls] token or in the mean of the other tokens after a block (chance: {1 / first['classes']:.3g}). "
            f"Untrained: the same of a discriminator with random weights. {SEEN}",
            "columns": ["run", "weights", *blocks],
            "rows": rows,
            "plot": plot("accuracy", "accuracy, mean of tokens"),
        },
        {
            "title": "How much the discriminator's features are like another network's",
            "text": "CKNNA: alignment of [cls] after the last block with the features of "
            f"{first['reference']}, of the same images. {SEEN}",
            "columns": ["run", "weights", "CKNNA"],
            "rows": aligned,
            "plot": plot("CKNNA", "CKNNA"),
        },
    ]


def _layers_shown(depth: int) -> dict[str, int]:
    """Outputs that networks of all depths have, by their index among the blocks and the network's output."""
    return {"first block": 0, "middle block": (depth - 1) // 2, "last block": depth - 1, "output": depth}


def _steps(by_run: Runs, when: str) -> dict[str, Any]:
    patches = [own[0]["patch"] for own in by_run.values()]
    patch = min(patches, key=lambda one: (-patches.count(one), one))  # that of most runs, as for laws
    same = {own[0]["width"]: own for own in reversed([*by_run.values()]) if own[0]["patch"] == patch}
    widths = sorted(same)
    rows, lines = [], []
    for network in ("generator", "discriminator"):
        for rule, name, dash in (("with", "width-scaled rate", "solid"), ("without", "constant rate", "dot")):
            for layer in _layers_shown(1):
                values = [[_change(one, when, rule, network, layer) for one in same[width]] for width in widths]
                slope = np.array([])
                if len(widths) > 1 and min(map(min, values)) > 0:
                    slope = np.polyfit(np.log(widths), np.log(values), 1)[0]
                rows.append([network, name, layer, *(mean_text(own, ".2g") for own in values), mean_text(slope)])
                if layer == "output":
                    lines.append(_series(f"{network}, {name}", widths, values, logarithmic=True, dash=dash))
    text = (
        "Root mean square change of the tokens after a block, of the generator's latents and of the discriminator's "
        "logits, by one optimizer step at 1/32 of the learning rate, from the same weights for both rates; the "
        "constant rate is that of the run `model`. The paper scales the rate by 1/width so that this change does not "
        "depend on the width: an exponent in width of 0. Small changes are in proportion to the rate, so that the "
        "exponent at a constant rate is larger by about 1."
    )
    return {
        "title": f"Change by one step, {'at the start of training' if when == 'start' else 'later in training'}",
        "text": text,
        "columns": ["network", "learning rate", "layer", *(f"width {width}" for width in widths), "exponent"],
        "rows": rows,
        "plot": {"kind": "line", "x": "width", "y": "change of output", "logarithmic": "xy", "series": lines},
    }


def _change(result: Result, when: str, rule: str, network: str, layer: str) -> float:
    """The change of one of the layers that are shown."""
    changes: Sequence[float] = result["steps"][when][rule][network]
    return changes[_layers_shown(len(changes) - 1)[layer]]
