"""Backtests against the environment stepped by hand, and baselines recomputed in plain Python."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import TINY
from markets import small_market
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings, EvaluationSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.portfolio import PortfolioEnv
from finflow_sb3.evaluation.backtest import backtest, backtests, rule_curves
from finflow_sb3.evaluation.baselines import baselines
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import sharpe
from finflow_sb3.evaluation.quick import untrained, validate
from finflow_sb3.nets.experts import LayoutExperts
from finflow_sb3.pretrain.run import policy_act

Float = NDArray[np.float64]
SETTINGS = [
    pytest.param(EnvSettings(), id="anchors"),
    pytest.param(
        EnvSettings(action_base="drift", drift_scale=0.5, no_trade_band=0.003), id="drift-band"
    ),
    pytest.param(
        EnvSettings(action_base="none", execution_lag=1, max_turnover=0.3, max_position=0.5),
        id="none-lagged-limits",
    ),
    pytest.param(EnvSettings(reward="differential_sharpe", ruin=0.0), id="differential-sharpe"),
]


def some_policy(market: ObservedMarket) -> Any:
    """A policy that looks at its observation and moves."""
    torch.manual_seed(0)
    net = LayoutExperts(market.layout, TINY["expert_hidden"], TINY["gate_hidden"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return policy_act(net)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_equals_the_environment_stepped_by_hand(settings: EnvSettings, split: str) -> None:
    market = small_market(settings)
    act = some_policy(market)
    curve = backtest(market, market.splits.named()[split], settings, act, "mine")
    env = PortfolioEnv(market, split=split, evaluation=True, **dataclasses.asdict(settings))
    observation, info = env.reset(seed=3)
    ended, steps, value = False, 0, 1.0
    while not ended:
        day = info["date"]
        observation, _, terminated, truncated, info = env.step(act(observation[None])[0])
        assert str(curve.decisions[steps]) == day
        assert str(curve.dates[steps]) == info["date"]
        np.testing.assert_allclose(curve.weights[steps], info["weights"], rtol=0, atol=1e-12)
        assert curve.returns[steps] == pytest.approx(info["value"] / value - 1.0, abs=1e-12)
        assert curve.turnover[steps] == pytest.approx(info["turnover"], abs=1e-12)
        assert curve.cost[steps] == pytest.approx(info["cost"], abs=1e-12)
        value, steps, ended = info["value"], steps + 1, terminated or truncated
    assert steps == len(curve) == len(market.splits.named()[split]) - 1
    assert curve.value[-1] == pytest.approx(value, abs=1e-12)
    assert curve.turnover.max() > 1e-3, "the policy must trade"
    assert (curve.gates is not None) == (settings.action_base == "anchors")


def test_gates_are_what_the_environment_used() -> None:
    market = small_market()
    gates = np.linspace(-1.0, 1.0, market.layout.n_anchors)
    action = np.concatenate([gates, np.zeros(market.layout.n_assets + 1)])[None]
    curve = backtest(market, market.splits.test, market.env, lambda _: action, "fixed")
    expected = np.exp(5.0 * gates) / np.exp(5.0 * gates).sum()
    assert curve.gates is not None
    np.testing.assert_allclose(curve.gates, np.tile(expected, (len(curve), 1)), atol=1e-12)
    assert curve.anchors == market.anchors.names


def test_it_is_deterministic_and_starts_from_equal_weights() -> None:
    market = small_market()
    act = some_policy(market)
    first, second = (backtest(market, market.splits.test, market.env, act, "x") for _ in range(2))
    np.testing.assert_array_equal(first.returns, second.returns)
    idle = backtest(
        small_market(EnvSettings(action_base="drift")),
        market.splits.test,
        EnvSettings(action_base="drift"),
        lambda _: np.zeros((1, market.layout.n_assets + 1)),
        "idle",
    )
    np.testing.assert_allclose(idle.weights[0], [*[1 / market.layout.n_assets] * 5, 0.0])


# ------------------------------------------------------------------- plain Python


def pay(held: list[float], target: list[float], fee: float) -> tuple[float, float]:
    """(μ, turnover): value after a trade by plain fixed-point iteration."""
    mu = 1.0
    for _ in range(200):
        turnover = sum(abs(mu * w - h) for w, h in zip(target[:-1], held[:-1], strict=True))
        mu = 1.0 - fee * turnover
    return mu, turnover


def simulate(
    market: ObservedMarket, fee: float, targets: dict[int, list[float]]
) -> tuple[list[float], list[float]]:
    """Returns and turnover of a portfolio that trades to `targets` on these days only."""
    span, n = market.splits.test, market.layout.n_assets
    held = [1.0 / n] * n + [0.0]
    returns, turnovers = [], []
    for day in range(len(span) - 1):
        mu, turnover = 1.0, 0.0
        if day in targets:
            mu, turnover = pay(held, targets[day], fee)
            held = targets[day]
        earned = market.returns[span.start + day + 1].tolist()
        grown = [w * (1.0 + r) for w, r in zip(held, earned, strict=True)]
        returns.append(mu * sum(grown) - 1.0)
        turnovers.append(turnover)
        held = [g / sum(grown) for g in grown]
    return returns, turnovers


PLAIN = EvaluationSettings(baselines=("buy_and_hold", "anchors"))


def named(curves: list[Curve]) -> dict[str, Curve]:
    return {curve.name: curve for curve in curves}


@pytest.mark.parametrize("lag", [0, 1])
def test_equal_weight_and_buy_and_hold_by_hand(lag: int) -> None:
    market = small_market(EnvSettings(fee=0.002))
    found = named(baselines(market, market.splits.test, market.env, PLAIN, lag))
    n = market.layout.n_assets
    equal = [1.0 / n] * n + [0.0]
    days = range(21, len(market.splits.test), 21)
    returns, turnover = simulate(market, 0.002, {day + lag: equal for day in days})
    np.testing.assert_allclose(found["equal_weight"].returns, returns, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["equal_weight"].turnover, turnover, rtol=0, atol=1e-12)
    assert sum(turnover) > 0.05
    returns, _ = simulate(market, 0.002, {})
    np.testing.assert_allclose(found["buy_and_hold"].returns, returns, rtol=0, atol=1e-12)
    assert found["buy_and_hold"].cost.sum() == 0.0
    assert {c.execution_lag for c in found.values()} == {lag}


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
def test_anchors_are_traded_a_tenth_of_the_way(base: str) -> None:
    settings = EnvSettings(action_base=base)
    market = small_market(settings)
    found = named(baselines(market, market.splits.test, settings, PLAIN))
    assert set(found) == {
        "equal_weight",
        "buy_and_hold",
        "anchors' average",
        *(f"anchor: {name}" for name in market.anchors.names),
    }
    span, k = market.splits.test, 2
    curve = found[f"anchor: {market.anchors.names[k]}"]
    held = np.append(np.full(5, 0.2), 0.0)
    for day in range(len(curve)):
        row = span.start + day
        target = held + 0.1 * (market.anchors.at(row)[k] - held)
        np.testing.assert_allclose(curve.weights[day], target, rtol=0, atol=1e-12)
        mu, _ = pay(held.tolist(), target.tolist(), settings.fee)
        grown = target * (1.0 + market.returns[row + 1])
        assert curve.returns[day] == pytest.approx(mu * grown.sum() - 1.0, abs=1e-12)
        held = grown / grown.sum()


def test_the_zero_action_is_the_anchors_average() -> None:
    market = small_market()
    zero = np.zeros((1, market.layout.action_size))
    curve = backtest(market, market.splits.test, market.env, lambda _: zero, "zero")
    average = named(baselines(market, market.splits.test, market.env, PLAIN))["anchors' average"]
    np.testing.assert_allclose(curve.returns, average.returns, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curve.weights, average.weights, rtol=0, atol=1e-12)


def test_several_environments_run_together_as_they_run_alone() -> None:
    """Each keeps its own fee and lag; the policy sees them in one batch."""
    market = small_market()
    act, rows = some_policy(market), []

    def counted(observations: NDArray[np.float32]) -> Any:
        rows.append(len(observations))
        return act(observations)

    envs = [EnvSettings(fee=fee, execution_lag=lag) for fee in (0.0, 0.01) for lag in (0, 1)]
    together = backtests(market, market.splits.test, envs, counted, "x")
    assert set(rows) == {4} and len(rows) == len(market.splits.test) - 1
    for env, curve in zip(envs, together, strict=True):
        alone = backtest(market, market.splits.test, env, act, "x")
        np.testing.assert_allclose(curve.returns, alone.returns, rtol=0, atol=1e-9)
        assert (curve.fee, curve.execution_lag) == (env.fee, env.execution_lag)
    assert together[0].value[-1] > together[2].value[-1]


# ------------------------------------------------------------------- lag


def of_the_day(market: ObservedMarket) -> Any:
    """A policy of the market part of its observation alone."""
    rng = np.random.default_rng(0)
    size = market.layout.market_size
    matrix = rng.normal(0.0, 0.05, size=(size, market.layout.action_size))
    return lambda obs: np.tanh(obs[:, :size] @ matrix)


def test_lag_one_shifts_weights_by_a_day() -> None:
    settings = EnvSettings(action_base="none")
    market = small_market(settings)
    act = of_the_day(market)
    now, later = (backtest(market, market.splits.test, settings, act, "x", lag) for lag in (0, 1))
    np.testing.assert_allclose(later.weights[1:], now.weights[:-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(later.weights[0], [*[0.2] * 5, 0.0], atol=1e-12)
    assert later.cost[0] == 0.0 and now.cost[0] > 0.0
    assert (later.execution_lag, now.execution_lag) == (1, 0)


def test_a_policy_of_lag_zero_can_be_run_at_lag_one() -> None:
    """Its observation keeps the layout that it was trained with: no pending order."""
    market = small_market()
    act, seen = some_policy(market), []

    def watched(observations: NDArray[np.float32]) -> Any:
        seen.append(observations.shape[1])
        return act(observations)

    curve = backtest(market, market.splits.test, market.env, watched, "x", 1)
    assert set(seen) == {market.layout.size}
    assert not market.layout.lagged
    assert np.isfinite(curve.returns).all() and curve.turnover.sum() > 0


def test_a_policy_of_lag_one_can_be_run_at_lag_zero() -> None:
    settings = EnvSettings(execution_lag=1)
    market = small_market(settings)
    curve = backtest(market, market.splits.test, settings, some_policy(market), "x", 0)
    assert curve.execution_lag == 0 and curve.turnover[0] > 0


def test_perfect_foresight_pays_at_lag_zero_only() -> None:
    """Knowing tomorrow's best asset is worth much today, and little a day late."""
    settings = EnvSettings(action_base="none", fee=0.0)
    market = small_market(settings)
    start = market.splits.test.start
    best = market.returns[start + 1 : market.splits.test.stop].argmax(axis=1)
    values = []
    for lag in (0, 1):
        days = iter(best)

        def act(_: Any, days: Any = days) -> Float:
            action = -np.ones((1, 6))
            action[0, next(days)] = 1.0
            return action

        values.append(backtest(market, market.splits.test, settings, act, "x", lag).value[-1])
    assert values[0] > 1.5 * values[1]


def test_ruin_is_seen_through() -> None:
    """A backtest does not stop at `ruin`: the span is always run to its end."""
    settings = EnvSettings(ruin=0.999, fee=0.05, trade_rate=1.0)
    market = small_market(settings)
    curve = backtest(market, market.splits.test, settings, some_policy(market), "x")
    assert curve.value.min() < 0.999
    assert len(curve) == len(market.splits.test) - 1


# ------------------------------------------------------------------- rules and figures


def test_rules_run_as_one_batch_as_they_run_alone() -> None:
    market = small_market()

    def both(batch: Any) -> Float:
        anchors = market.anchors.at(int(batch.row[0]))
        return np.stack([anchors[0], anchors[3]])

    def alone(batch: Any) -> Float:
        return market.anchors.at(int(batch.row[0]))[3][None]

    pair = rule_curves(market, market.splits.test, market.env, ["a", "b"], both)
    one = rule_curves(market, market.splits.test, market.env, ["b"], alone)[0]
    np.testing.assert_array_equal(pair[1].returns, one.returns)
    assert not np.array_equal(pair[0].returns, one.returns)


def test_quick_figures_by_hand() -> None:
    market = small_market()
    act = some_policy(market)
    found = validate(market, market.env, act)
    span = market.splits.validation
    curve = backtest(market, span, market.env, act, "x")
    rows = slice(span.start + 1, span.stop)
    excess = curve.returns - market.prices.cash_rate[rows]
    assert market.prices.cash_rate[rows].max() > 0, "cash must earn something"
    assert found["sharpe"] == pytest.approx(sharpe(excess), abs=1e-12)
    equal = market.returns[rows, :-1].mean(axis=1)
    expected = 252 * np.mean(np.log1p(curve.returns) - np.log1p(equal))
    assert found["excess"] == pytest.approx(expected, abs=1e-12)
    assert found["turnover"] == pytest.approx(252 * curve.turnover.mean(), abs=1e-12)


def test_untrained_figures_are_the_zero_actions() -> None:
    market = small_market()
    net = LayoutExperts(market.layout)
    assert untrained(market, market.env) == pytest.approx(
        validate(market, market.env, policy_act(net)), abs=1e-9
    )
