"""Rewards against hand-computed values and their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import batch_of, random_actions, small_market

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.rewards import differential_sharpe, log_return_reward


def one(value: float) -> np.ndarray:
    return np.array([value])


@pytest.mark.parametrize(
    ("penalties", "expected"),
    [
        # ln 0.97 = -0.030459, less a baseline of 0.001, in units of σ = 0.01.
        ({}, (math.log(0.97) - 0.001) / 0.01),
        ({"lambda_turn": 2.0}, (math.log(0.97) - 0.001) / 0.01 - 2.0 * 0.3),
        # A net return of -3 % is 1 % below the target of -2 %: one σ.
        ({"lambda_cvar": 5.0, "cvar_target": -0.02}, (math.log(0.97) - 0.001) / 0.01 - 5.0),
        ({"lambda_cvar": 5.0, "cvar_target": -0.04}, (math.log(0.97) - 0.001) / 0.01),
        # The drawdown deepens from 0.10 to 0.127: 2.7 σ.
        ({"lambda_dd": 1.0}, (math.log(0.97) - 0.001) / 0.01 - 2.7),
    ],
)
def test_log_return_by_hand(penalties: dict[str, float], expected: float) -> None:
    reward = log_return_reward(one(0.97), 0.001, one(0.3), one(0.1), one(0.127), 0.01, **penalties)
    assert reward[0] == pytest.approx(expected, abs=1e-12)


def test_a_shrinking_drawdown_earns_nothing() -> None:
    args = (one(1.0), 0.0, one(0.0), one(0.2), one(0.1), 0.01)
    assert log_return_reward(*args, lambda_dd=10.0)[0] == 0.0


@given(
    growth=st.lists(st.floats(0.5, 1.5), min_size=2, max_size=6),
    baseline=st.floats(-0.1, 0.1),
)
@settings(max_examples=50, deadline=None)
def test_the_baseline_does_not_change_the_ranking(growth: list[float], baseline: float) -> None:
    g = np.array(growth)
    zero = np.zeros_like(g)

    def reward(subtracted: float) -> np.ndarray:
        return log_return_reward(g, subtracted, zero, zero, zero, 0.01)

    difference = reward(0.0) - reward(baseline)
    np.testing.assert_allclose(difference, baseline / 0.01, atol=1e-9)


def sharpe(first: float, second: float) -> float:
    return first / math.sqrt(second - first**2)


def test_differential_sharpe_by_hand() -> None:
    """A = 0.1, B = 0.02, R = 0.3, η = 0.1.

    ΔA = 0.2, ΔB = 0.07; (0.02·0.2 − 0.1·0.07/2)/0.01^1.5 = 0.0005/0.001 = 0.5.
    """
    reward, first, second = differential_sharpe(one(0.3), one(0.1), one(0.02), 0.1)
    assert reward[0] == pytest.approx(0.5, abs=1e-12)
    assert first[0] == pytest.approx(0.12)
    assert second[0] == pytest.approx(0.027)


@given(
    r=st.floats(-0.1, 0.1),
    first=st.floats(-0.01, 0.01),
    deviation=st.floats(0.005, 0.05),
)
@settings(max_examples=50, deadline=None)
def test_differential_sharpe_is_a_derivative(r: float, first: float, deviation: float) -> None:
    """dS/dη at η = 0, S = A/√(B − A²) after A += η·ΔA, B += η·ΔB, by central differences."""
    second = deviation**2 + first**2
    reward, _, _ = differential_sharpe(one(r), one(first), one(second), 0.01)
    h = 1e-6

    def after(eta: float) -> float:
        return sharpe(first + eta * (r - first), second + eta * (r * r - second))

    slope = (after(h) - after(-h)) / (2 * h)
    assert reward[0] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_moody_and_saffell_recursion() -> None:
    """Moments are exponential averages: after many steps they are the weighted sums."""
    rng = np.random.default_rng(0)
    returns, eta = rng.normal(0.001, 0.01, size=200), 0.02
    first, second = one(0.0), one(1e-4)
    for r in returns:
        _, first, second = differential_sharpe(one(r), first, second, eta)
    weights = eta * (1 - eta) ** np.arange(200)[::-1]
    assert first[0] == pytest.approx(float(weights @ returns), abs=1e-15)
    rest = 1e-4 * (1 - eta) ** 200
    assert second[0] == pytest.approx(float(weights @ returns**2) + rest, abs=1e-15)


@pytest.mark.parametrize("baseline", ["equal_weight", "none"])
def test_the_environment_pays_log_return(baseline: str) -> None:
    """Step by step from what the batch holds: value, turnover, drawdown, the market's σ."""
    penalties = {"lambda_turn": 0.5, "lambda_cvar": 2.0, "cvar_target": -0.01, "lambda_dd": 3.0}
    env = EnvSettings(reward_baseline=baseline, **penalties)
    market = small_market(EnvSettings(reward_baseline=baseline))
    batch, rng = batch_of(market, env, n_envs=3, evaluation=False), np.random.default_rng(0)
    for _ in range(60):
        value, peak = batch.value.copy(), batch.peak.copy()
        out = batch.step(random_actions(market, 3, rng))
        day = market.prices.close[batch.row] / market.prices.close[batch.row - 1] - 1.0
        beaten = np.log(1.0 + day.mean(axis=1)) if baseline == "equal_weight" else 0.0
        net = batch.value / value
        deeper = np.maximum(
            0.0, (1 - batch.value / np.maximum(peak, batch.value)) - (1 - value / peak)
        )
        expected = (np.log(net) - beaten) / market.sigma - 0.5 * batch.turnover
        expected -= 2.0 * np.maximum(0.0, -0.01 - (net - 1.0)) / market.sigma
        expected -= 3.0 * deeper / market.sigma
        np.testing.assert_allclose(out.rewards, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("baseline", ["equal_weight", "none"])
def test_the_environment_pays_differential_sharpe(baseline: str) -> None:
    """On excess returns, from the training split's moments, which the observation shows."""
    env = EnvSettings(reward="differential_sharpe", reward_baseline=baseline, sharpe_decay=0.01)
    market = small_market(EnvSettings(reward="differential_sharpe", reward_baseline=baseline))
    batch, rng = batch_of(market, env, evaluation=False), np.random.default_rng(0)
    a, b = market.moments
    scalars = market.layout.slices["scalars"]
    unit = market.moments[1]
    for _ in range(40):
        value = batch.value[0]
        out = batch.step(random_actions(market, 1, rng))
        excess = batch.value[0] / value - 1.0
        if baseline == "equal_weight":
            excess -= market.equal_weight[batch.row[0]]
        reward = (b * (excess - a) - 0.5 * a * (excess**2 - b)) / (b - a * a) ** 1.5
        a, b = a + 0.01 * (excess - a), b + 0.01 * (excess**2 - b)
        assert out.rewards[0] == pytest.approx(reward, rel=1e-5, abs=1e-6)
        shown = out.observations[0, scalars]
        np.testing.assert_allclose(shown[1:], [a / unit**0.5, b / unit], rtol=1e-5, atol=1e-6)


def test_sigma_and_moments_are_of_the_training_split() -> None:
    market = small_market(EnvSettings(reward="differential_sharpe"))
    train = slice(market.splits.train.start, market.splits.train.stop)
    daily = market.prices.returns()[train].mean(axis=1)
    assert market.sigma == pytest.approx(float(np.std(daily, ddof=1)), rel=1e-12)
    assert market.moments[1] > market.moments[0] ** 2
