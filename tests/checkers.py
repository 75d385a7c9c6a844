"""Checks that everything of a kind must pass."""

from __future__ import annotations

import datetime
from typing import Any

import gymnasium as gym
import numpy as np

INFO_KEYS = {"date", "row", "value", "weights", "turnover", "cost"}
END_KEYS = {
    "net_return",
    "sharpe",
    "sortino",
    "max_drawdown",
    "cvar_95",
    "mean_turnover",
    "total_cost",
}


def check_budget(weights: np.ndarray) -> None:
    """Weights [..., n+1] are nonnegative and sum to one."""
    assert np.all(weights >= 0.0), weights.min()
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=0, atol=1e-12)


def check_info(info: dict[str, Any], n_assets: int) -> None:
    """An `info` carries what design and docstring promise."""
    assert set(info) >= INFO_KEYS
    datetime.date.fromisoformat(info["date"])
    assert info["weights"].shape == (n_assets + 1,)
    check_budget(info["weights"])
    assert info["value"] > 0.0
    assert info["turnover"] >= 0.0
    assert info["cost"] >= 0.0


def check_environment(env: gym.Env[Any, Any], episodes: int = 2, seed: int = 0) -> None:
    """Whole episodes of random actions: types, ranges, infos, dates, ends, determinism.

    Works on any environment whose unwrapped self is a `PortfolioEnv`.
    """
    first = _episodes(env, episodes, seed)
    second = _episodes(env, episodes, seed)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]


def _episodes(env: gym.Env[Any, Any], episodes: int, seed: int) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    portfolio = env.unwrapped
    n = portfolio.layout.n_assets
    trail: list[tuple[Any, ...]] = []
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        check_info(info, n)
        assert info["value"] == 1.0
        assert info["turnover"] == info["cost"] == 0.0
        _check_observation(env, observation)
        value, day, ended = 1.0, info["row"], False
        while not ended:
            action = rng.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            _check_observation(env, observation)
            check_info(info, n)
            assert isinstance(reward, float) and np.isfinite(reward)
            assert not (terminated and truncated)
            assert info["row"] == day + 1
            assert info["date"] == str(portfolio.market.prices.dates[info["row"]])
            assert info["cost"] <= value * info["turnover"] * 0.2 + 1e-12
            value, day = info["value"], info["row"]
            trail.append((observation, reward, terminated, truncated, info["date"], value))
        assert set(info) >= INFO_KEYS | END_KEYS
        assert np.isclose(info["net_return"], info["value"] - 1.0, rtol=1e-9, atol=1e-12)
    return trail


def _check_observation(env: gym.Env[Any, Any], observation: np.ndarray) -> None:
    assert observation.dtype == np.float32
    assert env.observation_space.contains(observation)
    assert np.isfinite(observation).all()
