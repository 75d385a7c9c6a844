"""What policies want of a portfolio on the last day of the data, through the environment itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.backtest import lagged
from finflow_sb3.market.splits import Span

__all__ = ["Decided", "decide", "standing"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Decided:
    """A decision at the close of the last row.

    Attributes
    ----------
    held : shape [n+1], weights before it, cash last
    target : shape [n+1], where the policies want to be
    weights : shape [n+1], where the environment lets them go today: `trade_rate` of the way,
        within all limits
    aim : shape [n+1], where they would let them go if all of the way were traded today
    mu : value after that trade over value before it
    gates : shape [K], how much each anchor is listened to; None for other action bases
    anchors : shape [K, n+1], what each anchor holds
    disagreement : part of the portfolio that the members of an ensemble place elsewhere
    drawdown : that the policies were shown
    """

    held: Float
    target: Float
    weights: Float
    aim: Float
    mu: float
    gates: Float | None
    anchors: Float
    disagreement: float
    drawdown: float


def decide(policies: Policies, batch: PortfolioBatch) -> Decided:
    """Ask the policies once, of a batch of one as `standing` makes it."""
    ensemble = policies.ensemble
    wanted = ensemble.decide(batch, ensemble.actions(batch.observations()))
    aim = batch.reached(wanted.target, wanted.idle, trade_rate=1.0)
    done = batch.trade_to(wanted.target, wanted.idle)
    by_gates = batch.settings.action_base == "anchors"
    return Decided(
        held=batch.held[0],
        target=wanted.target[0],
        weights=done.weights[0],
        aim=aim[0],
        mu=float(done.mu[0]),
        gates=batch.gates[0].copy() if by_gates else None,
        anchors=batch.anchors(np.zeros(1, dtype=np.int64))[0],
        disagreement=float(wanted.disagreement[0]),
        drawdown=float(1.0 - batch.value[0] / batch.peak[0]),
    )


def standing(
    market: ObservedMarket,
    env: EnvSettings,
    weights: Float,
    value: float,
    peak: float,
    trade_rate: float | None = None,
) -> PortfolioBatch:
    """One portfolio on the last row, which can decide and trade and not go on.

    An order that waits for the next close (`execution_lag`) is not among what is held: nothing is
    pending, as at the start of an episode.

    Parameters
    ----------
    weights : shape [n+1], held, cash last
    value, peak : in money; highest value so far
    trade_rate : the environment's own if not given
    """
    now = lagged(env, 0)
    if trade_rate is not None:
        now = dataclasses.replace(now, trade_rate=trade_rate)
    last = len(market.prices) - 1
    batch = PortfolioBatch(market, Span(last, last + 1), 1, now, evaluation=True, standing=True)
    batch.reset()
    # Costs and rewards count in units of the initial value, which matters for money alone.
    unit = value if env.capital is None else env.capital
    batch.hold(weights[None], value / unit, peak / unit)
    return batch
