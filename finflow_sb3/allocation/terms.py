"""The arguments of `allocate` that are not about what is held, checked."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from decimal import Decimal

from finflow_sb3.allocation.holdings import Number, money, number
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.rounding import SAME_RETURN

__all__ = ["MAX_AGE", "MAX_MOVE", "MAX_REVISION", "Terms"]

MAX_AGE = 3
"""Business days: a weekend with a holiday on each side."""
MAX_REVISION = SAME_RETURN
MAX_MOVE = 0.3
"""A daily return beyond it is more often a split of 3 for 2, or a slip, than a day of a market."""


@dataclass(frozen=True)
class Terms:
    """How old prices may be, and how orders are made.

    Attributes
    ----------
    lot : smallest order in shares
    min_order : orders of less money are left out
    trade_rate : part of the way to the target that is traded; None for the run's
    as_of : the day that the allocation is for
    cut : whether prices after it are left out; else there must be none
    max_age : business days that the last prices may be older
    max_revision : largest difference between a daily return now and in training
    max_move : largest daily return after training
    """

    lot: Decimal
    min_order: Decimal
    trade_rate: float | None
    as_of: datetime.date
    cut: bool
    max_age: int
    max_revision: float
    max_move: float

    @classmethod
    def of(
        cls,
        lot: Number,
        min_order: Number,
        trade_rate: float | None,
        as_of: datetime.date | str | None,
        max_age: int,
        max_revision: float,
        max_move: float,
    ) -> Terms:
        smallest = number(lot, "--lot")
        if smallest == 0:
            raise ConfigError("--lot: 0 is no size of an order; give 1, or 0.001 for fractions")
        if trade_rate is not None and not 0.0 < trade_rate <= 1.0:
            raise ConfigError(f"--trade-rate: {trade_rate} is out of range (over 0, up to 1)")
        if max_age < 0:
            raise ConfigError(f"--max-age: {max_age} is out of range (0 to inf)")
        if not max_revision >= 0.0:
            raise ConfigError(f"--max-revision: {max_revision} is out of range (0 to inf)")
        if not max_move > 0.0:
            raise ConfigError(f"--max-move: {max_move} is out of range (over 0, up to inf)")
        least = money(min_order, "--min-order")
        day = _day(as_of)
        cut = as_of is not None
        return cls(smallest, least, trade_rate, day, cut, max_age, max_revision, max_move)


def _day(as_of: datetime.date | str | None) -> datetime.date:
    if as_of is None:
        return datetime.date.today()
    if isinstance(as_of, datetime.datetime):
        return as_of.date()
    try:
        return datetime.date.fromisoformat(str(as_of))
    except ValueError:
        raise ConfigError(f"--as-of: {as_of!r} is no day; write it as 2024-01-31") from None
