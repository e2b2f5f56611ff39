"""Laws against closed forms and other fits, verdicts by hand, and the numbers in tables, figures and the page."""

import io
import json
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from gat.config import MODEL, Training
from gat.report.columns import COLUMNS, CURVES, mean_text
from gat.report.comparisons import compare_sizes
from gat.report.figures import draw_samples, draw_scaling
from gat.report.page import render_page, study_content
from gat.report.scaling_laws import Points, PowerLaw, equal_compute, fit_scaling, fit_with_floor, forecast_last
from gat.report.tables import equal_text, runs_table, scaling_page
from gat.report.trainings import smallest_and_largest, study_of, training_table

# Read off the paper's scaling figure: FID, GMACs of the generator and, at patch 2, of the discriminator.
PAPER = np.array([(15.2, 6.06, 7.77), (9.5, 23.0, 24.96), (4.6, 80.6, 82.89), (4.0, 118.6, 120.98)])  # S/2 to XL/2
PATCH_4 = np.array([(35.0, 1.41), (20.5, 5.56)])  # S/4, B/4
FACTORS = (0.9, 1.0, 1.1)  # of the seeds' FIDs about the law
COLORS = ["#aaaaff", "#000088"], "#ff0000"
FLOORS = {"reconstructions": 2.5, "held-out reals": 0.5}
MEASURED = {name: {"samples": 1000, "fid": fid, "recall": 0.75} for name, fid in FLOORS.items()}


@pytest.fixture
def table() -> pd.DataFrame:
    """FID = 300 / √GMACs in the mean: sizes S, B, L at patch 2, one of them at patch 4, and the model under test."""
    runs = [("S-2", 12, 2, 1.0), ("B-2", 24, 2, 4.0), ("L-2", 48, 2, 16.0), ("L-4", 48, 4, 4.5)]
    rows = [(*run, seed, 300 * run[-1] ** -0.5 * factor) for run in runs for seed, factor in enumerate(FACTORS)]
    rows.append((MODEL, 48, 2, 8.0, 0, 300 * 8.0**-0.5))
    measures = {"kid": 0.1, "precision": 0.5, "recall": 0.25, "spread": 0.6, "recognized": 0.9, "gap": -1e-9}
    others = {
        "depth": 4,
        "params": 1_500_000,
        "discriminator_params": 9_000,
        "steps": 100,
        "changes_recipe": False,
        "warnings": [],
    }
    keys = ("run", "width", "patch", "gmacs", "seed", "fid")
    results = [dict(zip(keys, row, strict=True)) | measures | others | {"training_gmacs": 2e5 * row[3]} for row in rows]
    return training_table(results)


def curves_of(table: pd.DataFrame) -> dict[Training, dict[str, np.ndarray]]:
    return {
        Training(row.run, row.seed): {"fid": np.array([[10, 2 * row.fid], [20, row.fid]])} for row in table.itertuples()
    }


def drawn(table: pd.DataFrame):
    curves = curves_of(table)
    return draw_scaling(table, curves, fit_scaling(table), equal_compute(table, curves), *COLORS, FLOORS).axes


def labels(axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def page(table: pd.DataFrame) -> str:
    return scaling_page(
        table, fit_scaling(table), equal_compute(table, curves_of(table)), MEASURED, ["Features: some."]
    )


def cells(markdown: str) -> dict[str, dict[str, str]]:
    """The first Markdown table, by its first column."""
    lines = [line for line in markdown.split("\n\n## ")[0].splitlines() if line.startswith("|")]
    headings, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in rows}


def without_training_compute(table: pd.DataFrame, *runs: str) -> pd.DataFrame:
    return table.assign(training_gmacs=table.training_gmacs.where(~table.run.isin(runs)))


# Laws


def test_power_law_is_the_regression_of_logarithms(rng):
    """And its intervals are Student's, by the textbook's sums."""
    x = np.geomspace(1, 100, 8)
    exact = PowerLaw(x, 352 * x**-0.456)
    assert (exact.factor, exact.exponent, exact.correlation) == pytest.approx((352, -0.456, -1))
    assert exact.exponent_interval == pytest.approx((-0.456, -0.456))
    assert exact.forecast([10.0])[:, 0] == pytest.approx([352 * 10**-0.456] * 2)
    y = 352 * x**-0.456 * np.exp(rng.normal(0, 0.2, 8))
    law, logs = PowerLaw(x, y), np.log([x, y])
    (slope, intercept), covariance = np.polyfit(*logs, 1, cov=True)
    got = np.log(law.factor), law.exponent, law.correlation, law.n
    assert got == pytest.approx((intercept, slope, np.corrcoef(*logs)[0, 1], 8))
    r, fisher = stats.pearsonr(logs[0], y)[0], stats.norm.ppf(0.975) / 5**0.5
    assert law.correlation_linear == pytest.approx(r)
    assert law.correlation_linear_interval == pytest.approx(np.tanh(np.arctanh(r) + fisher * np.array([-1, 1])))
    quantile = stats.t.ppf(0.975, 6)
    assert np.ptp(law.exponent_interval) == pytest.approx(2 * quantile * covariance[0, 0] ** 0.5)
    at = np.log(200.0)
    variance = np.array([at, 1]) @ covariance @ [at, 1]
    scatter = np.square(logs[1] - slope * logs[0] - intercept).sum() / 6
    for interval, own in ((law.band, variance), (law.forecast, variance + scatter)):
        half = quantile * own**0.5
        assert np.log(interval([200.0])[:, 0]) == pytest.approx(
            [intercept + slope * at - half, intercept + slope * at + half]
        )


def test_95_percent_of_forecasts_hold():
    """Of laws with noise in each run, the next run lies in the interval as often as it says."""
    rng, x, hits, draws = np.random.default_rng(0), np.geomspace(1, 300, 5), 0, 800
    for noise in rng.normal(0, 0.3, (draws, 5)):
        y = 100 * x**-0.5 * np.exp(noise)
        forecast = forecast_last(Points([*"SBLXY"], x, [np.array([one]) for one in y]))
        hits += forecast.low < y[-1] < forecast.high
    assert stats.binom.ppf(0.001, draws, 0.95) <= hits <= stats.binom.ppf(0.999, draws, 0.95)


def test_a_floor_is_found_where_there_is_one():
    x = np.geomspace(1, 1000, 7)
    fit = fit_with_floor(x, 2 + 50 * x**-0.7)
    assert (fit.floor, fit.exponent) == pytest.approx((2, -0.7), rel=1e-3)
    assert fit.floor_interval[0] <= fit.floor <= fit.floor_interval[1]
    assert fit_with_floor(x[:4], x[:4] ** -0.5) is None


def test_the_papers_points_give_the_papers_numbers():
    """r = −0.95 of FID with log GFLOPs, and the fit 3.52e5 · C^−0.456 against 15·D + 4·G of training."""
    fids, generator, discriminator = PAPER.T
    all_fids, all_generators = np.concatenate([PAPER[:, :2], PATCH_4]).T
    law = PowerLaw(2 * all_generators, all_fids)
    assert law.correlation_linear == pytest.approx(-0.95, abs=0.005)
    assert law.correlation == pytest.approx(-0.995, abs=0.002)
    assert law.exponent == pytest.approx(-0.49, abs=0.01)
    work = 50_000 * 512 * (15 * discriminator + 4 * generator)
    theirs = 3.52e5 * work**-0.456
    assert theirs == pytest.approx([15.4, 8.9, 5.1, 4.3], rel=0.02)
    assert PowerLaw(work, fids)(work) == pytest.approx(theirs, rel=0.1)


def test_forecast_does_not_know_what_it_predicts():
    x = np.array([1.0, 4.0, 16.0, 64.0])
    y = [100 * cost**-0.5 * np.array([0.9, 1 / 0.9]) for cost in x]
    y[3] = np.array([50.0, 50.0, 50.0])  # far off the law
    forecast = forecast_last(Points(["S", "B", "L", "XL"], x, y))
    assert (forecast.run, forecast.measured) == ("XL", pytest.approx(50))
    assert forecast.predicted == pytest.approx(12.5)


def test_equal_compute_finds_the_better_run(table):
    """S falls early, L later and further; they cross at the geometric middle of the points between which they do."""
    study = table[table.run.isin(["S-2", "L-2"]) & (table.seed == 0)].assign(training_gmacs=100.0, steps=100)
    curves = {
        Training("S-2", 0): {"fid": np.array([[1, 40.0], [100, 10.0]])},
        Training("L-2", 0): {"fid": np.array([[1, 160.0], [100, 2.5]])},
    }
    equal = equal_compute(study, curves)
    (first, start, cross), (second, _, end) = equal.best
    assert (first, second, start, end) == ("S-2", "L-2", pytest.approx(1), pytest.approx(100))
    assert cross == pytest.approx(10, rel=1e-3)
    text = equal_text(study, equal)
    assert "S-2 up to 10 GMACs, L-2 beyond." in text
    assert "At S-2's final 100 GMACs: S-2 10, L-2 2.5, a ratio of 0.25." in text
    curves[Training("S-2", 0)] = {"fid": np.array([[1, 40.0], [10, 20.0]])}
    curves[Training("L-2", 0)] = {"fid": np.array([[50, 160.0], [100, 2.5]])}
    (first, _, left), _ = equal_compute(study, curves).best  # nothing else is there from 10 to 50
    assert (first, left >= 50) == ("S-2", True)
    assert equal_compute(table, {training: {} for training in curves_of(table)}) is None


def test_laws_are_of_the_study_proper(table):
    table.loc[table.run == "B-2", "changes_recipe"] = True
    assert study_of(table).run.unique().tolist() == ["S-2", "L-4", "L-2"]
    assert smallest_and_largest(table) == ["S-2", "L-2"]
    for scaling, factor in zip(fit_scaling(table), (2, 2e5), strict=True):
        assert scaling.points.runs == ["S-2", "L-4", "L-2"]
        assert scaling.points.costs == pytest.approx(factor * np.array([1, 4.5, 16]))
        assert scaling.points.fids[0] == pytest.approx([270, 300, 330])
        (fit,) = scaling.fits  # at patch 2 there are two runs
        assert (fit.title, fit.law.n, fit.forecast, fit.unflagged) == ("all patches", 3, None, None)
        assert fit.law.exponent == pytest.approx(-0.5)


def test_laws_are_of_one_patch_and_of_all_with_and_without_flagged_trainings(table):
    one, both = fit_scaling(table)[0].fits
    assert (one.title, one.points.runs, both.title) == ("patch 2", ["S-2", "B-2", "L-2"], "all patches")
    assert both.points.runs == ["S-2", "B-2", "L-4", "L-2"]
    table.loc[(table.run == "S-2") & (table.seed > 0), "warnings"] = "discriminator flat"
    flagged = fit_scaling(table)[0].fits[0]
    assert flagged.law.exponent == pytest.approx(one.law.exponent)
    assert flagged.unflagged.exponent == pytest.approx(
        one.law.exponent + np.log(0.9 / np.prod(FACTORS) ** (1 / 3)) * -0.36, abs=0.01
    )
    assert "Without flagged trainings: exponent" in page(table)


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (lambda table: table[table.run == MODEL].assign(training_gmacs=None), False),  # a pretrained model alone
        (lambda table: table[table.run.isin(["S-2", "B-2"])], False),
        (lambda table: table.assign(gmacs=np.where(table.width == 48, 16.0, 4.0)), False),  # two different costs
        (lambda table: table[table.seed == 0], True),
    ],
)
def test_unusual_studies_are_reported(change, law, table):
    few = change(table)
    scalings, equal = fit_scaling(few), equal_compute(few, curves_of(few))
    draw_scaling(few, curves_of(few), scalings, equal, *COLORS, FLOORS).savefig(io.BytesIO())
    assert ("with C in generator GFLOPs" in scaling_page(few, scalings, equal, {})) == law
    study = study_content(few, {}, scalings, equal, *COLORS, {})
    assert (study["scaling"]["costs"][0]["law"] is not None) == law
    if not law:
        with pytest.raises(ValueError, match="different costs"):
            PowerLaw(scalings[0].points.costs, scalings[0].points.means)


# Comparisons


def test_sizes_are_compared_at_the_patch_of_most_runs_and_patches_at_each_size(table):
    pairs = {step[:2]: step.comparison for step in compare_sizes(study_of(table))}
    assert [*pairs] == [("S-2", "B-2"), ("B-2", "L-2"), ("L-4", "L-2")]
    assert pairs["S-2", "B-2"].difference == pytest.approx(np.log(0.5))
    assert pairs["S-2", "B-2"].text.startswith("0.5 [0.3")
    assert compare_sizes(study_of(table.assign(changes_recipe=True))) == []
    finer = table.replace({"run": {"L-4": "S-1"}, "patch": {4: 1}})
    finer.loc[finer.run == "S-1", "width"] = 12
    assert [pair[:2] for pair in compare_sizes(study_of(finer))] == [("S-2", "B-2"), ("B-2", "L-2"), ("S-2", "S-1")]
    by_size, by_patch, *_ = drawn(finer)
    assert labels(by_size) == ["S-2", "B-2", "L-2", "model"]
    assert labels(by_patch) == ["S-1", "S-2"]


# Tables


def test_registry_explains_every_column_once():
    for columns in (COLUMNS, CURVES):
        assert len({column.key for column in columns}) == len(columns)
        assert all(column.heading and column.explanation for column in columns)


@pytest.mark.parametrize(
    ("values", "text"),
    [([1.0, 3.0], "2.00 ± 1.41"), ([2.0], "2.00"), ([], ""), ([-1e-9], "0.00"), ([2.0, np.nan], "2.00")],
)
def test_mean_and_deviation(values, text):
    assert mean_text(values) == text


def test_table_has_a_row_a_run_with_the_spread_of_its_seeds(table):
    assert [*table.columns[:4], *table.columns[-2:]] == ["run", "seed", "width", "depth", "steps", "changes_recipe"]
    table.loc[table.run == "S-2", "kid"] = None  # not measured
    rows = cells(runs_table(without_training_compute(table, "S-2")))
    assert [*rows] == ["S-2", "B-2", "L-4", "model", "L-2"]
    assert (rows["B-2"]["FID ↓"], rows["B-2"]["seeds"], rows["B-2"]["gap"]) == ("150.00 ± 15.00", "3", "0.00 ± 0.00")
    assert (rows["model"]["FID ↓"], rows["model"]["seeds"]) == ("106.07", "1")
    cost = [rows["L-2"][heading] for heading in ("parameters", "GMACs", "training GMACs")]
    assert cost == ["1,500,000", "16", "3.2e+06"]
    assert (rows["S-2"]["KID ↓"], rows["S-2"]["training GMACs"], rows["L-2"]["spread"]) == ("", "", "0.60 ± 0.00")


def test_page_has_laws_forecasts_differences_floors_and_notes(table):
    text = page(table)
    for part in (
        "Patch 2, 3 runs: FID ≈",
        "All patches, 4 runs: FID ≈",
        "C^-0.50 with C in training GMACs",
        "without L-2 predicts FID 74.7",
        "| S-2    | B-2  | 0.5 [",
        "Trend over S-2, B-2, L-2: 27 of 27 pairs",
        "Lowest at equal training compute: S-2 up to",
        "| reconstructions | 1,000    | 2.50",
    ):
        assert part in text, part
    assert text.endswith("Features: some.\n")
    assert "training GMACs" not in page(without_training_compute(table, "S-2", "B-2")).split("## Power laws")[1]


def test_noise_of_sampling_stands_beside_that_of_seeds(table):
    """Pairs of sets whose logarithms differ by √2 · 10 % have a standard deviation of 10 %."""
    assert "Noise of sampling" not in page(table)
    table["fid_sets"] = [[fid, fid * np.exp(0.1 * 2**0.5)] for fid in table.fid]
    seeds = f"{np.std(np.log(FACTORS), ddof=1):.3f}"
    assert f"of one training: 0.100; between seeds of one run: {seeds} (by run: {seeds} to {seeds})." in page(table)
    assert page(table[table.seed == 0]).count("between seeds") == 0


def test_warnings_are_marked_in_table_and_figure(table):
    assert "(!)" not in page(table)
    row = (table.run == "B-2") & (table.seed == 1)
    table.loc[row, "warnings"] = "discriminator flat"
    text = page(table)
    assert {"B-2 (!)", "S-2"} <= cells(text).keys()
    assert "- B-2, seed 1: discriminator flat" in text
    marked = next(points for points in drawn(table)[2].collections if points.get_label() == "with a warning")
    assert marked.get_offsets().tolist() == [[2 * table.gmacs[row].item(), table.fid[row].item()]]


# Figures


def test_figure_has_the_papers_panels_and_training_compute(table):
    by_size, by_patch, by_generator, by_training, _, ratios = drawn(table)
    assert labels(by_size) == ["S-2", "B-2", "L-2", "model"]
    assert by_size.lines[0].get_xydata() == pytest.approx(np.array([[10, 600], [20, 300]]))  # the mean of the seeds
    assert labels(by_patch) == ["L-2", "L-4"]
    for axes, factor in ((by_generator, 2), (by_training, 2e5)):
        shown = {text.get_text(): text.xy for text in axes.texts}
        assert shown.keys() == {"S-2", "B-2", "L-2", "L-4"}
        assert shown["L-2"] == pytest.approx((16 * factor, 75), rel=0.01)
        assert any("patch 2: exponent -0.50" in label for label in labels(axes))
        assert {"reconstructions: 2.5", "held-out reals: 0.5"} <= {*labels(axes)}
        points = np.concatenate([c.get_offsets() for c in axes.collections])
        for row in table.itertuples():  # every seed's own point
            assert np.isclose(points, [factor * row.gmacs, row.fid]).all(axis=1).any(), row
    one_patch = drawn(table.assign(patch=2))
    assert all("L-2, predicted from the other runs" in labels(axes) for axes in one_patch[2:4])
    assert [label.get_text() for label in ratios.get_yticklabels()] == ["S-2 → B-2", "B-2 → L-2", "L-4 → L-2"]


def test_trainings_of_unknown_compute_are_drawn_against_the_generator_alone(table):
    names = [{text.get_text() for text in axes.texts} for axes in drawn(without_training_compute(table, "S-2"))[2:4]]
    assert names[0] - names[1] == {"S-2"}


def test_samples_stand_side_by_side(tmp_path):
    pictures = {name: np.full((64, 64, 3), value, np.uint8) for name, value in (("real", 200), ("XL-2", 40))}
    draw_samples(pictures).savefig(tmp_path / "samples.png")
    image = matplotlib.image.imread(tmp_path / "samples.png")
    middle = image[image.shape[0] // 2, :, 0]
    quarter = len(middle) // 4
    assert middle[[quarter, 3 * quarter]] == pytest.approx([200 / 255, 40 / 255], abs=0.01)


# The page


def test_the_pages_numbers_are_the_reports_and_infinities_are_null(table):
    """Gradient norms under fp16 may be infinite; of a pretrained run the training compute is unknown."""
    table = without_training_compute(table, "S-2")
    curves, scalings = curves_of(table), fit_scaling(table)
    curves[Training("B-2", 1)]["grad_g"] = np.array([[10, np.inf], [20, 1.5]])
    study = study_content(table, curves, scalings, None, *COLORS, FLOORS)
    html = render_page(study | {"title": "a <b>", "trainings": [], "commands": {}}, {})
    assert "<title>a &lt;b&gt;</title>" in html
    content = json.loads(re.search(r'id="content">(.*?)</script>', html, re.S)[1])
    scaling, curve = content["scaling"], next(own for own in content["scaling"]["curves"] if "grad_g" in own)
    assert (curve["run"], curve["seed"], curve["grad_g"]) == ("B-2", 1, [[10, 20], [None, 1.5]])
    assert [column["key"] for column in content["curve_columns"]] == ["fid", "grad_g"]
    assert {row["run"] for row in scaling["rows"] if row["training_gmacs"] is None} == {"S-2"}
    grid, law = scalings[0].grid, scalings[0].fits[0].law
    assert scaling["costs"][0]["law"]["band"] == law.band(grid).tolist()
    assert ("exponent of FID in generator GFLOPs", "−0.50") in study["facts"]


def test_the_report_imports_nothing_heavy():
    script = "import stages.report, stages.summary, sys; print({'torch', 'diffusers', 'cleanfid'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
