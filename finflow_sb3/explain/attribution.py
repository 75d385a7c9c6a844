"""What a realised return came from: assets, stages of the decision, and costs, adding up exactly.

On a day that starts with value V, trades at cost (1 − μ)·V and then earns the returns r with the
weights w, the money made is

    V·(μ·Σ_i w_i·(1 + r_i) − 1) = V·μ·Σ_i w_i·r_i − V·(1 − μ).

The weights are followed from stage to stage: w = reference + (gates − reference) + (tilts − gates)
+ (w − tilts), so that each asset's V·μ·w_i·r_i is a sum over stages, and each stage's a sum over
assets. Days are linked by money: parts of all days, in units of the value before the first, add up
to the net return of the period, since V_{t+1} − V_t does. (Carino 1999 and others link returns by
coefficients instead; money needs none, and costs stay what was paid.)

Stages in action base `anchors`: the anchors' average, what the gates make of it, what the tilts
make of that, and trading (the part of the way, limits, the lag). In `drift` they are what was held,
the policy and trading, in `none` equal weights with cash, the policy and trading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.explain.state import CASH, Asked, step

__all__ = ["Attribution", "Ledger"]

Float = NDArray[np.float64]

REFERENCES = {"anchors": "anchors' average", "drift": "what was held", "none": "equal weights"}


@dataclass(frozen=True)
class Attribution:
    """A net return, taken apart; all figures in units of the value at its start.

    Attributes
    ----------
    first, last : the day before the first return, and the day of the last
    days : of returns
    assets : n+1 names, cash last
    stages : S names
    parts : shape [S, n+1]
    costs : what was paid, not above zero
    anchors, gates : K names and what listening to each more or less than evenly made, shape [K]:
        the parts of the stage "gates"; empty in other action bases than `anchors`
    total : the net return, as the accounts have it
    """

    first: str
    last: str
    days: int
    assets: tuple[str, ...]
    stages: tuple[str, ...]
    parts: Float
    costs: float
    anchors: tuple[str, ...]
    gates: Float
    total: float

    @property
    def gap(self) -> float:
        """By how much the parts miss the total; rounding and nothing else."""
        return float(self.parts.sum() + self.costs - self.total)

    def as_dict(self) -> dict[str, Any]:
        by_stage = zip(self.stages, self.parts.sum(axis=1).tolist(), strict=True)
        by_asset = zip(self.assets, self.parts.sum(axis=0).tolist(), strict=True)
        return {
            "first": self.first,
            "last": self.last,
            "days": self.days,
            "net_return": self.total,
            "costs": self.costs,
            "stages": dict(by_stage),
            "assets": dict(by_asset),
            "gates": dict(zip(self.anchors, self.gates.tolist(), strict=True)),
            "parts": {
                stage: dict(zip(self.assets, row, strict=True))
                for stage, row in zip(self.stages, self.parts.tolist(), strict=True)
            },
            "gap": self.gap,
        }


@dataclass(frozen=True)
class _Order:
    """What is traded towards, from stage to stage: shape [S−1, n+1]; and by anchor, [K, n+1]."""

    stages: Float
    anchors: Float


@dataclass
class Ledger:
    """Steps a batch of one portfolio and books where each day's money came from.

    `take` is what `replay` calls before each day's trade.

    Parameters
    ----------
    start : row of the first decision that is booked; days before it are stepped alone
    """

    start: int
    parts: list[Float] = field(default_factory=list)
    gates: list[Float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    _waiting: _Order | None = None
    _names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | None = None

    def take(self, batch: PortfolioBatch, asked: Asked) -> None:
        """Let the batch trade and earn a day, and book it."""
        if int(batch.row[0]) < self.start:
            self._waiting = _order(batch, asked)
            step(batch, asked)
            return
        self._names = self._names or _names(batch, asked)
        order, before = self._traded(batch, asked), float(batch.value[0])
        step(batch, asked)
        row, cost = int(batch.row[0]), float(batch.cost[0])
        earned = (before - cost) * batch.market.returns[row]
        stages = np.concatenate([order.stages, batch.weights])
        self.parts.append(np.diff(stages, axis=0, prepend=0.0) * earned)
        self.gates.append(order.anchors @ earned)
        self.costs.append(-cost)
        self.values = self.values or [before]
        self.values.append(float(batch.value[0]))
        self.rows = self.rows or [row - 1]
        self.rows.append(row)

    def _traded(self, batch: PortfolioBatch, asked: Asked) -> _Order:
        """The order of this close: with a lag the one of the day before."""
        now = _order(batch, asked)
        if not batch.settings.execution_lag:
            return now
        waiting, self._waiting = self._waiting, now
        # Before the first decision nothing is on order: what is held stays.
        return waiting or _Order(
            np.repeat(batch.held, len(now.stages), axis=0), np.zeros_like(now.anchors)
        )

    def attribution(self, batch: PortfolioBatch) -> Attribution | None:
        """All days that were booked, linked; None before the first."""
        if not self.rows or self._names is None:
            return None
        dates, start = batch.market.prices.dates, self.values[0]
        assets, stages, anchors = self._names
        return Attribution(
            first=str(dates[self.rows[0]]),
            last=str(dates[self.rows[-1]]),
            days=len(self.parts),
            assets=assets,
            stages=stages,
            parts=np.sum(self.parts, axis=0) / start,
            costs=float(np.sum(self.costs)) / start,
            anchors=anchors,
            gates=np.sum(self.gates, axis=0) / start,
            total=self.values[-1] / start - 1.0,
        )


def _names(
    batch: PortfolioBatch, asked: Asked
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Of assets, stages and anchors."""
    base = batch.settings.action_base
    moved = ("policy",) if asked.gates is None else ("gates", "tilts")
    doubt = ("shrinkage",) if asked.shrunk else ()
    anchors = () if asked.gates is None else batch.market.anchors.names
    return (
        (*batch.market.prices.assets, CASH),
        (REFERENCES[base], *moved, *doubt, "trading"),
        anchors,
    )


def _order(batch: PortfolioBatch, asked: Asked) -> _Order:
    width = batch.held.shape[1]
    towards = [asked.combined]
    if asked.shrunk:
        towards.append(asked.target)
    if asked.gates is None:
        zero = np.zeros((1, batch.market.layout.action_size))
        return _Order(np.stack([batch.target(zero)[0], *towards]), np.zeros((0, width)))
    anchors = np.stack(
        [batch.tradable_part(a[None])[0] for a in batch.market.anchors.at(int(batch.row[0]))]
    )
    gates = asked.shares @ asked.gates
    average = anchors.mean(axis=0)
    more = (gates - 1.0 / len(gates))[:, None] * (anchors - average)
    return _Order(np.stack([average, gates @ anchors, *towards]), more)
