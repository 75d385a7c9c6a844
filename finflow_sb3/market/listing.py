"""Assets that start or end inside the data: when each has prices, and when it may be held.

Listed is an asset from its first to its last price. Tradable it is from the day on which it has
been listed for the features' warm-up, until the day before its last: at the close of the last
day it is sold, as nothing would price it afterwards. That a day is an asset's last one is known
on that day and not before; on the table's own last day nothing ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["even_weights", "hold_flat", "holes", "listed_days", "tradable_days", "tradable_part"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


def listed_days(present: Bool) -> Bool:
    """Rows from each column's first to its last True, shape [T, n]."""
    begun = np.logical_or.accumulate(present, axis=0)
    goes_on = np.logical_or.accumulate(present[::-1], axis=0)[::-1]
    return np.asarray(begun & goes_on)


def holes(listed: Bool) -> NDArray[np.int64]:
    """Columns that are listed on two stretches of rows, or more."""
    return np.flatnonzero((listed_days(listed) != listed).any(axis=0))


def hold_flat(close: Float, listed: Bool) -> Float:
    """Closes [T, n] with the first one before an asset is listed, and the last one after it.

    What `close` has there does not matter. An asset that is never listed has 1.
    """
    rows = np.arange(len(close))[:, None]
    first, last = listed.argmax(axis=0), len(close) - 1 - listed[::-1].argmax(axis=0)
    flat = np.take_along_axis(close, np.clip(rows, first, last), axis=0)
    return np.where(listed.any(axis=0), flat, 1.0)


def tradable_days(listed: Bool | None, warmup: int) -> Bool | None:
    """Where an asset may be held from one close to the next, shape [T, n].

    Parameters
    ----------
    listed : shape [T, n]; None where all assets are listed on all days, and so is the result
    warmup : rows that an asset must have been listed before
    """
    if listed is None:
        return None
    age = np.cumsum(listed, axis=0) - 1
    goes_on = np.ones_like(listed)
    goes_on[:-1] = listed[1:]
    return np.asarray(listed & (age >= warmup) & goes_on)


def tradable_part(weights: Float, tradable: Bool) -> Float:
    """Weights [..., n+1] without what is not tradable, scaled to one again; cash if none is left.

    Weights that have nothing to lose stay the same bits.
    """
    risky = np.where(tradable, weights[..., :-1], 0.0)
    lost = np.any(risky != weights[..., :-1], axis=-1, keepdims=True)
    kept = np.concatenate([risky, weights[..., -1:]], axis=-1)
    total = np.einsum("...j->...", kept)[..., None]
    cash = np.zeros(weights.shape[-1])
    cash[-1] = 1.0
    scaled = np.where(total > 0.0, kept / np.where(total > 0.0, total, 1.0), cash)
    return np.where(lost, scaled, weights)


def even_weights(tradable: Bool) -> Float:
    """The same of every tradable asset, shape [..., n+1]; cash where there is none."""
    count = tradable.sum(axis=-1, keepdims=True)
    risky = np.where(tradable, 1.0 / np.maximum(count, 1), 0.0)
    return np.concatenate([risky, (count == 0).astype(np.float64)], axis=-1)
