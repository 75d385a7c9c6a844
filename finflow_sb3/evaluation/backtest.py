"""Backtests through the environment's own accounting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.batch import BatchStep, PortfolioBatch
from finflow_sb3.envs.costs import PARTS
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.ensemble import Act, Ensemble
from finflow_sb3.market.splits import Span

__all__ = ["Act", "Policy", "backtest", "backtests", "lagged", "play", "rule_curves"]

Float = NDArray[np.float64]
Policy = Act | Ensemble
"""Observations float32 [B, layout.size] → actions [B, A]; or several of them together."""
Targets = Callable[[PortfolioBatch], Float]


def backtest(
    market: ObservedMarket,
    span: Span,
    env: EnvSettings,
    policy: Policy,
    name: str,
    execution_lag: int | None = None,
) -> Curve:
    """One deterministic pass of a policy through `span`, from equal weights, net of costs.

    Parameters
    ----------
    execution_lag : the environment's own if not given; observations keep the layout that the
        policy was trained with
    """
    return backtests(market, span, [lagged(env, execution_lag)], policy, name)[0]


def backtests(
    market: ObservedMarket, span: Span, envs: Sequence[EnvSettings], policy: Policy, name: str
) -> list[Curve]:
    """As `backtest` in each of several environments, the policy asked for all of them at once."""
    batches = [PortfolioBatch(market, span, 1, env, evaluation=True) for env in envs]
    for batch in batches:
        batch.reset()
    return play(batches, policy, name)


def play(batches: Sequence[PortfolioBatch], policy: Policy, name: str) -> list[Curve]:
    """What a policy makes of batches of one portfolio each, from their states to their ends."""
    records = [_Record(batch) for batch in batches]
    seen = np.concatenate([batch.observations() for batch in batches])
    for _ in range(batches[0].episode_length):
        for i, (step, apart) in enumerate(_stepped(batches, policy, seen)):
            seen[i] = step.observations[0]
            records[i].take(step, apart)
    return [
        record.curves([name], env, with_gates=env.action_base == "anchors")[0]
        for record, env in zip(records, (batch.settings for batch in batches), strict=True)
    ]


def _stepped(
    batches: Sequence[PortfolioBatch], policy: Policy, seen: NDArray[np.float32]
) -> Iterator[tuple[BatchStep, Float | None]]:
    """A step of each batch as the policy decides on what they show, and its disagreement."""
    if isinstance(policy, Ensemble):
        actions = policy.actions(seen)
        for i, batch in enumerate(batches):
            decision = policy.decide(batch, [a[i : i + 1] for a in actions])
            yield batch.step_to(decision.target, decision.idle), decision.disagreement
    else:
        wanted = policy(seen)
        for i, batch in enumerate(batches):
            yield batch.step(wanted[i : i + 1]), None


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
        self.apart: list[Float] = []

    def take(self, step: BatchStep, apart: Float | None = None) -> None:
        batch = self.batch
        if apart is not None:
            self.apart.append(apart)
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
        apart = np.stack(self.apart, axis=1) if self.apart else None
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
                disagreement=None if apart is None else apart[i],
                assets=market.prices.assets,
                anchors=market.anchors.names if with_gates else (),
                fee=env.fee,
                execution_lag=env.execution_lag,
            )
            for i, name in enumerate(names)
        ]
