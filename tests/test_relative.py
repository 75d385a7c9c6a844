"""Alpha, beta, tracking error and capture against hand-computed values and an own HAC."""

from __future__ import annotations

import math

import numpy as np
import pytest
from curves import curve_of
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.relative import newey_west_lags, regression, relative

Float = NDArray[np.float64]


def market(days: int = 1000, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_t(5, days) * 0.008 + 0.0004


def newey_west(target: Float, regressors: Float, lags: int) -> tuple[Float, Float]:
    """Coefficients and errors, written out from Newey & West (1987)."""
    x = np.column_stack([np.ones(len(target)), regressors])
    inverse = np.linalg.inv(x.T @ x)
    beta = inverse @ x.T @ target
    scores = x * (target - x @ beta)[:, None]
    middle = scores.T @ scores
    for lag in range(1, lags + 1):
        cross = scores[lag:].T @ scores[:-lag]
        middle += (1 - lag / (lags + 1)) * (cross + cross.T)
    scale = len(x) / (len(x) - x.shape[1])
    return beta, np.sqrt(np.diag(inverse @ middle @ inverse) * scale)


@pytest.mark.parametrize("columns", [1, 3])
def test_regression_is_newey_and_wests(columns: int) -> None:
    regressors = np.stack([market(600, seed) for seed in range(columns)], axis=1)
    noise = np.convolve(np.random.default_rng(9).normal(0, 0.004, 603), np.ones(4), "valid")
    target = 0.0002 + regressors.sum(axis=1) * 0.7 + noise
    found = regression(target, regressors)
    assert found is not None
    beta, error = newey_west(target, regressors, newey_west_lags(600))
    each = [found.intercept, *found.slopes]
    assert [e.value for e in each] == pytest.approx(beta, rel=1e-9)
    assert [e.error for e in each] == pytest.approx(error, rel=1e-9)
    assert all(0.0 <= e.p_value <= 1.0 for e in each)


@pytest.mark.parametrize(("days", "lags"), [(100, 4), (252, 4), (1000, 6), (2520, 8)])
def test_lags(days: int, lags: int) -> None:
    assert newey_west_lags(days) == lags


@pytest.mark.parametrize(
    ("days", "column"),
    [(62, market(62)), (300, np.zeros(300)), (300, 2 * market(300))],
    ids=["few", "constant", "same"],
)
def test_no_regression_where_none_can_be_told(days: int, column: Float) -> None:
    assert regression(market(days, 1), np.stack([market(days), column], axis=1)) is None


def test_a_geared_curve() -> None:
    theirs = market()
    rate = 1e-4
    ours = rate + 1.5 * (theirs - rate) + 0.0002
    found = relative(curve_of(ours), curve_of(theirs, "index"), rate)
    assert found.beta.value == pytest.approx(1.5) and found.beta.error == 0.0
    assert found.alpha.value == pytest.approx(0.0002 * 252)
    assert math.isnan(found.alpha.p_value)
    assert found.correlation == pytest.approx(1.0) and found.r_squared == pytest.approx(1.0)
    active = ours - theirs
    assert found.tracking_error == pytest.approx(active.std(ddof=1) * math.sqrt(252))
    assert found.information_ratio == pytest.approx(
        active.mean() * 252 / (active.std(ddof=1) * math.sqrt(252))
    )
    assert (found.reference, found.days, found.lags) == ("index", 1000, 6)


def test_alpha_is_told_from_none() -> None:
    noise = np.random.default_rng(5).normal(0.0, 0.003, 1000)
    noise -= noise.mean()
    without = relative(curve_of(market() + noise), curve_of(market()))
    with_it = relative(curve_of(market() + noise + 0.0008), curve_of(market()))
    assert without.alpha.p_value > 0.5 and with_it.alpha.p_value < 0.001
    assert without.alpha.error == pytest.approx(with_it.alpha.error)


def test_capture_by_hand() -> None:
    """January up 2 %, February down 4 %, March up 1 %; the curve earned 1 %, −1 % and 3 %."""
    starts = np.array(["2015-01-02", "2015-02-02", "2015-03-02"], dtype="datetime64[D]")
    template = curve_of(np.zeros(60))
    ours, theirs = np.zeros(60), np.zeros(60)
    for day, mine, market_ in zip(starts, (0.01, -0.01, 0.03), (0.02, -0.04, 0.01), strict=True):
        place = int(np.searchsorted(template.dates, day))
        ours[place], theirs[place] = mine, market_
    found = relative(curve_of(ours), curve_of(theirs))
    up = math.sqrt(1.01 * 1.03) - 1.0
    assert found.up_capture == pytest.approx(up / (math.sqrt(1.02 * 1.01) - 1.0))
    assert found.down_capture == pytest.approx(0.25)
    assert (found.up_months, found.down_months) == (2, 1)


def test_what_is_undefined_is_nan() -> None:
    one = relative(curve_of([0.01]), curve_of([0.02]))
    for value in (one.alpha.value, one.beta.value, one.tracking_error, one.correlation):
        assert math.isnan(value)
    assert one.up_capture == pytest.approx(0.5) and math.isnan(one.down_capture)
    same = relative(curve_of(market()), curve_of(market()))
    assert same.beta.value == pytest.approx(1.0) and same.alpha.value == pytest.approx(0.0)
    assert same.tracking_error == 0.0 and math.isnan(same.information_ratio)
    still = relative(curve_of(market()), curve_of(np.zeros(1000)))
    assert math.isnan(still.beta.value) and math.isnan(still.up_capture)


def test_other_days_are_refused() -> None:
    with pytest.raises(DataError, match="other days"):
        relative(curve_of(market()), curve_of(market(), start="2013-01-01"))
