"""Backtests through the environment's own accounting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.batch import BatchStep, PortfolioBatch
from finflow_sb3.envs.costs import PARTS
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.market.splits import Span

__all__ = ["Act", "backtest", "backtests", "lagged", "play", "rule_curves"]

Float = NDArray[np.float64]
Act = Callable[[NDArray[np.float32]], NDArray[Any]]
Targets = Callable[[PortfolioBatch], Float]


def backtest(
    market: ObservedMarket,
    span: Span,
    env: EnvSettings,
    act: Act,
    name: str,
    execution_lag: int | None = None,
) -> Curve:
    """One deterministic pass of a policy through `span`, from equal weights, net of costs.

    Parameters
    ----------
    act : observations float32 [1, layout.size] → actions [1, A]
    execution_lag : the environment's own if not given; observations keep the layout that the
        policy was trained with
    """
    return backtests(market, span, [lagged(env, execution_lag)], act, name)[0]


def backtests(
    market: ObservedMarket, span: Span, envs: Sequence[EnvSettings], act: Act, name: str
) -> list[Curve]:
    """As `backtest` in each of several environments, the policy asked for all of them at once.

    Parameters
    ----------
    act : observations float32 [len(envs), layout.size] → actions [len(envs), A]
    """
    batches = [PortfolioBatch(market, span, 1, env, evaluation=True) for env in envs]
    for batch in batches:
        batch.reset()
    return play(batches, act, name)


def play(batches: Sequence[PortfolioBatch], act: Act, name: str) -> list[Curve]:
    """What a policy makes of batches of one portfolio each, from their states to their ends."""
    records = [_Record(batch) for batch in batches]
    seen = np.concatenate([batch.observations() for batch in batches])
    for _ in range(batches[0].episode_length):
        actions = act(seen)
        for i, record in enumerate(records):
            step = record.batch.step(actions[i : i + 1])
            seen[i] = step.observations[0]
            record.take(step)
    return [
        record.curves([name], env, with_gates=env.action_base == "anchors")[0]
        for record, env in zip(records, (batch.settings for batch in batches), strict=True)
    ]


def rule_curves(
    market: ObservedMarket, span: Span, env: EnvSettings, names: list[str], targets: Targets
) -> list[Curve]:
    """Rules as one batch of portfolios, one for each name.

    Parameters
    ----------
    targets : the batch → target weights [len(names), n+1]; a row equal to the batch's held
        weights trades nothing that day
    """
    batch = PortfolioBatch(market, span, len(names), env, evaluation=True)
    batch.reset()
    record = _Record(batch)
    for _ in range(batch.episode_length):
        wanted = targets(batch)
        record.take(batch.step_to(wanted, idle=np.all(wanted == batch.held, axis=1)))
    return record.curves(names, env, with_gates=False)


def lagged(env: EnvSettings, execution_lag: int | None) -> EnvSettings:
    """`env` with this lag and nothing that ends an episode early: a backtest sees ruin through."""
    lag = env.execution_lag if execution_lag is None else execution_lag
    return dataclasses.replace(env, execution_lag=lag, ruin=0.0)


class _Record:
    """Collects what a batch does, day by day."""

    def __init__(self, batch: PortfolioBatch):
        self.batch = batch
        self.rows: list[int] = []
        self.weights: list[Float] = []
        self.turnover: list[Float] = []
        self.cost: list[Float] = []
        self.cost_parts: list[Float] = []
        self.gates: list[Float] = []
        self.rewards: list[NDArray[np.float32]] = []

    def take(self, step: BatchStep) -> None:
        batch = self.batch
        self.rewards.append(step.rewards)
        self.rows.append(int(batch.row[0]))
        self.weights.append(batch.weights)
        self.turnover.append(batch.turnover)
        self.cost.append(batch.cost)
        self.cost_parts.append(np.stack(list(batch.cost_parts.values())))
        self.gates.append(batch.gates)

    def curves(self, names: list[str], env: EnvSettings, with_gates: bool) -> list[Curve]:
        market, rows = self.batch.market, np.array(self.rows)
        weights, turnover = np.stack(self.weights, axis=1), np.stack(self.turnover, axis=1)
        parts = np.stack(self.cost_parts, axis=-1)
        cost, gates = np.stack(self.cost, axis=1), np.stack(self.gates, axis=1)
        rewards = np.stack(self.rewards, axis=1).astype(np.float64)
        return [
            Curve(
                name=name,
                dates=market.prices.dates[rows],
                decisions=market.prices.dates[rows - 1],
                returns=self.batch.net_returns[i, : len(rows)].copy(),
                weights=weights[i],
                turnover=turnover[i],
                cost=cost[i],
                cost_parts=dict(zip(PARTS, parts[:, i], strict=True)),
                gates=gates[i] if with_gates else None,
                rewards=rewards[i],
                assets=market.prices.assets,
                anchors=market.anchors.names if with_gates else (),
                fee=env.fee,
                execution_lag=env.execution_lag,
            )
            for i, name in enumerate(names)
        ]
