"""Realised returns taken apart: parts add up exactly, and are what they are called."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from explain_fixtures import market_of, random_policies
from markets import whole_span

from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.explain.attribution import Attribution, Ledger
from finflow_sb3.explain.risk import risk_of
from finflow_sb3.explain.state import replay

YEAR = 252


def booked(
    market: ObservedMarket, policies: Any, days: int = YEAR, skip: int = 0
) -> tuple[Attribution, Any]:
    """The attribution of some days of the whole span, and the backtest's curve of them."""
    span = whole_span(market)
    row = span.start + skip + days
    ledger = Ledger(span.start + skip)
    batch = replay(policies, market, span, row, market.env, ledger.take)
    made = ledger.attribution(batch)
    assert made is not None
    return made, backtest(market, span, market.env, policies.policy, "policy")


ENVS: list[dict[str, Any]] = [
    {},
    {"execution_lag": 1},
    {"trade_rate": 1.0, "max_turnover": 0.05, "ticket": 1.0, "capital": 1e5},
    {"max_position": 0.25, "no_trade_band": 0.01, "fee": 0.004},
]


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("env", ENVS, ids=lambda env: "-".join(env) or "plain")
def test_parts_add_up_to_the_net_return_of_a_year(
    base: str, partial: bool, env: dict[str, Any]
) -> None:
    market = market_of(base, partial, **env)
    made, curve = booked(market, random_policies(market))
    realised = np.prod(1.0 + curve.returns[:YEAR]) - 1.0
    assert made.days == YEAR
    assert made.total == pytest.approx(realised, abs=1e-12)
    assert made.parts.sum() + made.costs == pytest.approx(realised, abs=1e-9)
    assert abs(made.gap) < 1e-9
    assert -made.costs == pytest.approx(curve.cost[:YEAR].sum(), abs=1e-12)
    if base == "anchors":
        place = made.stages.index("gates")
        assert made.gates.sum() == pytest.approx(made.parts[place].sum(), abs=1e-12)


@pytest.mark.parametrize("combination", ["mean", "median", "validation"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.5])
def test_ensembles_add_up_too(combination: str, shrinkage: float) -> None:
    market = market_of("anchors")
    policies = random_policies(market, 3, combination, shrinkage)
    made, curve = booked(market, policies, 60)
    realised = np.prod(1.0 + curve.returns[:60]) - 1.0
    assert made.parts.sum() + made.costs == pytest.approx(realised, abs=1e-9)
    assert ("shrinkage" in made.stages) == (shrinkage > 0.0)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_window_is_linked_from_its_own_start(lag: int) -> None:
    market = market_of("anchors", execution_lag=lag)
    made, curve = booked(market, random_policies(market), 50, skip=37)
    realised = np.prod(1.0 + curve.returns[37:87]) - 1.0
    assert made.total == pytest.approx(realised, abs=1e-12)
    assert made.parts.sum() + made.costs == pytest.approx(realised, abs=1e-9)
    assert made.first == str(curve.decisions[37])
    assert made.last == str(curve.dates[86])


def test_one_day_by_hand() -> None:
    """V·μ·(stage differences)·r and −V·(1 − μ), from weights and returns of that day."""
    market = market_of("anchors")
    policies = random_policies(market)
    made, curve = booked(market, policies, 1)
    span = whole_span(market)
    returns, anchors = market.returns[span.start + 1], market.anchors.at(span.start)
    mu = 1.0 - curve.cost[0]
    average = anchors.mean(axis=0)
    np.testing.assert_allclose(made.parts[0], mu * average * returns, atol=1e-14)
    np.testing.assert_allclose(made.parts.sum(axis=0), mu * curve.weights[0] * returns, atol=1e-14)
    gates = curve.gates[0]
    np.testing.assert_allclose(made.parts[1], mu * (gates @ anchors - average) * returns, atol=1e-9)
    expected = mu * (gates - 0.2) * ((anchors - average) @ returns)
    np.testing.assert_allclose(made.gates, expected, atol=1e-9)
    assert made.costs == pytest.approx(-curve.cost[0], abs=1e-15)


def test_the_zero_action_has_neither_gates_nor_tilts() -> None:
    market = market_of("anchors", trade_rate=1.0)
    policies = random_policies(market, scale=0.0)
    made, _ = booked(market, policies, 60)
    np.testing.assert_allclose(made.parts[1:], 0.0, atol=1e-9)
    assert abs(made.parts[0].sum()) > 1e-3


def test_risk_is_what_skfolio_has() -> None:
    from skfolio import Portfolio, RiskMeasure

    market = market_of("anchors")
    rng = np.random.default_rng(0)
    weights, row = rng.dirichlet(np.ones(6)), 500
    risk = risk_of(weights, market.returns, row)
    recent = market.returns[row + 1 - 252 : row + 1]
    theirs = Portfolio(X=recent, weights=weights)
    contributions = theirs.contribution(RiskMeasure.STANDARD_DEVIATION)
    np.testing.assert_allclose(risk.shares, contributions / contributions.sum(), atol=1e-6)
    assert risk.shares.sum() == pytest.approx(1.0, abs=1e-12)
    assert risk.volatility == pytest.approx(theirs.standard_deviation * 252**0.5, rel=1e-9)


def test_cash_alone_is_without_risk() -> None:
    market = market_of("anchors")
    cash = np.append(np.zeros(5), 1.0)
    risk = risk_of(cash, np.where(np.arange(6) == 5, 1e-4, market.returns), 400)
    assert risk.volatility == 0.0
    assert np.all(risk.shares == 0.0)
