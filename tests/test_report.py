import numpy as np
import pandas as pd
import pytest

from gat.report import draw_scaling, fit_power_law, markdown_table, study_of


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [("model", 48, 2, 8.0), ("S-2", 12, 2, 1.0), ("B-2", 24, 2, 4.0), ("L-2", 48, 2, 16.0), ("L-4", 48, 4, 4.5)]
    frame = pd.DataFrame(rows, columns=["run", "width", "patch", "gmacs"])
    frame["fid"] = 300 * frame.gmacs**-0.5
    return frame.assign(
        depth=4,
        params=1_500_000,
        train_gflops=2e5,
        kid=0.1,
        precision=0.5,
        recall=0.25,
        images_per_second=99.0,
        overrides=False,
    )


@pytest.fixture
def curves(table) -> dict[str, pd.DataFrame]:
    return {row.run: pd.DataFrame({"step": [10, 20], "fid": [2 * row.fid, row.fid]}) for row in table.itertuples()}


def test_power_law_is_found_with_its_interval_and_correlation(rng):
    x = np.geomspace(1, 100, 8)
    law = fit_power_law(x, 352 * x**-0.456)
    assert (law.factor, law.exponent, law.correlation) == pytest.approx((352, -0.456, -1))
    assert (law.low, law.high) == pytest.approx((-0.456, -0.456))
    noisy = fit_power_law(x, 352 * x**-0.456 * np.exp(rng.normal(0, 0.2, 8)))
    assert noisy.low < noisy.exponent < noisy.high
    assert noisy.low < -0.456 < noisy.high
    with pytest.raises(ValueError, match="three points"):
        fit_power_law([1, 2], [1, 2])


def test_study_leaves_out_the_model_under_test_and_ablations(table):
    table.loc[table.run == "B-2", "overrides"] = True
    assert study_of(table).run.tolist() == ["S-2", "L-4", "L-2"]


def test_figure_has_the_papers_three_panels(table, curves, tmp_path):
    figure = draw_scaling(table, curves, ["#aaaaff", "#000088"], "#ff0000", resamplings=50)
    by_size, by_patch, by_cost = figure.axes
    assert [line.get_label() for line in by_size.lines] == ["S-2", "B-2", "L-2", "model"]
    assert [line.get_label() for line in by_patch.lines] == ["L-2", "L-4"]
    shown = {text.get_text(): text.xy for text in by_cost.texts}
    assert shown.keys() == {"S-2", "B-2", "L-2", "L-4"}
    assert shown["L-2"] == (16.0, 75.0)
    assert "exponent -0.50" in by_cost.get_legend_handles_labels()[1][-1]
    assert [point.tolist() for c in by_cost.collections for point in c.get_offsets()][-1] == [
        8.0,
        pytest.approx(106.07, rel=1e-3),
    ]
    figure.savefig(tmp_path / "scaling.png")


def test_table_has_a_row_a_run(table):
    page = markdown_table(table, fit_power_law([1, 2, 4], [4, 2, 1]), ["Features: some."])
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(table)
    assert "| B-2" in rows[4]
    assert "1.500" in rows[4]
    assert "GMACs^-1.000" in page
    assert page.rstrip().endswith("Features: some.")
