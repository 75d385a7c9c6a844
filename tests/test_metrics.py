"""Measures against hand-computed values, skfolio, and properties."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import skfolio.measures as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.bootstrap import sharpe_gap
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import (
    drawdown,
    measures,
    rolling_sharpe,
    sharpe,
)

Float = NDArray[np.float64]
DAILY = arrays(np.float64, st.integers(2, 300), elements=st.floats(-0.2, 0.2))


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def curve(returns: list[float] | Float, turnover: float = 0.0, cost: float = 0.0) -> Curve:
    values = np.asarray(returns, dtype=np.float64)
    days = np.datetime64("2020-01-01") + np.arange(len(values) + 1)
    return Curve(
        name="test",
        dates=days[1:],
        decisions=days[:-1],
        returns=values,
        weights=np.tile([1.0, 0.0], (len(values), 1)),
        turnover=np.full(len(values), turnover),
        cost=np.full(len(values), cost),
        assets=("A",),
    )


def fat_tails(days: int = 1000, seed: int = 3) -> Float:
    return np.random.default_rng(seed).standard_t(4, days) * 0.01 + 0.0003


# Returns 10 %, −10 %, 10 %, 0: value 1.1, 0.99, 1.089, 1.089.
HAND = {
    "total_return": 0.089,
    "annual_return": 1.089**63 - 1,
    "volatility": math.sqrt(0.0275 / 3 * 252),
    "sharpe": 0.025 / math.sqrt(0.0275 / 3) * math.sqrt(252),
    "sortino": 0.025 * 252 / math.sqrt(0.0025 * 252),
    "calmar": (1.089**63 - 1) / 0.1,
    "max_drawdown": -0.1,
    "var_95": -0.1,
    "cvar_95": -0.1,
    "downside_deviation": math.sqrt(0.0025 * 252),
    "turnover": 0.02 * 252,
    "cost": 0.004,
    "cost_drag": (0.001 + 0.001 / 1.1 + 0.001 / 0.99 + 0.001 / 1.089) / 4 * 252,
    "win_rate": 0.5,
    "profit_factor": 2.0,
}


def test_hand_computed() -> None:
    found = measures(curve([0.1, -0.1, 0.1, 0.0], turnover=0.02, cost=0.001))
    assert found == pytest.approx(HAND, rel=1e-12)
    assert list(found) == list(HAND)


@pytest.mark.parametrize("rate", [0.001, np.array([0.0, 0.002, 0.001, 0.0])])
def test_cash_rate_moves_only_what_is_in_excess_of_it(rate: float | Float) -> None:
    returns = np.array([0.1, -0.1, 0.1, 0.0])
    plain, found = measures(curve(returns)), measures(curve(returns), rate)
    excess = returns - rate
    downside = np.sqrt(np.mean(np.minimum(excess, 0.0) ** 2) * 252)
    assert found["sharpe"] == pytest.approx(
        excess.mean() / excess.std(ddof=1) * 252**0.5, rel=1e-12
    )
    assert found["downside_deviation"] == pytest.approx(downside, rel=1e-12)
    assert found["sortino"] == pytest.approx(excess.mean() * 252 / downside, rel=1e-12)
    moved = {k for k in plain if not math.isclose(plain[k], found[k], rel_tol=1e-12)}
    assert moved == {"sharpe", "sortino", "downside_deviation"}


@pytest.mark.parametrize("days", [19, 20, 100, 123, 1000])
def test_agrees_with_skfolio(days: int) -> None:
    returns = fat_tails(days)
    found = measures(curve(returns))
    drawdowns = sk.get_drawdowns(returns, compounded=True)
    semi = sk.semi_deviation(returns, min_acceptable_return=0.0, biased=True)
    assert found["volatility"] == pytest.approx(sk.standard_deviation(returns) * 252**0.5)
    assert found["var_95"] == pytest.approx(-sk.value_at_risk(returns, beta=0.95))
    assert found["cvar_95"] == pytest.approx(-sk.cvar(returns, beta=0.95))
    assert found["downside_deviation"] == pytest.approx(semi * 252**0.5)
    assert found["max_drawdown"] == pytest.approx(-sk.max_drawdown(drawdowns))
    np.testing.assert_allclose(drawdown(np.cumprod(1 + returns)), drawdowns, atol=1e-12)


@pytest.mark.parametrize(
    ("returns", "undefined"),
    [
        ([0.01], {"volatility", "sharpe", "sortino", "calmar", "profit_factor"}),
        ([-0.01], {"volatility", "sharpe"}),
        ([0.01] * 50, {"sharpe", "sortino", "calmar", "profit_factor"}),
        ([0.0] * 50, {"sharpe", "sortino", "calmar", "profit_factor"}),
        ([-0.01] * 50, {"sharpe"}),
        ([0.01, 0.02, 0.03], {"sortino", "calmar", "profit_factor"}),
        ([0.01, -1.0], set()),
        ([1e6], {"annual_return", "volatility", "sharpe", "sortino", "calmar", "profit_factor"}),
    ],
)
def test_undefined_is_nan_and_nothing_else_is(returns: list[float], undefined: set[str]) -> None:
    found = measures(curve(returns))
    assert {k for k, v in found.items() if math.isnan(v)} == undefined
    assert not any(math.isinf(v) for v in found.values())


def test_total_loss() -> None:
    found = measures(curve([0.01, -1.0, 0.0], cost=0.001))
    assert found["total_return"] == found["annual_return"] == found["max_drawdown"] == -1.0
    assert found["cost_drag"] == pytest.approx((0.001 + 0.001 / 1.01) / 3 * 252)


@pytest.mark.parametrize(
    ("returns", "rate", "message"),
    [
        ([], None, "no days"),
        ([0.01, math.nan], None, "2020-01-03 is not a number"),
        ([0.01, 0.02], np.zeros(3), "one rate for each day"),
    ],
)
def test_bad_input_is_refused(returns: list[float], rate: Float | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        measures(curve(returns), rate)


def test_drawdown_counts_from_the_start() -> None:
    values = np.array([0.9, 1.2, 0.6, 1.2])
    np.testing.assert_allclose(drawdown(values), [-0.1, 0.0, -0.5, 0.0])


def test_rolling_sharpe_equals_the_sharpe_of_each_window() -> None:
    returns = fat_tails(60)
    rolled = rolling_sharpe(returns, window=20)
    assert np.all(np.isnan(rolled[:19]))
    expected = [sharpe(returns[d - 19 : d + 1]) for d in range(19, 60)]
    np.testing.assert_allclose(rolled[19:], expected, rtol=1e-12)


@pytest.mark.parametrize("days", [0, 5, 10])
def test_rolling_sharpe_is_nan_where_undefined(days: int) -> None:
    rolled = rolling_sharpe(np.full(days, 0.01), window=6)
    assert rolled.shape == (days,)
    assert np.all(np.isnan(rolled))


def test_rolling_sharpe_refuses_a_window_of_one_day() -> None:
    with pytest.raises(DataError, match="window is 1"):
        rolling_sharpe(np.zeros(5), window=1)


@settings(max_examples=60, deadline=None)
@given(DAILY)
def test_bounds(returns: Float) -> None:
    found = measures(curve(returns))
    assert found["cvar_95"] <= found["var_95"] + 1e-12
    assert found["cvar_95"] >= returns.min() - 1e-12
    assert -1.0 <= found["max_drawdown"] <= 0.0
    assert found["max_drawdown"] <= min(0.0, found["total_return"]) + 1e-12
    assert 0.0 <= found["win_rate"] <= 1.0
    assert found["downside_deviation"] >= 0.0


@settings(max_examples=40, deadline=None)
@given(DAILY, st.floats(0.1, 4.0))
def test_sharpe_does_not_depend_on_leverage(returns: Float, scale: float) -> None:
    if np.std(returns) > 1e-6:
        assert sharpe(scale * returns) == pytest.approx(sharpe(returns), rel=1e-6, abs=1e-9)


def test_bootstrap_sees_an_edge_and_no_edge() -> None:
    noise = fat_tails(1500, seed=7)
    better = sharpe_gap(noise + 0.001, noise)
    assert 0.0 < better.low < better.value < better.high
    same = sharpe_gap(noise, noise)
    assert same.low == same.value == same.high == 0.0
    apart = sharpe_gap(noise, fat_tails(1500, seed=8))
    assert apart.low < 0.0 < apart.high


@pytest.mark.parametrize("days", [0, 1, 62])
def test_bootstrap_says_nothing_on_a_few_days(days: int) -> None:
    found = sharpe_gap(fat_tails(days), fat_tails(days, seed=4))
    assert math.isnan(found.low) and math.isnan(found.high)


def test_bootstrap_of_a_constant_series_is_undefined() -> None:
    found = sharpe_gap(np.full(100, 0.001), fat_tails(100))
    assert math.isnan(found.value) and math.isnan(found.low)


def test_bootstrap_refuses_other_days() -> None:
    with pytest.raises(DataError, match="compare the same days"):
        sharpe_gap(np.zeros(5), np.zeros(6))


def test_import_is_light() -> None:
    heavy = "{'torch', 'pandas', 'matplotlib', 'skfolio', 'PIL'} & set(sys.modules)"
    code = f"import sys, finflow_sb3.evaluation.metrics; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
