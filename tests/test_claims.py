"""What is said of ablations and analyses, against numbers by hand."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from gat.report.ablations import Ablation, analyses_content, same_baselines, summarize

from gat.config import Run
from gat.report.columns import mean_text
from gat.report.figures import draw_ablations
from gat.report.tables import ablations_page

SIZE = {"width": 32, "depth": 3, "heads": 1, "patch": 2}
WORSE, BASELINE = [5.0, 6.0], [2.0, 2.1]


def ablation(fids: list[float] = WORSE, baseline: str | None = "L-2", **changes) -> Ablation:
    return Ablation("a", Run(**SIZE | changes), fids, baseline, BASELINE if baseline else [])


def schedule(name: str) -> dict:
    return {"loss": {"levels": {"schedule": name}}}


@pytest.mark.parametrize(
    ("changes", "fids", "verdict"),
    [
        (schedule("none"), WORSE, "shows"),
        (schedule("none"), [1.0, 1.1], "contradicted"),
        (schedule("linear"), [2.0, 2.5], "undecided"),
        (schedule("resized"), [5.0], "undecided"),
        ({"repa": {"teacher": None}}, WORSE, "shows"),
        ({"train": {"learning_rate": 0.1, "scale_lr_by_width": False}}, WORSE, "shows"),
        ({"train": {"learning_rate": 0.1}}, WORSE, ""),
        ({"repa": {"teacher": "facebook/dinov2-base"}}, WORSE, ""),
        ({"loss": {"gamma": 1.0, "levels": {"schedule": "none"}}}, WORSE, ""),
    ],
)
def test_the_papers_claims_are_tested_where_nothing_else_changes(changes, fids, verdict):
    (shown,) = summarize([ablation(fids, **changes)], [])["ablations"]
    assert (shown["verdict"], shown["claim"] != "") == (verdict, verdict != "")
    assert shown["ratio"].startswith(f"{np.exp(np.mean(np.log(fids)) - np.mean(np.log(BASELINE))):.3g}")


def test_changes_are_read_off_the_entry():
    changes = schedule("none") | {"train": {"scale_lr_by_width": False, "learning_rate": 1}, "repa": {"teacher": None}}
    assert ablation(**changes, discriminator={"width": 12}).changes == [
        "loss.levels.schedule=none",
        "train.scale_lr_by_width=false",
        "train.learning_rate=1",
        "repa.teacher=null",
        "discriminator.width=12",
    ]


def test_networks_scaled_separately_are_compared():
    def pair(seeds: int = 2, baseline: str | None = "S-2", own: int = 32, **other) -> list[str]:
        large_g = Ablation("large-G", Run(**SIZE, discriminator={"width": 12}), [20.0, 22.0][:seeds], "L-2", BASELINE)
        run = Run(**SIZE | {"width": 12} | other, discriminator={"width": own})
        large_d = Ablation("large-D", run, [6.0, 6.2][:seeds], baseline, [30.0, 31.0])
        return summarize([large_g, large_d], [])["sentences"]

    (sentence,) = pair()
    for part in ("S-2 (FID 30.50 ± 0.71)", "L-2 (2.05", "21.00 ± 1.41 with only the generator", "0.291 [", "shows."):
        assert part in sentence
    assert pair(seeds=1)[0].endswith("undecided.")
    assert pair(baseline=None) == pair(own=20) == pair(depth=6) == []


def test_a_summary_of_other_baselines_is_noticed():
    table = pd.DataFrame({"run": ["L-2", "L-2"], "fid": BASELINE[::-1]})
    content = summarize([ablation(), ablation(baseline=None)], [])
    assert same_baselines(content, table)
    assert not same_baselines(content, table.assign(fid=[2.0, 2.2]))


def result(run: str, width: int, seed: int, guided: bool = True, growth: float = 0.0) -> dict:
    """Of a run whose step moves the generator by 0.5 with the width rule, and by width^growth times it without."""
    step = {"generator": [0.5 + 0.01 * seed] * 3, "discriminator": [0.2] * 3}
    grown = step | {"generator": [one * width ** (growth + 0.01 * seed) for one in step["generator"]]}
    untrained = {"cls": [0.2, 0.3], "mean": [0.1, 0.2], "cknna": 0.1}
    known = {"trained": {"cls": [0.5, 0.7], "mean": [0.6, 0.9], "cknna": 0.3}, "untrained": untrained, "classes": 10}
    return {
        "run": run,
        "seed": seed,
        "width": width,
        "patch": 2,
        "layers": {"skipped": [0.6, 0.2 + 0.01 * seed if guided else 0.6], "cosine": [0.2, 0.9], "cka": [0.1, 0.8]},
        "discriminator": known | {"reference": "classifier", "held_out": True},
        "steps": {"start": {"with": step, "without": grown}, "later": {"with": step, "without": step}},
    }


def test_analyses_become_tables_plots_and_tested_claims():
    results = [result(run, width, seed, growth=1.0) for run, width in (("S", 8), ("L", 32)) for seed in range(3)]
    results += [result("none", 32, seed, guided=False) for seed in range(3)]
    layers, discriminators, start, _ = analyses_content(results)
    assert layers["rows"][1] == ["S", "2", "0.210 ± 0.010", "0.900 ± 0.000", "0.800 ± 0.000"]
    assert layers["plot"]["series"][0]["y"] == pytest.approx([0.6, 0.21])
    assert layers["plot"]["series"][0]["deviations"] == pytest.approx([0, 0.01])
    assert discriminators["rows"][1] == ["S", "trained", "2", "0.700 ± 0.000", "0.900 ± 0.000", "0.300 ± 0.000"]
    assert discriminators["rows"][6] == ["L", "untrained", "1", "0.200 ± 0.000", "0.100 ± 0.000", ""]
    assert "(chance: 0.1)" in discriminators["text"]
    assert "held-out images" in discriminators["text"]
    assert start["columns"][2:] == ["layer", "width 8", "width 32", "exponent"]
    grown = [[(0.5 + 0.01 * s) * width ** (1 + 0.01 * s) for s in range(3)] for width in (8, 32)]
    layers_of_generator = ["first block", "middle block", "last block", "output"]
    assert [row[2] for row in start["rows"][4:8]] == layers_of_generator
    assert start["rows"][7][3:] == [*(mean_text(own, ".2g") for own in grown), "1.01 ± 0.01"]
    assert start["rows"][3][5] == "0.00 ± 0.00"


def test_summary_is_written_and_drawn():
    results = [result(run, width, seed) for run, width in (("S", 8), ("L", 32)) for seed in (0, 1)]
    content = json.loads(json.dumps(summarize([ablation(**schedule("none"))], results)))
    page = ablations_page(content, ["A note."])
    assert "| a          | `loss.levels.schedule=none` | 5.50 ± 0.71 | L-2: 2.05 ± 0.07 | 2.67 [" in page
    assert all(f"## {analysis['title']}" in page for analysis in content["analyses"])
    assert page.endswith("A note.\n")
    for some in (content, summarize([], []), summarize([ablation(baseline=None)], [])):
        draw_ablations(some, "#d1495b").savefig(io.BytesIO())
