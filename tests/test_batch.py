"""The batch: its anchors, what it refuses, whose arrays it holds, figures of many episodes."""

from __future__ import annotations

import numpy as np
import pytest
from markets import batch_of, random_actions, small_market

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.portfolio import PortfolioEnv
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import DataError


def test_the_anchors_in_use_are_those_of_the_row() -> None:
    """Across refit days, resets of some portfolios, and a state that is restored."""
    market = small_market()
    env = EnvSettings(episode_length=70)
    batch = batch_of(market, env, 4, evaluation=False)
    other = batch_of(market, env, 4, evaluation=False, seed=50)
    rng = np.random.default_rng(0)
    for step in range(150):
        np.testing.assert_array_equal(batch._present_anchors(), market.anchors.at(batch.row))
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
