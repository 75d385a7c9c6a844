"""B portfolios in one market, stepped together in NumPy.

The one implementation behind `PortfolioEnv`, `PortfolioVecEnv` and the backtest. Timing: at
row t (the close of day t) a portfolio sees everything up to t and sets a target. With
`execution_lag` 0 it trades at that close; with 1 the target of row t−1 is traded at the close
of t. Then the returns from t to t+1 are earned, and the observation of row t+1 follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs import accounting, rewards, simplex
from finflow_sb3.envs.constraints import Limits, constrain, sell_untradable
from finflow_sb3.envs.costs import PARTS, Costs
from finflow_sb3.envs.infos import StepRecord
from finflow_sb3.envs.measures import episode_measures
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.rows import Recycled
from finflow_sb3.envs.universe import Universes
from finflow_sb3.errors import DataError
from finflow_sb3.market.listing import tradable_part
from finflow_sb3.market.splits import Span

__all__ = ["BatchStep", "PortfolioBatch", "default_trade_rate"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Arrays that, with the random states, are the whole state of a batch.
STATE = (
    "row",
    "held",
    "weights",
    "value",
    "peak",
    "steps",
    "pending",
    "idle",
    "first_moment",
    "second_moment",
    "turnover",
    "cost",
    "gates",
    "net_returns",
    "total_turnover",
    "total_cost",
    "total_reward",
)


def default_trade_rate(settings: EnvSettings) -> float:
    """η: what is set, else 0.1 for `anchors` and 1 for the other bases."""
    if settings.trade_rate is not None:
        return settings.trade_rate
    return 0.1 if settings.action_base == "anchors" else 1.0


@dataclass(frozen=True)
class BatchStep:
    """What one step gives: observations [B, size] float32, rewards [B] float32, ends [B]."""

    observations: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: Bool
    truncated: Bool


class PortfolioBatch:
    """A batch of portfolios with explicit state arrays; no portfolio resets by itself.

    Parameters
    ----------
    market : what is observed and earned
    span : rows in which episodes lie
    n_envs : B
    settings : see `EnvSettings`
    evaluation : one episode over the whole span from equal weights, instead of random starts
    seeds : one seed a portfolio
    standing : no episode at all: portfolios see, decide and trade on the span's first row, which
        may be the last of the data, and earn no day

    Raises
    ------
    DataError
        If the span leaves the usable rows: before them there are no anchors yet; or if costs
        need a volume that the prices do not have.
    ConfigError
        If costs or limits contradict each other in this universe.
    """

    def __init__(
        self,
        market: ObservedMarket,
        span: Span,
        n_envs: int,
        settings: EnvSettings,
        evaluation: bool = False,
        seeds: list[int | None] | None = None,
        standing: bool = False,
    ):
        _check_span(market, span, least=1 if standing else 2)
        self.market, self.span, self.settings = market, span, settings
        self.n_envs, self.evaluation = n_envs, evaluation
        self.trade_rate = default_trade_rate(settings)
        self.limits = Limits.of(settings, market.prices.assets)
        self.costs = Costs.of(settings, market.prices, span)
        self.universes = Universes(market, n_envs, 0.0 if evaluation else settings.asset_dropout)
        self.episode_length = len(span) - 1
        if not evaluation:
            self.episode_length = min(settings.episode_length, self.episode_length)
        self.rngs = [np.random.default_rng(seed) for seed in seeds or [None] * n_envs]
        self._allocate()

    def _allocate(self) -> None:
        b, width = self.n_envs, self.market.returns.shape[1]
        self._day = np.empty((b, width))
        self._each = np.arange(b)
        self._even = np.ones(width)
        self._seen = Recycled((b, self.market.layout.size), np.float32)
        self.row = np.full(b, self.span.start, dtype=np.int64)
        self.steps = np.zeros(b, dtype=np.int64)
        self.held = np.full((b, width), 1.0 / width)
        self.weights = self.held.copy()
        self.pending = self.held.copy()
        self.idle = np.ones(b, dtype=bool)
        self.gates = np.zeros((b, len(self.market.anchors.names)))
        self.net_returns = np.zeros((b, self.episode_length))
        self.value, self.peak = np.ones(b), np.ones(b)
        self.turnover, self.cost = np.zeros(b), np.zeros(b)
        self._parts: Float | None = None
        self.total_turnover, self.total_cost = np.zeros(b), np.zeros(b)
        self.total_reward = np.zeros(b)
        self.first_moment = np.full(b, self.market.moments[0])
        self.second_moment = np.full(b, self.market.moments[1])

    # ---------------------------------------------------------------- episodes

    def reset(self, which: NDArray[np.int64] | None = None) -> None:
        """Start new episodes in these portfolios (all, if not given)."""
        index = np.arange(self.n_envs) if which is None else np.asarray(which)
        # Infos that were not read yet keep the arrays of their step.
        for name in ("row", "value", "weights", "turnover", "cost"):
            setattr(self, name, getattr(self, name).copy())
        for i in index:
            rng = self.rngs[i]
            self.row[i] = self._start(rng)
            self.universes.draw(i, rng)
            self.held[i] = self._initial_weights(rng, i)
        self.weights[index] = self.pending[index] = self.held[index]
        self.idle[index] = True
        self.value[index] = self.peak[index] = 1.0
        for zero in ("steps", "gates", "turnover", "cost"):
            getattr(self, zero)[index] = 0
        if self._parts is not None:
            self._parts[:, index] = 0.0
        for total in ("total_turnover", "total_cost", "total_reward"):
            getattr(self, total)[index] = 0.0
        self.first_moment[index], self.second_moment[index] = self.market.moments

    def _start(self, rng: np.random.Generator) -> int:
        if self.evaluation:
            return self.span.start
        return int(rng.integers(self.span.start, self.span.stop - self.episode_length))

    def _initial_weights(self, rng: np.random.Generator, i: int) -> Float:
        which = np.array([i])
        if self.evaluation or self.settings.initial_weights == "equal":
            return np.asarray(self.even_weights(which)[0])
        if self.settings.initial_weights == "anchors":
            anchors = self.anchors(which)[0]
            mixed: Float = rng.dirichlet(np.ones(len(anchors))) @ anchors
            return mixed
        drawn = rng.dirichlet(self._even)
        tradable = self.tradable(which)
        return drawn if tradable is None else tradable_part(drawn, tradable[0])

    def hold(self, weights: Float, value: float, peak: float) -> None:
        """Let the portfolios, which are reset, begin from these holdings instead.

        Parameters
        ----------
        weights : shape [B, n+1], cash last
        value, peak : in units of the initial value
        """
        self.held = np.array(weights)
        self.weights, self.pending = self.held.copy(), self.held.copy()
        self.value, self.peak = np.full(self.n_envs, value), np.full(self.n_envs, peak)

    # ---------------------------------------------------------------- the universe

    def tradable(self, which: NDArray[np.int64] | None = None) -> Bool | None:
        """Assets that these portfolios (all, if not given) may hold until the next close.

        Returns
        -------
        bool, shape [len(which), n]; None where that is all assets on all days
        """
        return self.universes.tradable(self.row, which)

    def even_weights(self, which: NDArray[np.int64]) -> Float:
        """The same of every tradable asset, shape [len(which), n+1]."""
        return self.universes.even_weights(self.row, which)

    def anchors(self, which: NDArray[np.int64]) -> Float:
        """The anchors of these portfolios' rows, within their universes: [len(which), K, n+1]."""
        return self.universes.anchors(self.row, which)

    # ---------------------------------------------------------------- one step

    def target(self, actions: NDArray[Any]) -> Float:
        """Target weights [B, n+1] that these actions ask for, in the present state."""
        return self.tradable_part(self._asked_for(actions))

    def tradable_part(self, weights: Float) -> Float:
        """Weights [B, n+1] without what is not tradable now, scaled to one again."""
        tradable = self.tradable()
        return weights if tradable is None else tradable_part(weights, tradable)

    def _asked_for(self, actions: NDArray[Any]) -> Float:
        actions = np.asarray(actions)
        _require_numbers(actions)
        a = np.asarray(actions.clip(-1.0, 1.0), dtype=np.float64)
        s = self.settings
        if s.action_base == "anchors":
            k = self.gates.shape[1]
            self.gates = simplex.gate_weights(a[:, :k], s.gate_scale)
            anchors = self.universes.all_anchors(self.row)
            return simplex.tilted_mixture(self.gates, anchors, a[:, k:], s.tilt_scale)
        if s.action_base == "drift":
            return simplex.drift_target(a, self.held, s.drift_scale)
        return simplex.softmax_target(a, s.softmax_scale)

    def invert(
        self, weights: Float, gate_floor: float = 0.0, largest: float = simplex.LARGEST_ACTION
    ) -> Float:
        """Actions [B, A] whose targets are nearest to `weights`, in the present state.

        Parameters
        ----------
        gate_floor : as for `simplex.invert_anchor`
        largest : of an action's entries
        """
        s, weights = self.settings, self.tradable_part(weights)
        if s.action_base == "anchors":
            anchors = self.anchors(self._each)
            return simplex.invert_anchor(
                weights, anchors, s.gate_scale, s.tilt_scale, gate_floor, largest
            )
        if s.action_base == "drift":
            return simplex.invert_drift(weights, self.held, s.drift_scale, largest, self._free())
        return simplex.invert_softmax(weights, s.softmax_scale, largest, self._free())

    def _free(self) -> Float | float:
        """Where targets can have weight now: 1 everywhere, or [B, n+1] of 1 and 0."""
        tradable = self.tradable()
        if tradable is None:
            return 1.0
        free = np.ones_like(self.held)
        free[:, :-1] = tradable
        return free

    def step(self, actions: NDArray[Any]) -> BatchStep:
        """Decide, trade, earn a day.

        Parameters
        ----------
        actions : shape [B, A], clipped to [-1, 1]
        """
        actions = np.asarray(actions)
        idle = None
        if self.settings.action_base == "drift":
            idle = np.asarray(np.all(actions == 0.0, axis=1))
        return self.step_to(self.target(actions), idle)

    def step_to(self, target: Float, idle: Bool | None = None) -> BatchStep:
        """As `step`, with the target weights [B, n+1] given outright.

        Parameters
        ----------
        idle : shape [B], True where nothing is to be traded, wherever prices have drifted

        What is not tradable any more is sold all the same, and what is not yet is not bought:
        both are cash then.
        """
        done = self.trade_to(target, idle)
        self.row = self.row + 1
        # Rows are in range: "clip" only says that `out` needs no copy in case they are not.
        day = self.market.returns.take(self.row, axis=0, out=self._day, mode="clip")
        growth, drifted = accounting.grow(done.weights, day)
        net_growth = done.mu * growth
        self.weights, self.held = done.weights, drifted
        self.turnover, self.cost = done.turnover, (1.0 - done.mu) * self.value
        reward = self._reward(net_growth)
        self._account(net_growth, reward)
        truncated = self.steps >= self.episode_length
        terminated = self.value <= self.settings.ruin
        return BatchStep(
            self.observations(), reward.astype(np.float32), terminated, truncated & ~terminated
        )

    def trade_to(self, target: Float, idle: Bool | None = None) -> accounting.Trade:
        """The trade at this row's close, without the day after it; `step_to` makes it and goes on.

        Parameters
        ----------
        target, idle : as for `step_to`; with `execution_lag` what was wanted before is traded
        """
        if self.settings.execution_lag:
            target, self.pending = self.pending, target.copy()
            now = np.zeros(self.n_envs, dtype=bool) if idle is None else idle
            idle, self.idle = self.idle, now
        target = self.reached(target, idle)
        done, parts = self.costs.trade(self.held, target, self.value, self.row)
        self._parts = None if parts is None else parts * self.value
        return done

    def reached(
        self, target: Float, idle: Bool | None = None, trade_rate: float | None = None
    ) -> Float:
        """Weights [B, n+1] that a trade at this close ends with on its way to `target`.

        That is as far as `trade_rate`, the limits and the listing of assets let it; nothing is
        changed by asking.

        Parameters
        ----------
        idle : shape [B], True where nothing is to be traded
        trade_rate : the environment's own if not given
        """
        rate = self.trade_rate if trade_rate is None else trade_rate
        if idle is not None:
            target = np.where(idle[:, None], self.held, target)
        elif rate == 1.0:
            # What is held is not the caller's array: it may change, or be one row for all.
            target = np.broadcast_to(target, self.held.shape).copy()
        target = accounting.move_towards(self.held, target, rate)
        target = constrain(self.held, target, self.limits)
        tradable = self.tradable()
        return target if tradable is None else sell_untradable(target, tradable)

    @property
    def cost_parts(self) -> dict[str, Float]:
        """What `cost` of the last step is the sum of, each of shape [B]: see `costs.PARTS`."""
        if self._parts is not None:
            return {name: part.copy() for name, part in zip(PARTS, self._parts, strict=True)}
        parts = {name: np.zeros(self.n_envs) for name in PARTS}
        return {**parts, "fee": self.cost.copy()}

    def _reward(self, net_growth: Float) -> Float:
        """The reward of the day that ends at the present row; moves the reward's moments."""
        s = self.settings
        subtract = s.reward_baseline == "equal_weight"
        if s.reward == "differential_sharpe":
            excess = net_growth - 1.0
            if subtract:
                excess = excess - self.universes.average_return(self.row)
            reward, self.first_moment, self.second_moment = rewards.differential_sharpe(
                excess, self.first_moment, self.second_moment, s.sharpe_decay
            )
            return reward
        value = self.value * net_growth
        peak = np.maximum(self.peak, value)
        return rewards.log_return_reward(
            net_growth,
            self.universes.log_average_return(self.row) if subtract else 0.0,
            self.turnover,
            1.0 - self.value / self.peak,
            1.0 - value / peak,
            self.market.sigma,
            s.lambda_turn,
            s.lambda_cvar,
            s.cvar_target,
            s.lambda_dd,
        )

    def _account(self, net_growth: Float, reward: Float) -> None:
        self.value = self.value * net_growth
        self.peak = np.maximum(self.peak, self.value)
        self.net_returns[self._each, self.steps] = net_growth - 1.0
        self.steps = self.steps + 1
        self.total_turnover = self.total_turnover + self.turnover
        self.total_cost = self.total_cost + self.cost
        self.total_reward = self.total_reward + reward

    # ---------------------------------------------------------------- what is seen

    def observations(self, which: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Observations of the present row, shape [B, layout.size], or of these portfolios."""
        frames, split = self.market.frames, self.market.layout.market_size
        if which is not None:
            some = frames[self.row[which]]
            some[:, split:] = self.portfolio_block()[which]
            return some
        out = frames.take(self.row, axis=0, out=self._seen.take(), mode="clip")
        self._write_portfolios(out[:, split:])
        return out

    def portfolio_block(self) -> NDArray[np.float32]:
        """The part of observations that is the portfolio's own, shape [B, portfolio_size]."""
        out = np.empty((self.n_envs, self.market.layout.portfolio_size), dtype=np.float32)
        self._write_portfolios(out)
        return out

    def _write_portfolios(self, out: NDArray[np.float32]) -> None:
        width = self.held.shape[1]
        out[:, :width] = self.held
        out[:, width] = 1.0 - self.value / self.peak
        if self.settings.reward == "differential_sharpe":
            scale = max(self.market.moments[1], 1e-12)
            out[:, width + 1] = self.first_moment / scale**0.5
            out[:, width + 2] = self.second_moment / scale
        if self.market.layout.masked:
            tradable = self.tradable()
            self._present(out)[:] = 1.0 if tradable is None else tradable
        if self.market.layout.lagged:
            out[:, -width:] = self.pending if self.settings.execution_lag else self.held

    def _present(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of portfolio blocks [B, portfolio_size] that says which assets there are."""
        place, start = self.market.layout.slices["present"], self.market.layout.market_size
        return out[:, place.start - start : place.stop - start]

    def record(self) -> StepRecord:
        """What infos of the last step are read from, now or later."""
        return StepRecord(
            self.market.prices.dates,
            self.row,
            self.value,
            self.weights,
            self.turnover,
            self.cost,
        )

    def info(self, i: int) -> dict[str, Any]:
        """`info` of portfolio i: the day of its observation, and its last trade."""
        return self.record().info(i)

    def episode(self, i: int) -> dict[str, float]:
        """Net figures of portfolio i's episode so far, and SB3's reward and length."""
        return self.episodes(np.array([i]))[0]

    def episodes(self, which: NDArray[np.int64]) -> list[dict[str, float]]:
        """`episode` of several portfolios, in the same bits."""
        figures: dict[int, dict[str, float]] = {}
        for steps in np.unique(self.steps[which]):
            members = which[self.steps[which] == steps]
            columns = {
                **episode_measures(self.net_returns[members, :steps]),
                "mean_turnover": self.total_turnover[members] / max(steps, 1),
                "total_cost": self.total_cost[members],
                "total_reward": self.total_reward[members],
                "length": np.full(len(members), float(steps)),
            }
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            for i, row in zip(members.tolist(), rows, strict=True):
                figures[i] = dict(zip(columns, row, strict=True))
        return [figures[i] for i in which.tolist()]

    # ---------------------------------------------------------------- state

    def state(self) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
        """Arrays and random states that `restore` takes: a step after it gives the same bits."""
        arrays = {name: np.array(getattr(self, name)) for name in STATE}
        if self.universes.dropout:
            arrays["kept"] = self.universes.kept.copy()
        return arrays, [dict(rng.bit_generator.state) for rng in self.rngs]

    def restore(self, arrays: dict[str, NDArray[Any]], states: list[dict[str, Any]]) -> None:
        for name in STATE:
            setattr(self, name, np.array(arrays[name]))
        if self.universes.dropout:
            self.universes.kept = np.array(arrays["kept"])
        self._parts = None  # of the last step, which is not part of the state
        for rng, state in zip(self.rngs, states, strict=True):
            rng.bit_generator.state = state


def _require_numbers(actions: NDArray[Any]) -> None:
    """Refuse NaN: the portfolio would hold it until its episode ends, and learn from it."""
    unknown = np.isnan(actions)
    if unknown.any():
        i, j = np.argwhere(unknown)[0]
        raise DataError(
            f"action: entry {j} of portfolio {i} is NaN; look for diverged weights in the policy"
        )


def _check_span(market: ObservedMarket, span: Span, least: int) -> None:
    first, stop = market.splits.train.start, len(market.returns)
    if not (first <= span.start <= span.stop - least <= stop - least):
        raise DataError(
            f"rows {span.start} to {span.stop} are no span of at least {least} of the usable rows "
            f"{first} to {stop}"
        )
