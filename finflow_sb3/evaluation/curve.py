"""What one backtest leaves behind: a net curve and what was held to earn it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["TRADING_DAYS", "Curve"]

TRADING_DAYS = 252
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The course of one portfolio through a period, net of costs.

    Day d is the step from decision date ``decisions[d]`` to ``dates[d]``, the next trading day.

    Attributes
    ----------
    name : what was run ("cqsac", "equal_weight", "anchor: momentum", ...)
    dates : datetime64[D], shape [D], days on which the returns were earned
    decisions : datetime64[D], shape [D], days on which the weights were chosen
    returns : shape [D], simple daily returns net of costs
    weights : shape [D, n+1], as held after the day's trade and before drift, cash last
    turnover : shape [D], traded value over value before the trade (buys plus sells)
    cost : shape [D], costs paid, in units of the initial value
    cost_parts : what `cost` is the sum of, by name (fee, ticket, slippage, impact), shape [D]
        each; empty where it is not known
    rewards : shape [D], what the environment paid for each day; None of what it did not run
    disagreement : shape [D], of an ensemble: the part of the portfolio that its members would
        place elsewhere (`ensemble.Decision`); None of a single policy
    gates : shape [D, K], how much each anchor was listened to, or None
    assets : n names (cash is not among them)
    anchors : K names of the gates' columns
    fee : proportional fee, as a fraction of traded value
    execution_lag : 0 trades at the close of the decision, 1 at the next
    note : what a reader has to know of this curve; mostly nothing
    """

    name: str
    dates: NDArray[np.datetime64]
    decisions: NDArray[np.datetime64]
    returns: Float
    weights: Float
    turnover: Float
    cost: Float
    assets: tuple[str, ...]
    gates: Float | None = None
    anchors: tuple[str, ...] = ()
    fee: float = 0.0
    execution_lag: int = 0
    note: str = ""
    cost_parts: Mapping[str, Float] = field(default_factory=dict)
    rewards: Float | None = None
    disagreement: Float | None = None

    @property
    def value(self) -> Float:
        """Value at the end of each day, shape [D], starting from 1 before the first."""
        return np.asarray(np.cumprod(1.0 + self.returns))

    def __len__(self) -> int:
        return len(self.returns)
