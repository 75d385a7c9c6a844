"""One net curve from policies that take turns: what walk-forward folds come to together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.backtest import Policy, lagged, play
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.market.splits import Span

__all__ = ["Piece", "chained_backtest", "joined"]

# What goes from one policy to the next. Its day is the same: the next begins where one ends.
HANDED_ON = (
    "held",
    "weights",
    "value",
    "peak",
    "pending",
    "idle",
    "first_moment",
    "second_moment",
)


@dataclass(frozen=True)
class Piece:
    """One policy's turn: it decides from `span.start` on, its last return ends at `span.stop` − 1.

    Attributes
    ----------
    market : as the policy sees it, with the scaler of its own training
    """

    market: ObservedMarket
    span: Span
    act: Policy


def chained_backtest(
    pieces: Sequence[Piece], env: EnvSettings, name: str, execution_lag: int | None = None
) -> Curve:
    """The net curve of an account whose policy changes from piece to piece.

    Weights, value, the earlier high and a pending order go from one policy to the next, so that
    the trade from what the one held to what the next wants is paid for. Joining curves of pieces
    that each start from equal weights would pay for other trades than the account does.

    Parameters
    ----------
    pieces : in order; each starts on the day on which the one before it ends
    execution_lag : the environment's own if not given

    Raises
    ------
    DataError
        If there is no piece, or a piece starts on another day.
    """
    env = lagged(env, execution_lag)
    curves: list[Curve] = []
    state: dict[str, NDArray[Any]] = {}
    end = None
    for piece in pieces:
        batch = PortfolioBatch(piece.market, piece.span, 1, env, evaluation=True)
        batch.reset()
        start = piece.market.prices.dates[piece.span.start]
        if end is not None and start != end:
            raise DataError(f"{name}: a piece starts on {start}, the one before it ends on {end}")
        for what, value in state.items():
            setattr(batch, what, value.copy())
        curves += play([batch], piece.act, name)
        state, end = {what: getattr(batch, what) for what in HANDED_ON}, curves[-1].dates[-1]
    return joined(curves)


def joined(curves: Sequence[Curve]) -> Curve:
    """Curves of consecutive periods of one account as one curve.

    Raises
    ------
    DataError
        If there is none, or they are of different assets or anchors.
    """
    if not curves:
        raise DataError("nothing to join: there is no curve")
    first = curves[0]
    if any((c.assets, c.anchors) != (first.assets, first.anchors) for c in curves):
        raise DataError(f"{first.name}: its pieces are of different assets or anchors")
    arrays: dict[str, Any] = {
        field.name: np.concatenate([getattr(c, field.name) for c in curves])
        for field in dataclasses.fields(Curve)
        if isinstance(getattr(first, field.name), np.ndarray)
    }
    arrays["cost_parts"] = {
        name: np.concatenate([c.cost_parts[name] for c in curves]) for name in first.cost_parts
    }
    return dataclasses.replace(first, **arrays)
