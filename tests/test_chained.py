"""Policies that take turns: against one policy that stays, and by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from markets import small_market, whole_span
from test_backtest import SETTINGS, some_policy

from finflow_sb3.config import EnvSettings
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.chained import Piece, chained_backtest, joined
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.market.splits import Span


def cuts(span: Span, count: int) -> list[Span]:
    """`count` spans that share the day on which one hands over to the next."""
    days = np.linspace(span.start, span.stop - 1, count + 1).astype(int)
    return [Span(int(a), int(b) + 1) for a, b in itertools.pairwise(days)]


def same_arrays(first: Curve, second: Curve) -> None:
    for field in dataclasses.fields(Curve):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if field.name == "cost_parts":
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        elif isinstance(ours, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        else:
            assert ours == theirs, field.name


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("lag", [0, 1])
def test_a_policy_that_takes_over_from_itself_changes_nothing(
    settings: EnvSettings, lag: int
) -> None:
    market = small_market(settings)
    act, span = some_policy(market), whole_span(market)
    pieces = [Piece(market, piece, act) for piece in cuts(span, 4)]
    chained = chained_backtest(pieces, settings, "mine", lag)
    same_arrays(chained, backtest(market, span, settings, act, "mine", lag))


def test_the_trade_at_a_change_of_policy_is_paid_for() -> None:
    env = EnvSettings(action_base="none", fee=0.01, softmax_scale=20.0)
    market = small_market(env)
    width = market.layout.action_size
    first, second = np.full((1, width), -1.0), np.full((1, width), -1.0)
    first[0, 0], second[0, 1] = 1.0, 1.0
    spans = cuts(market.splits.test, 2)
    policies = (lambda _: first, lambda _: second)
    pieces = [Piece(market, s, act) for s, act in zip(spans, policies, strict=True)]
    curve = chained_backtest(pieces, env, "turns")
    change = len(spans[0]) - 1
    # All of one asset is sold and all of the other bought: V' = V·(1 − c)/(1 + c).
    assert curve.turnover[change] == pytest.approx(1.0 + (1 - 0.01) / (1 + 0.01), abs=1e-6)
    assert curve.cost[change] == pytest.approx(
        curve.value[change - 1] * (1.0 - (1 - 0.01) / (1 + 0.01)), abs=1e-6
    )
    assert curve.decisions[change] == market.prices.dates[spans[1].start]


def test_a_gap_between_pieces_is_refused() -> None:
    market = small_market()
    act, (first, second) = some_policy(market), cuts(market.splits.test, 2)
    late = Span(second.start + 1, second.stop)
    with pytest.raises(DataError, match="starts on"):
        chained_backtest([Piece(market, first, act), Piece(market, late, act)], market.env, "x")


def test_nothing_and_strangers_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to join"):
        joined([])
    few, many = small_market(), small_market(n_assets=7)
    curves = [backtest(m, m.splits.test, m.env, some_policy(m), "x") for m in (few, many)]
    with pytest.raises(DataError, match="different assets"):
        joined(curves)
