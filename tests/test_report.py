import io
import json
import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from gat.config import MODEL, Training
from gat.report.figures import (
    Points,
    compare,
    draw_samples,
    draw_scaling,
    fit_power_law,
    forecast_largest,
    markdown_page,
    markdown_table,
    study_of,
)
from gat.report.page import render_page, study_content
from gat.study.cost import Cost, training_gflops

# Read off the paper's scaling figure: FID, GMACs of the generator and, at patch 2, of the discriminator.
PAPER = {
    "S/2": (15.2, 6.06, 7.77),
    "B/2": (9.5, 23.0, 24.96),
    "L/2": (4.6, 80.6, 82.89),
    "XL/2": (4.0, 118.6, 120.98),
    "S/4": (35.0, 1.41, None),
    "B/4": (20.5, 5.56, None),
}
FACTORS = (0.9, 1.0, 1.1)  # of the seeds' FIDs about the law


@pytest.fixture
def table() -> pd.DataFrame:
    runs = [("S-2", 12, 2, 1.0), ("B-2", 24, 2, 4.0), ("L-2", 48, 2, 16.0), ("L-4", 48, 4, 4.5)]
    rows = [(*run, seed, 300 * run[-1] ** -0.5 * factor) for run in runs for seed, factor in enumerate(FACTORS)]
    rows.append((MODEL, 48, 2, 8.0, 0, 300 * 8.0**-0.5))
    frame = pd.DataFrame(rows, columns=["run", "width", "patch", "gmacs", "seed", "fid"])
    measures = {"kid": 0.1, "precision": 0.5, "recall": 0.25, "spread": 0.6, "recognized": 0.9, "gap": 0.3}
    return frame.assign(
        depth=4,
        params=1_500_000,
        train_gflops=2e5 * frame.gmacs,
        images_per_second=99.0,
        overrides=False,
        warnings="",
        **measures,
    )


@pytest.fixture
def curves(table) -> dict[Training, pd.DataFrame]:
    return {
        Training(row.run, row.seed): pd.DataFrame({"step": [10, 20], "fid": [2 * row.fid, row.fid]})
        for row in table.itertuples()
    }


def test_models_without_training_compute_are_drawn_against_the_generators_alone(table):
    """A pretrained model under test and nothing else; then a study with a pretrained run."""
    floors = {"reconstructions": 0.5}
    alone = table[table.run == MODEL].assign(train_gflops=None)
    draw_scaling(alone, {}, ["#000000"], "#ff0000", 50, floors).savefig(io.BytesIO())
    assert "| model |" in markdown_page(alone, floors)
    with_one = table.assign(train_gflops=table.train_gflops.where(table.run != "S-2"))
    figure = draw_scaling(with_one, {}, ["#000000", "#ffffff"], "#ff0000", 50, floors)
    figure.savefig(io.BytesIO())
    names = [{text.get_text() for text in axes.texts} for axes in figure.axes[2:]]
    assert names[0] - names[1] == {"S-2"}
    assert "C in training GMACs" in markdown_page(with_one, floors, resamplings=50)
    two = with_one.assign(train_gflops=with_one.train_gflops.where(with_one.run != "B-2"))
    page = markdown_page(two, floors, resamplings=50)
    assert "C in generator GFLOPs" in page
    assert "C in training GMACs" not in page


def test_power_law_is_found_with_its_interval_and_correlation(rng):
    x = np.geomspace(1, 100, 8)
    law = fit_power_law(x, 352 * x**-0.456)
    assert (law.factor, law.exponent, law.correlation) == pytest.approx((352, -0.456, -1))
    assert (law.low, law.high) == pytest.approx((-0.456, -0.456))
    assert law(10.0) == pytest.approx(352 * 10**-0.456)
    noisy = fit_power_law(x, 352 * x**-0.456 * np.exp(rng.normal(0, 0.2, 8)))
    assert noisy.low < noisy.exponent < noisy.high
    assert noisy.low < -0.456 < noisy.high
    with pytest.raises(ValueError, match="three points"):
        fit_power_law([1, 2], [1, 2])


def test_interval_grows_with_the_spread_of_the_seeds(rng):
    """The means are on the law; what is uncertain are the seeds alone."""
    x = np.geomspace(1, 100, 5)
    widths = []
    for factors in ([1.0, 1.0, 1.0], [0.7, 1.0, 1.3]):
        law = fit_power_law(x, [100 * cost**-0.5 * np.array(factors) for cost in x])
        assert law.exponent == pytest.approx(-0.5)
        widths.append(law.high - law.low)
    assert widths[0] == pytest.approx(0, abs=1e-9)
    assert widths[1] > 0.05


def test_the_papers_points_give_the_papers_numbers():
    """r = −0.95 of FID with log GFLOPs, and the fit 3.52e5 · C^−0.456 against 15·D + 4·G of training."""
    fids, generator, discriminator = (np.array(values, float) for values in zip(*PAPER.values(), strict=True))
    law = fit_power_law(2 * generator, fids)
    assert law.correlation_linear == pytest.approx(-0.95, abs=0.005)
    assert law.correlation == pytest.approx(-0.995, abs=0.002)
    assert law.exponent == pytest.approx(-0.49, abs=0.01)
    trained = np.isfinite(discriminator)
    work = 50_000 * 512 * (15 * discriminator + 4 * generator)[trained]
    theirs = law._replace(factor=3.52e5, exponent=-0.456)
    assert theirs(work) == pytest.approx([15.4, 8.9, 5.1, 4.3], rel=0.02)
    ours = fit_power_law(work, fids[trained])
    assert ours(work) == pytest.approx(theirs(work), rel=0.1)
    # Our count is the release's less one forward of the generator: D's step and G's share it.
    counted = [
        training_gflops(Cost(0, g), Cost(0, d), 512, 50_000, penalty=True)
        for g, d in zip(generator[trained], discriminator[trained], strict=True)
    ]
    assert counted == pytest.approx(work - 50_000 * 512 * generator[trained])


def test_forecast_of_the_largest_does_not_know_it():
    x, seeds = [1.0, 4.0, 16.0, 64.0], np.array(FACTORS)
    y = [100 * cost**-0.5 * seeds for cost in x]
    y[-1] = np.array([50.0, 50.0, 50.0])  # far off the law
    forecast = forecast_largest(["S", "B", "L", "XL"], x, y)
    assert (forecast.run, forecast.measured) == ("XL", 50)
    assert forecast.predicted == pytest.approx(12.5)
    assert forecast.low < 12.5 < forecast.high < 50
    with pytest.raises(ValueError, match="three points"):
        forecast_largest(["S", "B", "L"], x[:3], y[:3])


def test_study_leaves_out_the_model_under_test_and_ablations(table):
    table.loc[table.run == "B-2", "overrides"] = True
    assert study_of(table).run.unique().tolist() == ["S-2", "L-4", "L-2"]
    assert Points.of(study_of(table), "gmacs").runs == ["S-2", "L-4", "L-2"]


def test_differences_within_the_seeds_noise_are_called_so(table):
    verdicts = {(pair.worse, pair.better): pair.verdict for pair in compare(study_of(table))}
    assert verdicts == dict.fromkeys(
        [("S-2", "B-2"), ("B-2", "L-2"), ("L-4", "L-2")], "more than the noise of the seeds"
    )
    near = table.assign(fid=np.where(table.run == "B-2", table.fid.max() * 0.9 + 30 * table.seed, table.fid))
    verdicts = {(pair.worse, pair.better): pair.verdict for pair in compare(study_of(near))}
    assert verdicts["S-2", "B-2"] == "within the noise of the seeds"
    reverse = table.assign(fid=np.where(table.run == "B-2", 5 * table.fid, table.fid))
    assert compare(study_of(reverse))[0].verdict == "the other way round"
    once = table[table.seed == 0]
    assert {pair.verdict for pair in compare(study_of(once))} == {"one seed does not tell"}


def test_sizes_are_compared_at_the_patch_of_most_runs(table, curves):
    table = table.replace({"run": {"L-4": "S-1"}, "patch": {4: 1}}).assign(
        width=np.where(table.run == "L-4", 12, table.width), gmacs=np.where(table.run == "L-4", 4.5, table.gmacs)
    )
    pairs = [(pair.worse, pair.better) for pair in compare(study_of(table))]
    assert pairs == [("S-2", "B-2"), ("B-2", "L-2"), ("S-2", "S-1")]
    curves = {Training(name.replace("L-4", "S-1"), seed): curve for (name, seed), curve in curves.items()}
    by_size, by_patch = draw_scaling(table, curves, ["#aaaaff", "#000088"], "#ff0000", 50).axes[:2]
    assert [line.get_label() for line in by_size.lines] == ["S-2", "B-2", "L-2", "model"]
    assert [line.get_label() for line in by_patch.lines] == ["S-1", "S-2"]
    nothing = study_of(table.assign(overrides=True))
    assert compare(nothing) == []


def test_figure_has_the_papers_three_panels_and_training_compute(table, curves, tmp_path):
    floors = {"reconstructions": 2.5, "real halves": 0.5}
    figure = draw_scaling(table, curves, ["#aaaaff", "#000088"], "#ff0000", 50, floors)
    by_size, by_patch, by_generator, by_training = figure.axes
    assert [line.get_label() for line in by_size.lines] == ["S-2", "B-2", "L-2", "model"]
    assert by_size.lines[0].get_ydata() == pytest.approx([600, 300])  # the mean of the seeds
    assert [line.get_label() for line in by_patch.lines] == ["L-2", "L-4"]
    for axes, factor in ((by_generator, 2), (by_training, 2e5)):
        shown = {text.get_text(): text.xy for text in axes.texts}
        assert shown.keys() == {"S-2", "B-2", "L-2", "L-4"}
        assert shown["L-2"] == pytest.approx((16 * factor, 75))
        labels = axes.get_legend_handles_labels()[1]
        assert any("exponent -0.50" in label for label in labels)
        assert {"reconstructions: 2.5", "real halves: 0.5", "model", "L-2, forecast from the others"} <= {*labels}
        points = np.concatenate([c.get_offsets() for c in axes.collections if hasattr(c, "get_offsets")])
        for row in table.itertuples():  # every seed's own point
            assert np.isclose(points, [factor * row.gmacs, row.fid]).all(axis=1).any(), row
    figure.savefig(tmp_path / "scaling.png")


def test_figure_of_one_seed_and_of_two_runs_is_drawn(table, curves, tmp_path):
    some = table[(table.seed == 0) & table.run.isin(["S-2", "B-2"])]
    figure = draw_scaling(some, curves, ["#aaaaff"], "#ff0000", 50)
    figure.savefig(tmp_path / "scaling.png")
    labels = figure.axes[2].get_legend_handles_labels()[1]
    assert labels == ["model"]  # two points make no law
    assert "## Laws" not in markdown_page(some, {})


def test_table_has_a_row_a_run_with_the_spread_of_its_seeds(table):
    table.loc[table.run == "S-2", "kid"] = None  # not measured
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown_table(table).splitlines()]
    named = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert [*named] == ["S-2", "B-2", "L-4", "model", "L-2"]
    assert (named["B-2"]["FID"], named["B-2"]["seeds"]) == ("150.00 ± 15.00", "3")
    assert (named["model"]["FID"], named["model"]["seeds"]) == ("106.07", "1")
    assert (named["L-2"]["params (M)"], named["L-2"]["GFLOPs"]) == ("1.500", "32")
    assert (named["S-2"]["KID"], named["L-2"]["spread"]) == ("", "0.60 ± 0.00")


def test_page_says_the_laws_the_forecast_and_the_floors(table):
    page = markdown_page(table, {"reconstructions": 2.5}, ["Features: some."])
    assert "C^-0.500 with C in generator GFLOPs" in page
    assert "C^-0.500 with C in training GMACs" in page
    assert "Without L-2 the law forecasts 75" in page
    assert "S-2 to B-2: FID smaller by 150, the sum of the standard errors 26: more than the noise" in page
    assert "reconstructions 2.5" in page
    assert page.rstrip().endswith("Features: some.")


def test_what_is_doubtful_is_marked_in_table_and_figure(table, curves):
    assert "(!)" not in markdown_page(table, {})
    row = (table.run == "B-2") & (table.seed == 1)
    table.loc[row, "warnings"] = "discriminator flat: mean gap 0.001 over steps 800 to 1000"
    page = markdown_page(table, {})
    assert "| B-2 (!) " in page
    assert "| S-2 " in page
    assert "- B-2, seed 1: discriminator flat: mean gap 0.001 over steps 800 to 1000." in page
    axes = draw_scaling(table, curves, ["#aaaaff", "#000088"], "#ff0000", 50).axes[2]
    marked = next(points for points in axes.collections if points.get_label() == "with a warning")
    assert axes.get_xlabel() == "generator GFLOPs (2 × GMACs)"
    assert marked.get_offsets().tolist() == [[2 * table.gmacs[row].item(), table.fid[row].item()]]


def test_samples_stand_side_by_side(tmp_path):
    pictures = {name: np.full((64, 64, 3), value, np.uint8) for name, value in (("real", 200), ("XL-2", 40))}
    draw_samples(pictures).savefig(tmp_path / "samples.png")
    drawn = matplotlib.image.imread(tmp_path / "samples.png")
    middle = drawn[drawn.shape[0] // 2, :, 0]
    quarter = len(middle) // 4
    assert middle[quarter] == pytest.approx(200 / 255, abs=0.01)
    assert middle[3 * quarter] == pytest.approx(40 / 255, abs=0.01)


def test_the_pages_numbers_are_the_reports_and_infinities_are_null(table, curves):
    """Gradient norms under fp16 may be infinite, of a pretrained run the training compute is unknown."""
    odd = {
        training: {"fid": frame, "grad_g": frame.rename(columns={"fid": "grad_g"})}
        for training, frame in curves.items()
    }
    first = next(iter(odd))
    odd[first]["grad_g"] = pd.DataFrame({"step": [10, 20], "grad_g": [np.inf, 1.5]})
    unknown = table.assign(train_gflops=table.train_gflops.where(table.run != "S-2"))
    study = study_content(unknown, odd, ["#000000", "#ffffff"], "#ff0000", {"reconstructions": 0.5}, 50)
    scaling = study["scaling"]
    law = fit_power_law(*Points.of(study_of(unknown), "gmacs")[1:], 50)
    assert scaling["costs"][0]["law"]["exponent"] == pytest.approx(law.exponent)
    page = render_page(study | {"title": "a <b>", "metric_names": []}, {})
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])
    curve = next(own for own in content["scaling"]["curves"] if own["run"] == first.run and own["seed"] == first.seed)
    assert curve["grad_g"] == [[10, 20], [None, 1.5]]
    assert None in {row["train_gflops"] for row in content["scaling"]["rows"]}
    assert "<title>a &lt;b&gt;</title>" in page
    assert 'id="training"' not in page


def test_runs_of_one_cost_have_no_law_on_the_page(table):
    same = table[table.run != MODEL].assign(gmacs=1.0)
    with np.errstate(all="ignore"):
        study = study_content(same, {}, ["#000000"], "#ff0000", {}, 50)
    assert study["scaling"]["costs"][0]["law"] is None
