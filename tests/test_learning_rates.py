"""The best learning rate's power of the width, on simulated trainings."""

import io

import numpy as np
import pandas as pd
import pytest

from gat.report.claims import Measured, summarize
from gat.report.figures import draw_analyses
from gat.report.learning_rates import RatesFit, fit_rates, rates_content
from gat.report.tables import claims_page

WIDTHS, RATES = (16, 32, 64), [0.002 * 2**i for i in range(7)]


def simulated(
    power: float,
    noise: float = 0.1,
    seed: int = 0,
    seeds: int = 3,
    curvature: float = 0.4,
    lowest: tuple[float, ...] = tuple(np.exp(2 - 0.02 * np.array(WIDTHS))),
    plateau: float = np.inf,
) -> pd.DataFrame:
    """log FID is a parabola about a best rate that falls with the width to a power; 0.016 is best at width 32.

    At smaller rates FID is at most `plateau`.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for width, least in zip(WIDTHS, lowest, strict=True):
        best = 0.016 * (32 / width) ** power
        for rate in RATES:
            for one in range(seeds):
                parabola = least * np.exp(curvature * np.log(rate / best) ** 2)
                fid = (min(parabola, plateau) if rate < best else parabola) * np.exp(noise * rng.normal())
                rows.append({"width": width, "rate": rate, "seed": one, "fid": fid, "diverged": False})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("power", "verdict"), [(1.0, "shows"), (0.0, "contradicted")])
def test_the_power_is_found(power, verdict):
    fit = fit_rates(simulated(power))
    assert fit.power == pytest.approx(power, abs=0.15)
    assert fit.low < fit.power < fit.high
    assert fit.best[64] == pytest.approx(0.016 * 2**-power, rel=0.15)
    assert fit.verdict == verdict


def test_without_noise_it_is_exact():
    fit = fit_rates(simulated(0.7, noise=0))
    assert fit.power == pytest.approx(0.7, abs=1e-6)
    assert fit.high - fit.low < 1e-5


LEARNED = {"noise": 0.2, "seeds": 2, "lowest": (29.5, 13.1, 4.4)}  # about as in reports/claims.md


@pytest.mark.parametrize("plateau", [np.inf, 47.0])
def test_the_interval_covers_the_power_in_about_19_of_20_simulations(plateau):
    """With a sharp plateau in all widths, and without one."""
    covered = []
    for power in (0.0, 0.5, 1.0):
        tables = [simulated(power, seed=seed, plateau=plateau, **LEARNED) for seed in range(70)]
        fits = [fit for table in tables if (fit := fit_rates(table))]
        assert len(fits) >= 67
        assert np.mean([fit.power for fit in fits]) == pytest.approx(power, abs=0.1)
        covered += [fit.low <= power <= fit.high for fit in fits]
        if np.isfinite(plateau):
            assert np.median([fit.plateau or np.inf for fit in fits]) == pytest.approx(plateau, rel=0.1)
    assert 0.88 <= np.mean(covered) <= 0.985


def test_rates_below_the_best_are_fitted_whatever_their_fid():
    """Of width 64, the FID of the lowest rates is 47, over ten times its lowest, and that of the highest is larger."""
    table = simulated(1.0, plateau=47.0, **LEARNED | {"noise": 0.0})
    fit = fit_rates(table)
    assert fit.trainings == 2 * (7 + 6 + 5)
    assert fit.plateau == pytest.approx(47, rel=0.05)
    assert "plateau at an FID of 4" in rates_content(table, fit)[0]["text"]
    table.loc[(table.width == 64) & (table.rate == RATES[0]) & (table.seed == 0), ["fid", "diverged"]] = [np.nan, True]
    assert fit_rates(table).trainings == fit.trainings - 1


@pytest.mark.parametrize(("power", "seed"), [(0.0, 14), (1.0, 26), (1.0, 35)])
def test_the_fit_has_several_starts(power, seed):
    """From the lowest points alone it ends at −0.37, −0.73 and 1.29, with larger residuals."""
    fit = fit_rates(simulated(power, seed=seed, plateau=47.0, **LEARNED))
    assert fit.power == pytest.approx(power, abs=0.2)


def test_a_plateau_that_no_training_is_on_is_not_reported():
    table = simulated(1.0, noise=0.01)
    fit = fit_rates(table)
    assert fit.plateau is None
    assert "plateau" not in rates_content(table, fit)[0]["text"]


def test_verdicts_are_by_the_whole_interval():
    fits = [RatesFit(1, low, high, {}, None, 9) for low, high in ((0.6, 1.4), (0.4, 1.4), (0.1, 0.4), (1.6, 2))]
    assert [fit.verdict for fit in fits] == ["shows", "undecided", "contradicted", "contradicted"]
    leads = [fit.content()["sentence"].split(":")[0] for fit in fits[:3]]
    assert leads == ["It holds here", "Not decided", "It does not hold here"]


def test_a_diverged_training_is_no_minimum_and_no_stable_rate():
    table = simulated(1.0)
    at = (table.width == 64) & (table.rate == RATES[4])
    table.loc[at & (table.seed == 1), ["fid", "diverged"]] = [np.nan, True]
    part, scaled = rates_content(table, fit_rates(table))
    row = part["rows"][2]
    assert row[0] == "64"
    assert row[5].endswith(" diverged")
    assert float(row[-1]) < RATES[4]
    assert f"with q = {fit_rates(table).text}; the paper's rule has q = 1" in part["text"]
    lines = scaled["plot"]["series"]
    assert len(lines[0]["x"]) == 7
    assert len(lines[2]["x"]) == 6
    best = [line["x"][int(np.argmin(line["y"]))] for line in lines]
    assert max(best) / min(best) < 2.1  # above each other


@pytest.mark.parametrize(
    "few", [simulated(1.0).query("width == 16"), simulated(1.0, curvature=30.0), simulated(1.0)[:3]]
)
def test_too_little_is_not_fitted(few):
    assert fit_rates(few) is None
    assert len(rates_content(few, None)) == 2


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_width_that_diverges_at_every_rate_has_no_best_one(seeds):
    table = simulated(1.0)
    table.loc[(table.width == 64) & table.seed.isin(seeds), ["fid", "diverged"]] = [np.nan, True]
    assert fit_rates(table) is None
    part, _ = rates_content(table, None)
    assert [row[-3:] for row in part["rows"]][1:] == [["0.016", "", "0.064"], ["", "", ""]]
    draw_analyses({"analyses": [part]}).savefig(io.BytesIO())


@pytest.mark.parametrize("curvatures", [(-0.1, 0.4, 0.4), (-0.15, -0.15, -0.15), (0.0, 0.0, 0.0)])
def test_without_a_minimum_at_each_width_there_is_no_power(curvatures):
    """A parabola that opens downwards has a maximum; one without curvature has nothing."""
    parts = [simulated(1.0, noise=0.05, curvature=one) for one in curvatures]
    table = pd.concat([part[part.width == width] for part, width in zip(parts, WIDTHS, strict=True)])
    assert fit_rates(table) is None
    assert fit_rates(table.assign(fid=40.0)) is None


def test_a_minimum_beyond_the_rates_is_none():
    """That of width 16 is at 0.032; all rates are near it."""
    table = simulated(1.0, noise=0, curvature=0.1)
    assert fit_rates(table) is not None
    assert fit_rates(table[table.rate < 0.02]) is None


def test_an_unknown_power_is_undecided_and_says_so():
    content = summarize({}, Measured({}, {}, {}), simulated(1.0, curvature=-0.1))
    assert content["rates"]["verdict"] == "undecided"
    assert f"**undecided** | {content['rates']['sentence']}" in " ".join(claims_page(content).split())


def test_the_largest_rate_of_all_is_a_lower_end_of_what_is_stable():
    part, _ = rates_content(simulated(1.0, curvature=0.01), None)
    assert [row[-1] for row in part["rows"]] == ["≥ 0.128"] * 3
