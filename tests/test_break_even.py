"""The fee at which an edge is gone: the search, and real backtests on both sides of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markets import small_market
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.baselines import equal_weight
from finflow_sb3.evaluation.break_even import TOLERANCE, BreakEven, break_even, next_fees
from finflow_sb3.evaluation.metrics import annual_return, sharpe

BASE = EnvSettings(action_base="none", trade_rate=0.2)
Observations = NDArray[np.float32]


def foresight(market: ObservedMarket, strength: float) -> Callable[[Observations], Any]:
    """Leans to the next day's best asset, which it knows by the day; -1 to 1 times as much."""
    size = market.layout.market_size
    span = market.splits.test
    best = {
        market.frames[row, :size].tobytes(): int(market.returns[row + 1, :-1].argmax())
        for row in range(span.start, span.stop - 1)
    }

    def act(observations: Observations) -> Any:
        out = np.zeros((len(observations), market.layout.action_size))
        for action, observation in zip(out, observations, strict=True):
            known = best.get(observation[:size].tobytes())
            if known is not None:
                action[known] = strength
        return out

    return act


def edge(market: ObservedMarket, act: Any, found: BreakEven, fee: float) -> float:
    """Policy's measure less equal weight's, by single backtests."""
    span = market.splits.test
    env = EnvSettings(action_base="none", trade_rate=0.2, fee=fee)
    ours = backtest(market, span, env, act, "x", found.execution_lag).returns
    theirs = equal_weight(market, span, env, 21, found.execution_lag).returns
    if found.measure == "annual_return":
        return annual_return(ours) - annual_return(theirs)
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    return sharpe(ours - cash) - sharpe(theirs - cash)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_on_both_sides_of_the_fee_backtests_agree(strength: float) -> None:
    market = small_market(BASE)
    act = foresight(market, strength)
    found = break_even(market, market.splits.test, BASE, act, lags=(0,), cap=0.05)
    assert [each.measure for each in found] == ["annual_return", "sharpe"]
    for each in found:
        assert each.outcome == "found"
        assert each.fee is not None
        assert each.free_edge == pytest.approx(edge(market, act, each, 0.0), abs=1e-6)
        assert edge(market, act, each, each.fee - 1.1 * TOLERANCE) > 0.0
        assert edge(market, act, each, each.fee + 1.1 * TOLERANCE) < 0.0
        assert 4 <= each.backtests <= 20
        assert each.phrase() == f"{each.fee * 1e4:.1f} bps"


@pytest.mark.parametrize(
    ("strength", "cap", "outcome", "phrase"),
    [
        (-1.0, 0.02, "no edge", "no edge at zero cost"),
        (1.0, 0.0002, "above the cap", "edge remains at the cap of 2 bps"),
    ],
)
def test_where_there_is_no_such_fee(strength: float, cap: float, outcome: str, phrase: str) -> None:
    market = small_market(BASE)
    act = foresight(market, strength)
    for each in break_even(market, market.splits.test, BASE, act, lags=(0,), cap=cap):
        assert (each.outcome, each.fee, each.phrase()) == (outcome, None, phrase)
        assert each.backtests == 2
        assert (each.free_edge > 0.0) == (outcome == "above the cap")


def test_both_lags_are_searched_and_the_policy_acts_for_all_at_once() -> None:
    market = small_market(BASE)
    act, sizes, done = foresight(market, 1.0), [], []

    def counted(observations: Observations) -> Any:
        sizes.append(len(observations))
        return act(observations)

    found = break_even(
        market, market.splits.test, BASE, counted, on_progress=lambda *seen: done.append(seen)
    )
    assert [(each.execution_lag, each.measure) for each in found] == [
        (lag, measure) for lag in (0, 1) for measure in ("annual_return", "sharpe")
    ]
    assert found[0].outcome == "found", "a day's foresight pays at the close of the day"
    assert found[2].fee is None or found[2].fee < 0.5 * found[0].fee  # and little a day late
    rounds = len(sizes) // (len(market.splits.test) - 1)
    assert sizes[0] == 4
    assert sum(sizes[:: len(market.splits.test) - 1]) == found[0].backtests + found[2].backtests
    assert len(done) == rounds
    assert done[-1] == (4, 4)


@given(
    root=st.floats(1e-6, 0.0199),
    power=st.sampled_from([0.2, 1.0, 3.0]),
    slope=st.floats(1e-3, 1e3),
)
def test_the_search_ends_whatever_the_course(root: float, power: float, slope: float) -> None:
    def course(fee: float) -> float:
        return float(slope * np.sign(root - fee) * abs(root - fee) ** power)

    known = {fee: course(fee) for fee in (0.0, 0.02)}
    for turn in range(1, 100):
        asked = next_fees(known, thirds=turn % 3 == 0)
        if not asked:
            break
        assert all(0.0 < fee < 0.02 and fee not in known for fee in asked)
        known.update({fee: course(fee) for fee in asked})
    assert turn < 25
    below = max(fee for fee in known if known[fee] > 0.0)
    above = min(fee for fee in known if known[fee] <= 0.0)
    assert below <= root <= above
    assert above - below <= TOLERANCE


def test_where_the_edge_comes_back_the_lowest_crossing_counts() -> None:
    known = {0.0: 1.0, 0.005: -1.0, 0.01: 1.0, 0.02: -1.0}
    assert all(0.0 < fee < 0.005 for fee in next_fees(known))
    assert next_fees({0.0: -1.0, 0.02: -2.0}) == next_fees({0.0: 2.0, 0.02: 1.0}) == []
