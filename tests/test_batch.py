"""The batch: its anchors, what it refuses, whose arrays it holds, figures of many episodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from markets import batch_of, random_actions, random_prices, small_market

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.costs import Costs
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.portfolio import PortfolioEnv
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import DataError
from finflow_sb3.market.splits import Span


def test_the_anchors_in_use_are_those_of_the_row() -> None:
    """Across refit days, resets of some portfolios, and a state that is restored."""
    market = small_market()
    env = EnvSettings(episode_length=70)
    batch = batch_of(market, env, 4, evaluation=False)
    other = batch_of(market, env, 4, evaluation=False, seed=50)
    rng = np.random.default_rng(0)
    for step in range(150):
        np.testing.assert_array_equal(
            batch.universes.all_anchors(batch.row), market.anchors.at(batch.row)
        )
        out = batch.step(random_actions(market, 4, rng))
        batch.reset(np.flatnonzero(out.truncated | out.terminated))
        if step == 40:
            batch.reset(np.array([1, 3]))
        if step == 90:
            batch.restore(*other.state())


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
def test_a_nan_action_is_refused(base: str) -> None:
    """By name, in both fronts, and the portfolios stay as they were."""
    market = small_market(EnvSettings(action_base=base))
    env = PortfolioVecEnv(market, 3, seed=0)
    env.reset()
    actions = np.zeros((3, market.layout.action_size), dtype=np.float32)
    env.step(actions)
    before, _ = env.batch.state()
    actions[2, 4] = np.nan
    with pytest.raises(DataError, match="action: entry 4 of portfolio 2 is NaN; look") as caught:
        env.step(actions)
    assert "\n" not in str(caught.value)
    for name, array in env.batch.state()[0].items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    one = PortfolioEnv(market)
    one.reset(seed=0)
    with pytest.raises(DataError, match="entry 4 of portfolio 0 is NaN"):
        one.step(actions[2])


def test_actions_are_clipped() -> None:
    """Infinite ones too."""
    market = small_market()
    far, near = batch_of(market, n_envs=2), batch_of(market, n_envs=2)
    actions = np.sign(random_actions(market, 2, np.random.default_rng(0)))
    far.step(np.where(actions > 0, np.inf, -3.0))
    near.step(np.where(actions > 0, 1.0, -1.0))
    np.testing.assert_array_equal(far.held, near.held)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_targets_that_are_given_stay_the_callers(lag: int, rate: float) -> None:
    """One row serves all portfolios, and what becomes of it later changes nothing."""
    env = EnvSettings(trade_rate=rate, execution_lag=lag)
    market = small_market(EnvSettings(execution_lag=lag))
    kept, changed = batch_of(market, env, n_envs=3), batch_of(market, env, n_envs=3)
    for _ in range(3):
        target = np.full((1, 6), 1.0 / 6.0)
        kept.step_to(target.repeat(3, axis=0))
        changed.step_to(target)
        target[:] = 0.0
        np.testing.assert_array_equal(kept.weights, changed.weights)
        np.testing.assert_array_equal(kept.held, changed.held)
        assert changed.weights.shape == (3, 6)


def test_figures_of_several_episodes_are_those_of_each() -> None:
    """Bit for bit, with episodes of different lengths among them."""
    market = small_market()
    batch = batch_of(market, EnvSettings(episode_length=60), 9, evaluation=False)
    rng = np.random.default_rng(0)
    for step in range(50):
        batch.step(random_actions(market, 9, rng))
        if step == 29:
            batch.reset(np.array([2, 5, 6]))
    which = np.array([6, 0, 5, 8])
    together = batch.episodes(which)
    assert [figures["length"] for figures in together] == [20.0, 50.0, 20.0, 50.0]
    for i, figures in zip(which, together, strict=True):
        assert figures == batch.episode(int(i))
        growth = np.prod(1.0 + batch.net_returns[i, : batch.steps[i]])
        assert figures["net_return"] == pytest.approx(growth - 1.0, rel=1e-12)


class TestStanding:
    """A batch on one row, the last of the data too: it sees, decides and trades."""

    def standing(self, market: ObservedMarket, row: int, env: EnvSettings | None = None) -> Any:
        own = env or market.env
        batch = PortfolioBatch(market, Span(row, row + 1), 2, own, evaluation=True, standing=True)
        batch.reset()
        return batch

    @pytest.mark.parametrize("base", ["anchors", "drift", "none"])
    def test_decides_and_trades_as_any_other(self, base: str) -> None:
        env = EnvSettings(action_base=base, no_trade_band=0.005)
        market = small_market(env)
        last = len(market.prices) - 1
        rng = np.random.default_rng(0)
        weights, actions = rng.dirichlet(np.ones(6), size=2), random_actions(market, 2, rng)
        one = self.standing(market, last - 1)
        other = batch_of(market, env, 2, Span(last - 1, last + 1))
        for batch in (one, other):
            batch.hold(weights, 1.2, 1.5)
        np.testing.assert_array_equal(one.observations(), other.observations())
        assert one.observations()[0, market.layout.slices["scalars"]][0] == np.float32(0.2)
        done = one.trade_to(one.target(actions))
        other.step(actions)
        np.testing.assert_array_equal(done.weights, other.weights)
        np.testing.assert_array_equal(done.turnover, other.turnover)
        assert self.standing(market, last).observations().shape == (2, market.layout.size)

    def test_lies_within_the_data(self) -> None:
        market = small_market()
        for row in (len(market.prices), market.splits.train.start - 1):
            with pytest.raises(DataError, match="no span of at least 1 of the usable rows"):
                self.standing(market, row)
        with pytest.raises(DataError, match="no span of at least 2 of the usable rows"):
            batch_of(market, span=Span(len(market.prices) - 1, len(market.prices)))


@pytest.mark.parametrize("slippage", ["none", "linear", "square_root", "exponential"])
def test_costs_by_asset_add_up(slippage: Any) -> None:
    prices = random_prices(5, 600)
    prices = dataclasses.replace(prices, volume=np.full(prices.close.shape, 1e4))
    env = EnvSettings(
        fees={"S01": 0.004},
        ticket=3.0,
        minimum_fee=20.0,
        slippage=slippage,
        impact=0.05,
        capital=1e5,
    )
    costs = Costs.of(env, prices, Span(590, 600))
    rng = np.random.default_rng(0)
    held, target = rng.dirichlet(np.ones(6), size=(2, 7))
    value, row = rng.uniform(0.5, 2.0, size=7), rng.integers(590, 600, size=7)
    done, parts = costs.trade(held, target, value, row)
    assert parts is not None
    traded = np.abs(done.mu[:, None] * target - held)[:, :-1]
    each = costs.by_asset(traded, value, row)
    np.testing.assert_allclose(each.sum(axis=1), parts.sum(axis=0), rtol=1e-10)
    nothing = costs.by_asset(np.zeros((7, 5)), value, row)
    np.testing.assert_array_equal(nothing, 0.0)
    # Alone an asset costs the same: no part is shared.
    alone = costs.by_asset(traded * (np.arange(5) == 2), value, row)
    np.testing.assert_allclose(alone[:, 2], each[:, 2], rtol=1e-12)
