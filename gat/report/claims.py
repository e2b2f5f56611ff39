"""What ablations and analyses show, in numbers and sentences, and whether the paper's claims hold."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gat.config import Run
from gat.report.columns import mean_text
from gat.report.comparisons import Claim, Comparison, compare, judge

FIXED_RATE = "train.scale_lr_by_width=false"
# Claims of the paper that FID is higher, by all keys that an ablation changes and their values.
CLAIMS = {
    frozenset({"loss.levels.schedule=none"}): "worse without noise guidance",
    frozenset({"loss.levels.schedule=linear"}): "worse with a linear noise schedule",
    frozenset({"loss.levels.schedule=resized"}): "worse with resized levels",
    frozenset({"repa.teacher=null"}): "worse without a teacher",
    frozenset({FIXED_RATE}): "worse at a learning rate not scaled by width",
}

Result = Mapping[str, Any]  # the analysis of one training
Runs = Mapping[str, Sequence[Result]]  # those of the seeds of each run


def summarize(ablations: Sequence["Ablation"], results: Sequence[Result]) -> dict[str, Any]:
    """What tables, figures and the page show of ablations and analyses, as JSON.

    Args:
        ablations: each with its FIDs.
        results: of each run and seed what `stages/analyze.py` writes.
    """
    pairs = [*scaled_separately(ablations)]
    claims = [Claim(one.comparison, "higher") for one in ablations if one.comparison and one.claim]
    verdicts = iter(judge(claims + [Claim(comparison, "lower") for _, comparison in pairs]))
    rows = [one.content() | {"verdict": next(verdicts) if one.comparison and one.claim else ""} for one in ablations]
    return {
        "ablations": rows,
        "sentences": [f"{text} {next(verdicts)}." for text, _ in pairs],
        "analyses": analyses_content(results) if results else [],
    }


def same_baselines(content: Mapping[str, Any], table: pd.DataFrame) -> bool:
    """Whether a summary compares ablations with the FIDs that the table of trainings has."""
    return all(
        np.allclose(sorted(one["baseline_fids"]), sorted(table.fid[table.run == one["baseline"]]))
        for one in content["ablations"]
        if one["baseline"] is not None
    )


class Ablation(NamedTuple):
    """A run that changes the recipe of another, its baseline, and the FIDs of both, one per seed."""

    name: str
    run: Run
    fids: list[float]
    baseline: str | None
    baseline_fids: list[float]

    @property
    def changes(self) -> list[str]:
        """What the run overrides, such as `loss.levels.schedule=none`."""
        sections = {name: getattr(self.run, name) for name in ("loss", "train", "repa")}
        sections["discriminator"] = self.run.discriminator.model_dump(exclude_none=True)
        return [*_leaves(sections)]

    @property
    def comparison(self) -> Comparison | None:
        """Its FID against the baseline's; None: the study has no run of this size."""
        return None if self.baseline is None else compare(self.fids, self.baseline_fids)

    @property
    def claim(self) -> str:
        """What the paper says of this change alone; empty if it says nothing."""
        changes = frozenset(self.changes)
        if FIXED_RATE in changes:  # whichever rate it is
            changes = frozenset(one for one in changes if not one.startswith("train.learning_rate="))
        return CLAIMS.get(changes, "")

    def content(self) -> dict[str, Any]:
        """As JSON."""
        compared = f"{self.baseline}: {mean_text(self.baseline_fids)}" if self.baseline else "none"
        numbers = {key: getattr(self, key) for key in ("name", "fids", "baseline", "baseline_fids", "claim")}
        one = self.comparison
        numbers |= {"ratio": one.text if one else "", "p": one.p_text if one else ""}
        return numbers | {"change": ", ".join(self.changes), "fid": mean_text(self.fids), "compared": compared}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """All values of nested sections, as key=value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value)}"


def scaled_separately(ablations: Sequence[Ablation]) -> Iterator[tuple[str, Comparison]]:
    """Pairs of ablations of which one enlarges G alone, the other D alone: a sentence, and how they compare."""

    def rest(run: Run) -> tuple[Any, ...]:
        return run.depth, run.patch, run.discriminator.depth, run.discriminator.patch, run.loss, run.train, run.repa

    for large_g, large_d in permutations(ablations, 2):
        width, width_d = large_g.run.width, large_g.run.discriminator.width
        swapped = (large_d.run.discriminator.width, large_d.run.width) == (width, width_d)
        if not swapped or width_d is None or width_d >= width or rest(large_g.run) != rest(large_d.run):
            continue
        if large_g.baseline is None or large_d.baseline is None:
            continue
        comparison = compare(large_d.fids, large_g.fids)
        yield (
            f"Scaling only one network from {large_d.baseline} (FID {mean_text(large_d.baseline_fids)}) to "
            f"{large_g.baseline} ({mean_text(large_g.baseline_fids)}): {mean_text(large_g.fids)} with only the "
            f"generator larger, {mean_text(large_d.fids)} with only the discriminator larger, a ratio of "
            f"{comparison.text}. The paper's claim that scaling only the discriminator helps more:",
            comparison,
        )


def analyses_content(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A title, a text, a table and a plot of each analysis; arguments as for `summarize`."""
    runs = list(dict.fromkeys(result["run"] for result in results))
    by_run = {run: [result for result in results if result["run"] == run] for run in runs}

    def having(key: str) -> Runs:
        return {run: own for run, own in by_run.items() if all(key in one for one in own)}

    parts = [_layers(by_run)]
    if with_discriminator := having("discriminator"):
        parts.append(_discriminators(with_discriminator))
    if stepped := having("steps"):
        parts += [_steps(stepped, when) for when in ("start", "later")]
    return parts


def _series(name: str, x: Sequence[Any], values: Sequence[Sequence[float]], **more: Any) -> dict[str, Any]:
    """A line of a plot: at each x the mean over seeds, with their standard deviation."""
    deviations = [float(np.std(own, ddof=1)) if len(own) > 1 else 0.0 for own in values]
    return {"name": name, "x": list(x), "y": [float(np.mean(own)) for own in values], "deviations": deviations, **more}


def _layers(by_run: Runs) -> dict[str, Any]:
    keys = ("skipped", "cosine", "cka")
    rows, series = [], []
    for run, own in by_run.items():
        use = {key: np.array([one["layers"][key] for one in own]).T for key in keys}  # (blocks, seeds)
        count = len(use["skipped"])
        blocks = [str(i + 1) for i in range(count)]
        series.append(_series(run, blocks, use["skipped"].tolist()))
        rows += [[run, block, *(mean_text(use[key][i], ".3f") for key in keys)] for i, block in enumerate(blocks)]
    return {
        "title": "Layer use of the generator",
        "text": "Change when skipped: distance that an image moves in the extractor's feature space when one block is "
        "skipped, relative to the mean distance between two images; near 0, the block is not used. Cosine similarity "
        "and CKA compare the tokens before and after a block.",
        "columns": ["run", "block", "change when skipped", "cosine", "CKA"],
        "rows": rows,
        "plot": {"kind": "bar", "x": "block", "y": "change when skipped", "series": series},
    }


def _discriminators(by_run: Runs) -> dict[str, Any]:
    references = {run: own[0]["discriminator"]["reference"] for run, own in by_run.items()}
    several = len({*references.values()}) > 1
    rows, series = [], []
    for run, own in by_run.items():
        known = [one["discriminator"] for one in own]
        depth = len(known[0]["trained"]["cls"])
        blocks = [str(i + 1) for i in range(depth)]
        for name in ("trained", "untrained"):
            accuracies = {
                pooling: np.array([one[name][pooling] for one in known]).T for pooling in ("cls", "mean")
            }  # (blocks, seeds)
            aligned = mean_text([one[name]["cknna"] for one in known], ".3f")
            aligned += f" ({references[run]})" if several else ""
            for i, block in enumerate(blocks):
                texts = (mean_text(accuracies[pooling][i], ".3f") for pooling in ("cls", "mean"))
                rows.append([run, name, block, *texts, aligned if i == depth - 1 else ""])
            dash = "solid" if name == "trained" else "dot"
            series.append(_series(f"{run}, {name}", blocks, accuracies["mean"].tolist(), dash=dash))
    first = next(iter(by_run.values()))[0]["discriminator"]
    images = "held-out images" if first["held_out"] else "training images, of others among them"
    return {
        "title": "What the discriminator knows of classes",
        "text": f"Accuracy on {images}: share whose class most of the ten nearest training images have, in the [cls] "
        f"token or in the mean of the other tokens after a block (chance: {1 / first['classes']:.3g}). CKNNA: "
        f"alignment of [cls] after the last block with the features of the "
        f"{'network named beside it' if several else first['reference']}, of the same images. "
        "Untrained: the same of a discriminator with random weights.",
        "columns": ["run", "weights", "block", "accuracy, [cls]", "accuracy, mean", "CKNNA"],
        "rows": rows,
        "plot": {"kind": "bar", "x": "block", "y": "accuracy, mean of tokens", "series": series},
    }


def _layers_shown(depth: int) -> dict[str, int]:
    """Outputs that networks of all depths have, by their index among the blocks and the network's output."""
    return {"first block": 0, "middle block": (depth - 1) // 2, "last block": depth - 1, "output": depth}


def _steps(by_run: Runs, when: str) -> dict[str, Any]:
    patches = [own[0]["patch"] for own in by_run.values()]
    patch = min(patches, key=lambda one: (-patches.count(one), one))  # that of most runs, as for laws
    same = {own[0]["width"]: own for own in reversed([*by_run.values()]) if own[0]["patch"] == patch}
    widths = sorted(same)
    rows, series = [], []
    for network in ("generator", "discriminator"):
        for rule, name, dash in (("with", "width-scaled rate", "solid"), ("without", "constant rate", "dot")):
            for layer in _layers_shown(1):
                values = [[_change(one, when, rule, network, layer) for one in same[width]] for width in widths]
                slope = np.array([])
                if len(widths) > 1 and min(map(min, values)) > 0:
                    slope = np.polyfit(np.log(widths), np.log(values), 1)[0]
                rows.append([network, name, layer, *(mean_text(own, ".2g") for own in values), mean_text(slope)])
                if layer == "output":
                    series.append(_series(f"{network}, {name}", widths, values, dash=dash))
    text = (
        "Root mean square change of the tokens after a block, of the generator's latents and of the discriminator's "
        "logits, by one optimizer step at 1/32 of the learning rate, from the same weights for both rates. The paper "
        "scales the rate by 1/width so that this change does not depend on the width: an exponent in width of 0. Small "
        "changes are in proportion to the rate, so that the exponent at a constant rate is larger by about 1."
    )
    return {
        "title": f"Change by one step, {'at the start of training' if when == 'start' else 'later in training'}",
        "text": text,
        "columns": ["network", "learning rate", "layer", *(f"width {width}" for width in widths), "exponent"],
        "rows": rows,
        "plot": {"kind": "line", "x": "width", "y": "change of the output", "series": series},
    }


def _change(result: Result, when: str, rule: str, network: str, layer: str) -> float:
    """The change of one of the layers that are shown."""
    changes: Sequence[float] = result["steps"][when][rule][network]
    return changes[_layers_shown(len(changes) - 1)[layer]]
