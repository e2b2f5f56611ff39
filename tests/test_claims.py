"""What is said of claims and analyses, against numbers by hand."""

import io
import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from gat.config import Claim, Loss, Optimization, Recipe, Repa, Run
from gat.report.claims import Measured, analyses_content, early_movement, runs_content, same_baselines, summarize
from gat.report.columns import mean_text
from gat.report.figures import draw_analyses, draw_claims
from gat.report.tables import claims_page

FIDS = {"base": [2.0, 2.1, 2.2], "worse": [5.0, 6.0, 5.5], "better": [1.0, 1.1, 1.05], "unsure": [2.0, 3.5, 1.5]}
CURVES = {run: [np.array([[500, 9 * fid], [1000, fid]]) for fid in fids] for run, fids in FIDS.items()}
NO_RATES = pd.DataFrame({"width": [8], "rate": [0.1], "seed": [0], "fid": [3.0], "diverged": [False]})


def claim(arm: str, expected: str = "higher", measure: str = "fid", baseline: str = "base") -> Claim:
    return Claim(text=f"{arm} matters", paper="it does", arm=arm, baseline=baseline, measure=measure, expected=expected)


def result(run: str, width: int, seed: int, guided: bool = True, growth: float = 0.0) -> dict:
    """Of a run whose step moves the generator by 0.5 with the width rule, and by width^growth times it without."""
    step = {"generator": [0.5 + 0.01 * seed] * 3, "discriminator": [0.2] * 3}
    grown = step | {"generator": [one * width ** (growth + 0.01 * seed) for one in step["generator"]]}
    untrained = {"cls": [0.2, 0.3], "mean": [0.1, 0.2], "cknna": 0.1}
    known = {"trained": {"cls": [0.5, 0.7], "mean": [0.6, 0.9], "cknna": 0.3 + 0.01 * seed}, "untrained": untrained}
    skipped = [0.6, 0.2 + 0.01 * seed if guided else 0.05]
    return {
        "run": run,
        "seed": seed,
        "width": width,
        "patch": 2,
        "layers": {"skipped": skipped, "spread": 12.0, "cosine": [0.2, 0.9], "cka": [0.1, 0.8]},
        "discriminator": known | {"classes": 10, "reference": "SimCLR", "held_out": True},
        "steps": {"start": {"with": step, "without": grown}, "later": {"with": step, "without": step}},
    }


ANALYSES = {
    "base": [result("base", 32, seed, growth=1.0) for seed in range(3)],
    "worse": [result("worse", 32, seed, guided=False) for seed in range(3)],
    "small": [result("small", 8, seed, growth=1.0) for seed in range(3)],
}
MEASURED = Measured(FIDS, CURVES, ANALYSES)


@pytest.mark.parametrize(
    ("arm", "expected", "verdict", "lead"),
    [
        ("worse", "higher", "shows", "It holds here: FID is 5.48 (5 to 6) for worse, 2.1 (2 to 2.2) for base."),
        ("better", "higher", "contradicted", "The reverse holds here: FID"),
        ("worse", "lower", "contradicted", "The reverse holds here: FID"),
        ("better", "lower", "shows", "It holds here: FID"),
        ("unsure", "higher", "undecided", "Not decided by 3 seeds: FID"),
    ],
)
def test_a_claim_is_judged_by_the_side_on_which_its_ratio_lies(arm, expected, verdict, lead):
    (row,) = summarize({"a": claim(arm, expected)}, MEASURED, NO_RATES)["claims"]
    assert row["verdict"] == verdict
    assert row["sentence"].startswith(lead)
    ratio = np.exp(np.mean(np.log(FIDS[arm])) - np.mean(np.log(FIDS["base"])))
    assert row["interval"][0] == pytest.approx(ratio)
    assert row["ratio"].startswith(f"{ratio:.3g} [")


def test_differences_are_never_equal_within_a_ratio():
    """A measure that may be 0 is compared without logarithms, of which ±10% is a band."""
    low, high = [-0.005, 0.0, 0.005, 0.01, 0.0], [0.01, 0.03, 0.02, 0.04, 0.02]
    measured = Measured({"a": high, "base": low}, CURVES | {"a": CURVES["base"]}, {})
    (row,) = summarize({"a": claim("a")}, measured, NO_RATES)["claims"]
    assert (row["verdict"], row["logarithmic"]) == ("shows", False)


def test_cknna_without_classes_is_undecided():
    analyses = {run: list(own) for run, own in ANALYSES.items()}
    analyses["base"] = [
        {key: value for key, value in one.items() if key != "discriminator"} for one in analyses["base"]
    ]
    (row,) = summarize({"a": claim("worse", measure="cknna")}, MEASURED._replace(analyses=analyses), NO_RATES)["claims"]
    assert row["verdict"] == "undecided"


def test_equal_values_contradict_a_claim_and_are_said_to_be_equal():
    same = Measured({"a": [2.0, 2.01, 1.99], "base": [2.0, 2.02, 1.99]}, CURVES | {"a": CURVES["base"]}, {})
    (row,) = summarize({"a": claim("a")}, same, NO_RATES)["claims"]
    assert (row["verdict"], row["sentence"][:22]) == ("contradicted", "Equal within ±10% here")


def test_verdicts_allow_for_the_number_of_claims():
    """p = 0.03 decides a claim alone, and not as one of two."""
    fids = FIDS | {"close": [2.0 * np.exp(x) for x in (0.2, 0.3, 0.4)]}
    measured = Measured(fids, CURVES | {"close": CURVES["base"]}, {})
    claims = {"a": claim("close"), "b": claim("unsure")}
    alone, both = (summarize(dict([*claims.items()][:n]), measured, NO_RATES)["claims"][0] for n in (1, 2))
    assert 0.025 < float(alone["p"]) < 0.05
    assert alone["p"] == both["p"]
    assert (alone["verdict"], both["verdict"]) == ("shows", "undecided")


def test_measures_of_analyses():
    """Early movement: the least of blocks 2 to depth / 3; of 12 blocks those are 2 to 4."""
    deep = {"layers": {"skipped": [0.9, 0.3, 0.01, 0.4, 0.001, *[0.2] * 7]}}
    assert early_movement(deep) == 0.01
    assert early_movement({"layers": {"skipped": [0.9, 0.3, 0.1]}}) == 0.3
    claims = {
        "idle": claim("worse", "lower", "early_movement"),
        "aligned": claim("worse", "higher", "cknna"),
    }
    idle, aligned = summarize(claims, MEASURED, NO_RATES)["claims"]
    assert (idle["arm_values"], idle["verdict"]) == ([0.05] * 3, "shows")
    assert aligned["arm_values"] == pytest.approx([0.3, 0.31, 0.32])
    assert aligned["verdict"] != "shows"


def test_fid_while_training_is_shown_with_each_baseline():
    claims = {"a": claim("worse"), "b": claim("better", "lower"), "c": claim("worse", baseline="better")}
    parts = summarize(claims, MEASURED, NO_RATES)["analyses"]
    first, second = (part for part in parts if part["title"].startswith("FID during training"))
    assert [row[0] for row in first["rows"]] == ["base", "worse", "better"]
    assert [row[0] for row in second["rows"]] == ["better", "worse"]
    assert first["columns"] == ["run", "step 500", "step 1,000"]
    assert first["rows"][1][2] == "5.50 ± 0.50"
    line, logs = first["plot"]["series"][1], np.log(FIDS["worse"])
    y, low, high = line["y"][1], line["y"][1] - line["below"][1], line["y"][1] + line["above"][1]
    assert np.log([low, y, high]) == pytest.approx(logs.mean() + logs.std(ddof=1) * np.array([-1, 0, 1]))


def test_each_run_is_listed_with_what_it_changes():
    size = {"width": 32, "depth": 4, "heads": 1, "patch": 2}
    guided = Run(**size, train={"style_gain": 0.1, "steps": 50}, loss={"levels": {"count": 4}})
    apart = Run(**size, discriminator={"width": 16})
    recipes = {"guided": Recipe(guided, Loss(), Optimization(), Repa())}
    recipes["apart"] = recipes["guided"]._replace(run=apart)
    one = {"learning_rate": 0.00594, "steps": 50, "kid": 1.0, "fid": 2.0, "warnings": []}
    flat = {"learning_rate": 0.002, "steps": 99, "recall": 0.5, "fid": 5.0, "warnings": ["discriminator flat"]}
    shown = runs_content(recipes, {"guided": [one, one], "apart": [one | {"fid": 3.0, "learning_rate": 0.002}, flat]})
    settings = ["run", "G width × depth", "D width × depth", "patch", "learning rate", "steps", "changed"]
    assert shown["columns"] == [*settings, "FID ↓", "flagged"]
    changed = "train.style_gain=0.1, loss.levels.count=4"
    assert shown["rows"][0] == ["guided", "32 × 4", "32 × 4", 2, "0.00594", 50, changed, "2.00 ± 0.00", ""]
    assert shown["rows"][1] == ["apart", "32 × 4", "16 × 4", 2, "0.002", 50, "", "4.00 ± 1.41", 1]


def test_a_summary_of_other_baselines_is_noticed():
    table = pd.DataFrame({"run": ["base"] * 3, "fid": FIDS["base"][::-1]})
    content = summarize({"a": claim("worse"), "b": claim("worse", baseline="unsure")}, MEASURED, NO_RATES)
    assert same_baselines(content, table)
    assert not same_baselines(content, table.assign(fid=[2.0, 2.2, 2.4]))


def test_analyses_become_tables_and_plots():
    results = [one for own in ANALYSES.values() for one in own]
    layers, tokens, discriminators, alignment, start, _ = analyses_content(results)
    assert layers["columns"] == ["block", "base", "worse", "small"]
    assert layers["rows"][0][:2] == ["1", "0.60 ± 0.00"]
    assert layers["rows"][1] == ["2", "0.21 ± 0.01", "0.05 ± 0.00", "0.21 ± 0.01"]
    assert layers["rows"][2:4] == [["idle: 1", *["0, 0, 0"] * 3], ["idle: 2", "0, 0, 0", "1, 1, 1", "0, 0, 0"]]
    assert layers["rows"][4][:2] == ["distance", "12.00 ± 0.00"]
    assert tokens["columns"][:3] == ["block", "base, cosine", "base, CKA"]
    assert tokens["rows"][1][:3] == ["2", "0.90 ± 0.00", "0.80 ± 0.00"]
    assert layers["plot"]["series"][0]["y"] == pytest.approx([0.6, 0.21])
    assert layers["plot"]["series"][0]["above"] == pytest.approx([0, 0.01])
    cells = ["0.500 ± 0.000", "0.700 ± 0.000", "0.600 ± 0.000", "0.900 ± 0.000"]
    assert discriminators["rows"][0] == ["base", "trained", *cells]
    assert discriminators["rows"][3][:3] == ["base", "untrained", "0.200 ± 0.000"]
    assert "(chance: 0.1)" in discriminators["text"]
    assert "held-out images" in discriminators["text"]
    assert alignment["rows"][0] == ["base", "trained", "0.310 ± 0.010"]
    assert alignment["plot"]["series"][0]["y"] == pytest.approx([0.31] * 3)
    assert start["columns"][2:] == ["layer", "width 8", "width 32", "exponent"]
    grown = [[(0.5 + 0.01 * s) * width ** (1 + 0.01 * s) for s in range(3)] for width in (8, 32)]
    layers_of_generator = ["first block", "middle block", "last block", "output"]
    assert [row[2] for row in start["rows"][4:8]] == layers_of_generator
    assert start["rows"][7][3:] == [*(mean_text(own, ".2g") for own in grown), "1.01 ± 0.01"]
    assert start["rows"][3][5] == "0.00 ± 0.00"


def test_generators_of_each_depth_have_a_plot_of_their_own():
    deep = result("deep", 32, 0) | {"layers": {key: [0.1] * 4 for key in ("skipped", "cosine", "cka")} | {"spread": 1}}
    titles = [part["title"] for part in analyses_content([result("base", 32, 0), deep])]
    assert titles[:4:2] == ["Layer use of generators with 4 blocks", "Layer use of generators with 2 blocks"]


def test_summary_is_written_and_drawn():
    claims = {"a": claim("worse"), "b": claim("worse", "lower", "early_movement")}
    content = json.loads(json.dumps(summarize(claims, MEASURED, NO_RATES)))
    page = claims_page(content, ["A note."])
    assert "| **shows** | It holds here: FID is 5.48 (5 to 6) for worse" in " ".join(page.split())
    assert all(f"## {analysis['title']}" in page for analysis in content["analyses"])
    assert page.endswith("A note.\n")
    for some in (content, summarize({}, Measured({}, {}, {}), NO_RATES)):
        draw_claims(some).savefig(io.BytesIO())
        draw_analyses(some).savefig(io.BytesIO())


def test_trainings_that_diverged_count_as_worse_than_all_others():
    """All five of one arm and two of another, against an exact permutation test by hand."""
    fids = {"base": [2.0, 2.1, 2.2, 2.3, 2.4], "all": [np.inf] * 5, "two": [np.inf, np.inf, 2.5, 2.05, 3.0]}
    curves = {run: [CURVES["base"][0]] * int(np.isfinite(own).sum()) for run, own in fids.items()}
    base = [result("base", 32, seed) for seed in range(5)]
    measured = Measured(fids, curves, {"base": base, "two": [result("two", 32, seed) for seed in (2, 3, 4)]})
    claims = {"a": claim("all"), "b": claim("two"), "c": claim("all", measure="early_movement")}
    content = summarize(claims, measured, None)
    a, b, c = content["claims"]
    assert (a["arm_text"], a["ratio"]) == ("unknown (5 of 5 diverged)", "higher, by ranks")
    assert a["p"] == "0.0079"  # 2 / C(10, 5)
    assert (a["verdict"], b["verdict"], c["verdict"]) == ("shows", "undecided", "undecided")
    assert b["arm_text"] == "2.49 (2.05 to 3) (2 of 5 diverged)"
    assert a["sentence"] == "It holds here: FID is unknown (5 of 5 diverged) for all, 2.2 (2 to 2.4) for base."
    ranks = np.array([1, 3, 4, 5, 6, 9.5, 9.5, 7, 2, 8])  # of base, then of two
    extreme = [abs(ranks[list(own)].sum() - 27.5) >= abs(27.5 - ranks[:5].sum()) for own in combinations(range(10), 5)]
    assert b["p"] == f"{np.mean(extreme):.2g}"
    assert [row[0] for row in content["analyses"][0]["rows"]] == ["base", "two"]
    draw_claims(content).savefig(io.BytesIO())
    assert "5 of 5 diverged" in claims_page(json.loads(json.dumps(content)))


def test_runs_that_diverged_are_listed_without_metrics():
    run = Run(width=32, depth=4, heads=1, patch=2)
    settings = {"learning_rate": 0.1, "steps": 50}
    diverged = settings | {"diverged": True, "warnings": ["training diverged"]}
    recipes = {"some": Recipe(run, Loss(), Optimization(), Repa()), "all": Recipe(run, Loss(), Optimization(), Repa())}
    some, every = runs_content(
        recipes, {"some": [settings | {"fid": 2.0, "warnings": []}, diverged], "all": [diverged, diverged]}
    )["rows"]
    assert some[-2:] == ["2.00", 1]
    assert every[-2:] == ["", 2]
