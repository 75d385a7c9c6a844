"""The gymnasium environment."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings, MarketSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket, Scaler, observe, observe_source
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PortfolioEnv", "make_batch", "make_spaces"]


class PortfolioEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Allocate among n assets and cash, once a day, net of costs.

    Description
    -----------
    At the close of day t the agent sees features of every asset, five classical allocations
    (anchors) with their record, and its own drifted weights. Its action becomes target
    weights; a share `trade_rate` of the way there is traded as far as the limits let it, each
    traded unit of value costs `fee`, and the returns up to the close of t+1 are earned. Row t of
    everything that is seen is computed from prices at or before t.

    Costs and limits
    ----------------
    ==================================  ====================================================
    setting                             what it does
    ==================================  ====================================================
    `fee`, `fees`                       proportional, of all assets and by asset
    `ticket`, `minimum_fee`             money for each asset traded; least fee for each
    `slippage`, `slippage_scale`        by the trade's share of daily volume and volatility
    `impact`                            linear in the share of daily volume
    `liquidity_window`                  trailing days of volume and volatility
    `capital`                           initial value in money, which all but `fee` need
    `cash_rate`                         annual interest on cash
    `no_trade_band`, `max_turnover`     small changes left out; largest trade
    `max_position`, `min_position`      by asset or one number; see `constraints.constrain`
    `groups`, `group_limits`            assets by group, and [least, most] of each
    ==================================  ====================================================

    Action space
    ------------
    `Box(-1, 1)`, float32, of a length that depends on `action_base`:

    ===========  ==========  =====================================================
    base         length      target weights
    ===========  ==========  =====================================================
    `anchors`    K + n + 1   ∝ (Σ_k softmax(5·gate)_k · anchor_k) · exp(0.5·tilt)
    `drift`      n + 1       ∝ drifted weights · exp(0.1·action); zero trades nothing
    `none`       n + 1       ∝ exp(5·action)
    ===========  ==========  =====================================================

    Observation space
    -----------------
    `Box(-inf, inf, (layout.size,))`, float32; `env.layout` names every slice.

    Reward
    ------
    `log_return` (default): log net growth in excess of equal weight's, in units of equal
    weight's daily standard deviation, less the penalties `lambda_*`. `differential_sharpe`:
    Moody & Saffell's, on excess returns.

    Start and end
    -------------
    A random day of the split and random weights; truncated after `episode_length` days,
    terminated by ruin. With `evaluation=True` one episode runs through the whole split from
    equal weights.

    Info
    ----
    `date` (day of the observation), `row`, `value`, `weights` (as held after the trade of that
    step, before drift, cash last), `turnover`, `cost`; at the end of an episode also
    `net_return`, `sharpe`, `sortino`, `max_drawdown`, `cvar_95`, `mean_turnover`, `total_cost`.

    Parameters
    ----------
    prices : "us20", a file, a DataFrame, a `PriceTable`, or an `ObservedMarket` (shared)
    split : "train", "validation", "test" or "all"
    evaluation : run the whole split once
    market : `MarketSettings` (splits, anchors)
    scaler : of an artefact; fitted on the training split if not given
    **env_kwargs : fields of `EnvSettings`

    Versions
    --------
    v0: first release.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's own form)

    def __init__(
        self,
        prices: str | Path | pd.DataFrame | PriceTable | ObservedMarket = "us20",
        *,
        split: str = "train",
        evaluation: bool = False,
        market: MarketSettings | None = None,
        scaler: Scaler | None = None,
        render_mode: str | None = None,
        **env_kwargs: Any,
    ):
        self.batch = make_batch(prices, 1, split, evaluation, market, scaler, env_kwargs)
        self.market = self.batch.market
        self.layout = self.market.layout
        self.gate_scale = self.batch.settings.gate_scale
        self.render_mode = render_mode
        self.observation_space, self.action_space = make_spaces(self.market)
        self._finished = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        if seed is not None:
            self.batch.rngs[0] = np.random.default_rng(seed)
        self.batch.reset()
        self._finished = False
        return self.batch.observations()[0], self.batch.info(0)

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._finished:
            raise DataError("step: the episode has ended or not begun; call reset first")
        out = self.batch.step(np.asarray(action)[None])
        terminated, truncated = bool(out.terminated[0]), bool(out.truncated[0])
        info = self.batch.info(0)
        if terminated or truncated:
            self._finished = True
            info |= self.batch.episode(0)
        return out.observations[0], float(out.rewards[0]), terminated, truncated, info


def make_spaces(market: ObservedMarket) -> tuple[spaces.Box, spaces.Box]:
    """Observation and action space of a market."""
    size, actions = market.layout.size, market.layout.action_size
    return (
        spaces.Box(-np.inf, np.inf, (size,), dtype=np.float32),
        spaces.Box(-1.0, 1.0, (actions,), dtype=np.float32),
    )


def make_batch(
    prices: str | Path | pd.DataFrame | PriceTable | ObservedMarket,
    n_envs: int,
    split: str,
    evaluation: bool,
    market: MarketSettings | None,
    scaler: Scaler | None,
    env_kwargs: dict[str, Any],
) -> PortfolioBatch:
    """The batch behind both environments; arguments as in `PortfolioEnv`."""
    settings = env_settings(env_kwargs, prices)
    observed = _observed(prices, market, settings, scaler)
    return PortfolioBatch(observed, _span(observed, split), n_envs, settings, evaluation)


def env_settings(env_kwargs: dict[str, Any], prices: Any) -> EnvSettings:
    """`EnvSettings` from keyword arguments.

    Raises
    ------
    ConfigError
        If one is unknown; the message names the nearest known one.
    """
    known = [item.name for item in dataclasses.fields(EnvSettings)]
    for name in env_kwargs:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"unknown environment setting {name!r}{hint}")
    base = prices.env if isinstance(prices, ObservedMarket) else EnvSettings()
    return dataclasses.replace(base, **env_kwargs)


def _observed(
    prices: Any, market: MarketSettings | None, env: EnvSettings, scaler: Scaler | None
) -> ObservedMarket:
    if isinstance(prices, ObservedMarket):
        _require_same_observation(prices, env)
        for name, mine, theirs in (
            ("market", prices.settings, market),
            ("scaler", prices.scaler, scaler),
        ):
            if theirs is not None and theirs != mine:
                raise ConfigError(
                    f"{name}: the market was observed with another one; leave it out, or call "
                    "observe() with it"
                )
        return prices
    market = market or MarketSettings()
    if isinstance(prices, str) and scaler is None:
        return observe_source(prices, market, _observed_part(env))
    from finflow_sb3.market.sources import load_prices

    table = load_prices(prices, max_gap=market.max_gap, partial=market.partial)
    return observe(table, market, env, scaler)


def _observed_part(env: EnvSettings) -> EnvSettings:
    """Only what an `ObservedMarket` depends on, so that others can change and still share it."""
    return EnvSettings(
        action_base=env.action_base,
        fee=env.fee,
        fees=env.fees,
        cash_rate=env.cash_rate,
        execution_lag=env.execution_lag,
        reward=env.reward,
        reward_baseline=env.reward_baseline,
    )


def _require_same_observation(market: ObservedMarket, env: EnvSettings) -> None:
    mine, theirs = _observed_part(market.env), _observed_part(env)
    for item in dataclasses.fields(mine):
        if getattr(mine, item.name) != getattr(theirs, item.name):
            raise ConfigError(
                f"{item.name}: the market was observed with {getattr(mine, item.name)!r}, "
                f"not {getattr(theirs, item.name)!r}; call observe() with these settings"
            )


def _span(market: ObservedMarket, split: str) -> Span:
    spans = market.splits.named()
    spans["all"] = Span(market.splits.train.start, market.splits.test.stop)
    if split not in spans:
        raise ConfigError(f"split: {split!r} is not one of {', '.join(spans)}")
    return spans[split]
