"""The latest prices of a run's universe: of these assets, fresh, with the same past, long enough.

Nothing before the longest windows is needed, as the scaler travels with the run. What is kept of
the prices ends on the same grid of refit days that the run was trained on, so that a decision
does not depend on where the file begins.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np

from finflow_sb3.config import MarketSettings
from finflow_sb3.errors import ArtefactError, DataError
from finflow_sb3.market.anchor_fits import MOMENTUM_LOOKBACK
from finflow_sb3.market.features import YEAR
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.rounding import rounding_errors

__all__ = [
    "age_of",
    "history_rows",
    "last_move",
    "of_universe",
    "recent",
    "require_plain_moves",
    "require_same_past",
]


def of_universe(prices: PriceTable, assets: tuple[str, ...], run: Path) -> PriceTable:
    """The prices with the run's assets in the run's order, whatever their order was.

    Raises
    ------
    ArtefactError
        Naming the assets that are missing, and those that the run does not know.
    """
    missing = [asset for asset in assets if asset not in prices.assets]
    foreign = [asset for asset in prices.assets if asset not in assets]
    if missing or foreign:
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"adds {', '.join(foreign[:5])}"] if foreign else []
        raise ArtefactError(
            f"{prices.source}: {' and '.join(parts)}, against the {len(assets)} assets that {run} "
            "was trained on; give exactly these, in any order"
        )
    return prices.select(assets)


def age_of(prices: PriceTable, today: datetime.date, max_age: int) -> int:
    """Business days from the last row on which a price moved to `today`.

    A row in which nothing moves is a holiday, or a copy of the day before under a newer date.

    Raises
    ------
    DataError
        If they are more than `max_age`, or the last row lies after `today`.
    """
    last = prices.dates[-1]
    if last > np.datetime64(today):
        raise DataError(
            f"{prices.source}: its last day, {last}, lies after today, {today}; correct the dates, "
            "or say with --as-of which day is meant"
        )
    moved = last_move(prices)
    age = int(np.busday_count(moved, np.datetime64(today)))
    if age > max_age:
        day = f"its last day, {last}," if moved == last else f"its last day with a move, {moved},"
        raise DataError(
            f"{prices.source}: {day} is {age:,} business days before {today}, and --max-age is "
            f"{max_age}; give newer prices, or say with --as-of which day is meant"
        )
    return age


def last_move(prices: PriceTable) -> np.datetime64:
    """The last day on which any price was another than the day before; else the first day."""
    moves = np.flatnonzero((prices.returns() != 0.0).any(axis=1))
    return np.datetime64(prices.dates[moves[-1] if len(moves) else 0])


def require_plain_moves(prices: PriceTable, since: np.datetime64, max_move: float) -> None:
    """Refuse days after `since`, which nothing is compared with, that look like wrong prices.

    Raises
    ------
    DataError
        Naming the largest daily return beyond `max_move`.
    """
    moves = np.where((prices.dates > since)[:, None], prices.returns(), 0.0)
    row, column = np.unravel_index(np.abs(moves).argmax(), moves.shape)
    if abs(moves[row, column]) > max_move:
        raise DataError(
            f"{prices.source}: {prices.assets[column]} returned {moves[row, column]:.1%} on "
            f"{prices.dates[row]}, beyond --max-move {max_move:.0%}; correct an unadjusted split "
            "or a wrong price, or let it pass with --max-move"
        )


def require_same_past(
    prices: PriceTable, past: PriceTable, run: Path, max_revision: float
) -> int | None:
    """Compare the prices with those that a run was trained on, where both have days.

    Returns are compared, not closes: a dividend rescales all closes that were adjusted before.

    Parameters
    ----------
    past : the run's prices, of the same assets
    max_revision : largest difference between two daily returns that is let pass, beside what
        visible rounding of the closes explains

    Returns
    -------
    The row of `past` that the first row of `prices` is, negative where they begin earlier; None
    where there is no common day

    Raises
    ------
    ArtefactError
        Naming the day and asset where they differ.
    """
    first, last = max(prices.dates[0], past.dates[0]), min(prices.dates[-1], past.dates[-1])
    if first > last:
        return None
    mine, theirs = _within(prices, first, last), _within(past, first, last)
    odd = np.setxor1d(mine.dates, theirs.dates)
    if len(odd):
        what = "has no row for" if odd[0] in theirs.dates else "has a row for"
        raise ArtefactError(
            f"{prices.source}: {what} {odd[0]}, other than the prices that {run} was trained on; "
            "give the same trading days"
        )
    if bool(mine.cash_rate.any()) != bool(theirs.cash_rate.any()):
        with_rate, without = (prices.source, run) if mine.cash_rate.any() else (run, prices.source)
        raise ArtefactError(
            f"{prices.source}: {with_rate} has a cash rate and {without} has none; give prices "
            "with the same columns"
        )
    _compare(mine, theirs, run, max_revision)
    offset = np.searchsorted(past.dates, first) - np.searchsorted(prices.dates, first)
    return int(offset)


def _within(prices: PriceTable, first: np.datetime64, last: np.datetime64) -> PriceTable:
    start = int(np.searchsorted(prices.dates, first))
    return prices.rows(start, int(np.searchsorted(prices.dates, last, side="right")))


def _compare(mine: PriceTable, theirs: PriceTable, run: Path, max_revision: float) -> None:
    unequal = mine.earning()[1:] != theirs.earning()[1:]
    if unequal.any():
        row, column = np.argwhere(unequal)[0]
        raise ArtefactError(
            f"{mine.source}: {mine.assets[column]} has a return on {mine.dates[row + 1]} here or "
            f"in the prices that {run} was trained on, and not in both; give the same history"
        )
    here, there = mine.returns()[1:], theirs.returns()[1:]
    room = max_revision + (rounding_errors(mine) + rounding_errors(theirs))[1:]
    beyond = np.abs(here - there) - room
    if beyond.size == 0 or beyond.max() <= 0.0:
        return
    row, column = np.unravel_index(beyond.argmax(), beyond.shape)
    days = int((beyond > 0.0).any(axis=1).sum())
    raise ArtefactError(
        f"{mine.source}: {mine.assets[column]} returned {here[row, column]:.4%} on "
        f"{mine.dates[row + 1]}, and {there[row, column]:.4%} in the prices that {run} was trained "
        f"on ({days:,} of {len(beyond):,} days differ); give the same past, or let revisions up to "
        "a limit pass with --max-revision"
    )


def history_rows(settings: MarketSettings) -> int:
    """Rows with which a decision is the same as with any longer history.

    The anchors' record looks back a year, the anchor of its first day was refitted up to
    `anchor_refit` days before that, on a window of its own; and a grid has to be hit.
    """
    return _window(settings) + YEAR + 2 * settings.anchor_refit


def _window(settings: MarketSettings) -> int:
    return max(settings.anchor_window, settings.anchor_min_window, MOMENTUM_LOOKBACK)


def recent(
    prices: PriceTable, offset: int | None, settings: MarketSettings, run: Path
) -> PriceTable:
    """The rows that a decision on the last day needs, from a day of the run's grid on.

    Parameters
    ----------
    offset : of `require_same_past`

    Raises
    ------
    DataError
        If they are too few. Prices that go back to the run's own first day never are.
    """
    grid, phase = settings.anchor_refit, offset or 0
    start = len(prices) - _window(settings) - YEAR - grid
    start -= (start + phase) % grid
    if start < max(0, -phase):
        if offset is None or offset > 0:
            needed = history_rows(settings)
            raise DataError(
                f"{prices.source}: has {len(prices):,} days up to {prices.dates[-1]}, and the "
                f"longest windows of {run} need {needed:,}; give a longer history"
            )
        start = -phase
    return prices.rows(start, len(prices))
