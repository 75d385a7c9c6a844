"""Fills short gaps forward, and refuses what filling would hide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.market.forms import Panel
from finflow_sb3.market.listing import listed_days

__all__ = ["fill_gaps", "require_prices"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


def fill_gaps(panel: Panel, max_gap: int, partial: bool = False) -> tuple[Float, Int, Bool]:
    """Closes [T, n] with short gaps forward-filled, how many were filled [n], and where each
    asset is listed [T, n]: from its first to its last price. Outside there is no gap.

    A gap takes the last close before it, never one from after it.

    Parameters
    ----------
    partial : let assets start or end inside the table, or have no price in it at all

    Raises
    ------
    DataError
        If an asset has a gap longer than `max_gap` rows, or, without `partial`, no price at all
        or only from or up to a day inside the table.
    """
    close = panel.values["close"]
    present = ~np.isnan(close)
    if not partial:
        require_prices(panel)
        _check_span(panel, present)
    listed = listed_days(present)
    rows = np.arange(len(close))[:, None]
    last = np.maximum.accumulate(np.where(present, rows, 0), axis=0)
    too_long = listed & (rows - last > max_gap)
    if too_long.any():
        j = int(too_long.any(axis=0).argmax())
        start = int(too_long[:, j].argmax()) - max_gap
        length = int(present[start:, j].argmax())
        raise DataError(
            f"{panel.name}: asset {panel.assets[j]!r} has no price on {length} rows in a row, "
            f"{panel.dates[start]} to {panel.dates[start + length - 1]} (max_gap is {max_gap}); "
            "fill them at the source, drop the asset, or raise max_gap"
        )
    filled = (listed & ~present).sum(axis=0).astype(np.int64)
    return np.take_along_axis(close, last, axis=0), filled, listed


def require_prices(panel: Panel) -> None:
    """Refuse an asset without any price."""
    missing = np.flatnonzero(np.isnan(panel.values["close"]).all(axis=0))
    if len(missing):
        asset = panel.assets[missing[0]]
        raise DataError(f"{panel.name}: asset {asset!r} has no prices at all; drop it")


def _check_span(panel: Panel, present: Bool) -> None:
    """Every asset must have its first and last close on the table's first and last day."""
    first = present.argmax(axis=0)
    last = len(present) - 1 - present[::-1].argmax(axis=0)
    partial = (first > 0) | (last < len(present) - 1)
    if not partial.any():
        return
    j = int(partial.argmax())
    others = int(partial.sum()) - 1
    dates, start, stop = panel.dates, int(first.max()), int(last.min())
    remedy = (
        f"cut the dates to {dates[start]} to {dates[stop]}, which all assets have, drop it, "
        if start < stop
        else "drop it (no dates are common to all assets), "
    )
    raise DataError(
        f"{panel.name}: asset {panel.assets[j]!r} {'starts' if first[j] else 'ends'} inside the "
        f"table: it has prices from {dates[first[j]]} to {dates[last[j]]}, the table runs from "
        f"{dates[0]} to {dates[-1]}{f' ({others} more assets too)' if others else ''}; {remedy}"
        "or let assets come and go (market.partial: true, --partial)"
    )
