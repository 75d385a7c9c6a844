"""Episode rewards of a curve, as RL benchmarks report them beside the money."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs import rewards
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.market.splits import Span

__all__ = ["daily_rewards", "episode_rewards"]

Float = NDArray[np.float64]


def episode_rewards(curve: Curve, market: ObservedMarket, span: Span, env: EnvSettings) -> Float:
    """Total reward of each whole episode of `episode_length` days, one after the other.

    Episodes follow each other in one pass through the span, as the backtest does. Days at the end
    that make no whole episode are left out; a span that is shorter is one episode.
    """
    daily = daily_rewards(curve, market, span, env)
    length = min(env.episode_length, len(daily))
    whole = len(daily) // length
    return np.asarray(daily[: whole * length].reshape(whole, length).sum(axis=1))


def daily_rewards(curve: Curve, market: ObservedMarket, span: Span, env: EnvSettings) -> Float:
    """The environment's reward of each day of a curve that went through `span`, shape [D]."""
    subtract = env.reward_baseline == "equal_weight"
    baseline = market.equal_weight[span.start + 1 : span.stop] if subtract else 0.0 * curve.returns
    if env.reward == "differential_sharpe":
        return _differential_sharpe(curve.returns - baseline, market, env)
    value = curve.value
    before = np.concatenate([[1.0], value[:-1]])
    peak = np.maximum(np.maximum.accumulate(value), 1.0)
    peak_before = np.concatenate([[1.0], peak[:-1]])
    return rewards.log_return_reward(
        1.0 + curve.returns,
        np.log1p(baseline),
        curve.turnover,
        1.0 - before / peak_before,
        1.0 - value / peak,
        market.sigma,
        env.lambda_turn,
        env.lambda_cvar,
        env.cvar_target,
        env.lambda_dd,
    )


def _differential_sharpe(excess: Float, market: ObservedMarket, env: EnvSettings) -> Float:
    out = np.empty(len(excess))
    first, second = (np.array([moment]) for moment in market.moments)
    for day, value in enumerate(excess):
        reward, first, second = rewards.differential_sharpe(
            np.array([value]), first, second, env.sharpe_decay
        )
        out[day] = reward[0]
    return out
