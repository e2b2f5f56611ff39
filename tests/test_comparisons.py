"""Verdicts by hand and by simulation; the trend test against counts by hand."""

import numpy as np
import pytest
from scipy import stats

from gat.report.comparisons import Comparison, ExpectedDifference, compare, judge, trend


def test_interval_is_welchs_of_logarithms():
    a, b = [2.0, 2.4, 3.0], [4.0, 4.2, 5.5, 6.0]
    got = compare(a, b)
    x, y = np.log(a), np.log(b)
    variances = x.var(ddof=1) / 3, y.var(ddof=1) / 4
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    middle = x.mean() - y.mean()
    assert got[:3] == pytest.approx((middle, middle - half, middle + half))
    assert got.p == pytest.approx(2 * stats.t.sf(abs(middle) / sum(variances) ** 0.5, freedom))
    assert got.text == f"{np.exp(middle):.3g} [{np.exp(middle - half):.3g}, {np.exp(middle + half):.3g}]"


LOW, HIGH, NEAR = [1.0, 1.1, 0.9], [4.0, 4.4, 3.8], [1.0, 1.02, 0.99, 1.01, 1.0]


@pytest.mark.parametrize(
    ("sample", "baseline", "direction", "verdict"),
    [
        (HIGH, LOW, "higher", "shows"),
        (HIGH, LOW, "lower", "contradicted"),
        (NEAR, [1.01, 1.0, 1.0, 0.99, 1.02], "higher", "contradicted"),
        ([1.0, 2.0, 3.0], [1.5, 2.0, 3.0], "higher", "undecided"),
        ([5.0], LOW, "higher", "undecided"),
        ([5.0, 5.0], [1.0, 1.0], "higher", "undecided"),
    ],
)
def test_verdicts(sample, baseline, direction, verdict):
    assert judge([ExpectedDifference(compare(sample, baseline), direction)]) == [verdict]


def test_equality_is_the_interval_within_ten_percent():
    """The verdict turns where the 95% interval leaves ±10 %."""
    rng = np.random.default_rng(0)
    turned = set()
    for _ in range(200):
        a, b = np.exp(rng.normal(0, 0.035, (2, 3)))
        own = compare(a, b)
        if own.low < 0 < own.high:
            inside = -np.log(1.1) < own.low and own.high < np.log(1.1)
            assert judge([ExpectedDifference(own, "higher")]) == ["contradicted" if inside else "undecided"]
            turned.add(inside)
    assert turned == {True, False}


def of_p(p: float) -> ExpectedDifference:
    return ExpectedDifference(Comparison(1.0, 0.5, 1.5, p, np.sqrt(p), True), "higher")


def test_claims_of_a_table_share_the_risk_by_holms_procedure():
    """0.012 < 0.05 / 4, 0.016 < 0.05 / 3, but 0.026 > 0.05 / 2, after which nothing is decided."""
    assert judge([of_p(p) for p in (0.04, 0.012, 0.026, 0.016)]) == ["undecided", "shows", "undecided", "shows"]
    assert judge([of_p(0.04)]) == ["shows"]
    assert judge([of_p(0.04), of_p(float("nan"))]) == ["shows", "undecided"]
    assert judge([of_p(0.012), of_p(0.04)], count=4) == ["shows", "undecided"]  # two more may come
    assert judge([of_p(0.013), of_p(0.04)], count=4) == ["undecided", "undecided"]


@pytest.mark.parametrize("claims", [1, 5])
@pytest.mark.parametrize("deviation", [0.15, 0.4])
def test_without_a_difference_a_table_is_rarely_decided(claims, deviation):
    """Three seeds whose FIDs differ by 15 % or more: the chance of any verdict but undecided is at most 5 %."""
    rng, tables = np.random.default_rng(0), 250
    found = {"shows": 0, "contradicted": 0}
    for _ in range(tables):
        samples = np.exp(rng.normal(0, deviation, (claims, 2, 3)))
        verdicts = {*judge([ExpectedDifference(compare(a, b), "higher") for a, b in samples])}
        for verdict in found:
            found[verdict] += verdict in verdicts
    limit = stats.binom.ppf(0.999, tables, 0.05)
    assert max(found.values()) <= limit, found


def test_trend_counts_ordered_pairs():
    """Of 2, 2 and 2 values in perfect order one arrangement in 90 does as well."""
    assert trend([[9, 8], [6, 5], [3, 2]]) == pytest.approx((12, 12, 1 / 90))
    assert trend([[2, 3], [5, 6], [8, 9]]) == pytest.approx((0, 12, 1))
    assert trend([[5, 1], [5, 0]])[:2] == (2.5, 4)
    assert trend([np.arange(3) + 10 * i for i in (4, 3, 2, 1)]).p < 1e-4
