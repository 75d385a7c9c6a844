"""The state that a decision was taken in: the run's own backtest up to a day, or given weights."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.allocation.account import Account
from finflow_sb3.allocation.holdings import Holdings, read_holdings
from finflow_sb3.config import EnvSettings
from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.simplex import gate_weights
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.backtest import lagged
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span
from finflow_sb3.messages import shown

__all__ = ["Asked", "ask", "replay", "row_of", "span_of", "state_with", "step", "weights_of"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
CASH = "cash"


@dataclass(frozen=True)
class Asked:
    """What policies want in a batch of one portfolio.

    Attributes
    ----------
    actions : of each of M members, shape [M, A]
    members : what each wants by itself, shape [M, n+1]
    gates : each member's shares of the anchors, shape [M, K]; None in other bases than `anchors`
    shares : how much each member's gates count, shape [M]
    combined : what they want together, shape [n+1]
    target : what is traded towards: `combined`, or less of it where members disagree
    idle : shape [1], whether nothing is to be traded; None where that is not asked
    disagreement : the part of the portfolio that members would place elsewhere
    trust : share of the way from what is held to `combined` that `target` goes
    """

    actions: NDArray[Any]
    members: Float
    gates: Float | None
    shares: Float
    combined: Float
    target: Float
    idle: Bool | None
    disagreement: float
    trust: float

    @property
    def shrunk(self) -> bool:
        """Whether `target` may be less than `combined`."""
        return self.combined is not self.target


def ask(policies: Policies, batch: PortfolioBatch) -> Asked:
    """The decision of these policies in the batch's present state, which stays as it is.

    Parameters
    ----------
    batch : of one portfolio
    """
    ensemble = policies.ensemble
    actions = ensemble.actions(batch.observations())
    stacked = np.concatenate([np.asarray(each) for each in actions])
    gates = _gates(batch, stacked)
    if not policies.together:
        still = batch.settings.action_base == "drift"
        idle = np.asarray(np.all(stacked == 0.0, axis=1)) if still else None
        members = batch.target(stacked)
        alone = members[0]
        return Asked(stacked, members, gates, np.ones(1), alone, alone, idle, 0.0, 1.0)
    plain = policies.unshrunk.decide(batch, actions)
    decision = ensemble.decide(batch, actions) if policies.shrinkage else plain
    combined, target = plain.target[0], decision.target[0]
    return Asked(
        actions=stacked,
        members=decision.members[:, 0],
        gates=gates,
        shares=ensemble.weights,
        combined=combined,
        target=target if policies.shrinkage else combined,
        idle=decision.idle,
        disagreement=float(decision.disagreement[0]),
        trust=float(decision.trust[0]),
    )


def _gates(batch: PortfolioBatch, actions: NDArray[Any]) -> Float | None:
    """Each action's shares of the anchors, [M, K]; None where actions have none."""
    if batch.settings.action_base != "anchors":
        return None
    asked = np.clip(actions[:, : len(batch.market.anchors.names)], -1.0, 1.0)
    return gate_weights(asked.astype(np.float64), batch.settings.gate_scale)


def step(batch: PortfolioBatch, asked: Asked) -> None:
    """Let the batch do what was asked for, to the bit as a backtest does."""
    batch.step_to(asked.target[None], asked.idle)


def row_of(market: ObservedMarket, date: str, flag: str = "--date") -> int:
    """The row of a trading day.

    Parameters
    ----------
    flag : that says which day, for messages

    Raises
    ------
    DataError
        If it is none of the usable days; the message names those beside it.
    """
    dates, first = market.prices.dates, market.splits.train.start
    try:
        day = np.datetime64(datetime.date.fromisoformat(date))
    except ValueError:
        raise DataError(f"{flag}: {shown(date)} is no date; write it as 2020-12-31") from None
    row = int(np.searchsorted(dates, day))
    if day < dates[first] or row == len(dates):
        raise DataError(f"{flag}: {day} lies outside the usable days {dates[first]} to {dates[-1]}")
    if dates[row] != day:
        raise DataError(
            f"{flag}: {day} is no trading day; the ones beside it are {dates[row - 1]} and "
            f"{dates[row]}"
        )
    return row


def span_of(market: ObservedMarket, row: int, flag: str = "--date") -> tuple[str, Span]:
    """The split that a row lies in, and its rows.

    Raises
    ------
    DataError
        If it lies in none: between two splits there are days that are left out.
    """
    for name, span in market.splits.named().items():
        if span.start <= row < span.stop:
            return name, span
    raise DataError(
        f"{flag}: {market.prices.dates[row]} lies in no split (days between two are left out, so "
        "that neither sees the other's returns); take a day nearby"
    )


def replay(
    policies: Policies,
    market: ObservedMarket,
    span: Span,
    row: int,
    env: EnvSettings,
    on_day: Callable[[PortfolioBatch, Asked], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PortfolioBatch:
    """The portfolio as the policies' own backtest of `span` has it at the close of `row`.

    Parameters
    ----------
    on_day : called before each day's trade with the batch and what is wanted; it takes the step
    on_progress : called with (days done, days)
    """
    batch = PortfolioBatch(market, span, 1, lagged(env, None), evaluation=True)
    batch.reset()
    days = row - span.start
    for day in range(days):
        (on_day or step)(batch, ask(policies, batch))
        if on_progress is not None:
            on_progress(day + 1, days)
    return batch


def state_with(
    market: ObservedMarket, env: EnvSettings, row: int, held: Float, drawdown: float = 0.0
) -> PortfolioBatch:
    """A portfolio that holds these weights at the close of `row`, which may be the last one.

    Parameters
    ----------
    held : shape [n+1], cash last
    drawdown : of its value from its highest, from 0 to below 1
    """
    usable = Span(market.splits.train.start, len(market.returns))
    batch = PortfolioBatch(market, usable, 1, lagged(env, None), evaluation=True)
    batch.reset()
    batch.row = np.array([row])
    batch.held = batch.weights = batch.pending = np.array(held, dtype=np.float64)[None]
    batch.peak = batch.value / (1.0 - drawdown)
    return batch


def weights_of(holdings: Holdings | str | Path, prices: PriceTable) -> Float:
    """Weights [n+1] of a portfolio at the last close of these prices, cash last.

    Parameters
    ----------
    holdings : or a CSV file of them, as `allocate` takes it

    Raises
    ------
    DataError
        If they cannot be read, or hold what has no price.
    ConfigError
        If the file does not say how much cash there is.
    """
    if not isinstance(holdings, Holdings):
        holdings = read_holdings(holdings, None, prices.assets)
    return Account.of(holdings, prices, Decimal(1)).weights
