"""Anchors: the classical allocation that stands for each expert's view.

An anchor is refitted on a fixed grid of days from the trailing window alone, and held (as target
weights) in between. Row t uses prices at or before t only.

Where assets come and go, a refit takes those that are tradable and have a window of their own;
the window reaches back to the youngest one's first price. Others have weight zero. What leaves
between two refits is shared out among the rest of its anchor.

====================  ============================================================
expert                anchor
====================  ============================================================
volatility            minimum variance
correlation           maximum diversification (Choueifaty & Coignard 2008)
momentum              top quarter by 12-1 month return, equal weights
defensive             HRP (López de Prado 2016) scaled to a target volatility, rest cash
growth                maximum Sharpe with shrinkage of mean and covariance, and a cap
====================  ============================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import ANCHORS, MarketSettings
from finflow_sb3.errors import DataError
from finflow_sb3.market.anchor_fits import MOMENTUM_LOOKBACK, VERSION, fit_window
from finflow_sb3.market.cache import cache_folder, content_key
from finflow_sb3.market.features import WARMUP
from finflow_sb3.market.fitting import cached_fits
from finflow_sb3.market.listing import tradable_days, tradable_part
from finflow_sb3.market.prices import PriceTable

__all__ = ["Anchors", "fit_anchors"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

SMALLEST_VARIANCE = 1e-14


@dataclass(frozen=True)
class Anchors:
    """Target weights of every anchor on every day.

    Attributes
    ----------
    names : K names
    refits : shape [R], rows at whose close the anchors were fitted, or an asset left them
    weights : shape [R, K, n+1], each summing to 1, cash last
    index : shape [T], which refit holds on a row; -1 before the first
    fallbacks : shape [R], growth refits where no weights within the cap have a positive
        expected return, which hold minimum variance instead
    """

    names: tuple[str, ...]
    refits: NDArray[np.int64]
    weights: Float
    index: NDArray[np.int64]
    fallbacks: NDArray[np.bool_]

    @property
    def first_row(self) -> int:
        """The first row with weights."""
        return int(self.refits[0])

    def at(self, rows: NDArray[np.int64] | int) -> Float:
        """Weights on these rows, shape [..., K, n+1]."""
        return np.asarray(self.weights[self.index[rows]])


def refit_rows(n_rows: int, settings: MarketSettings) -> NDArray[np.int64]:
    """Rows of the refits. The grid starts at the first day, so that more history moves none."""
    first = max(settings.anchor_min_window, MOMENTUM_LOOKBACK)
    if n_rows <= first:
        raise DataError(
            f"{n_rows} rows of prices are too few: the longest window needs {first + 1}; "
            "give a longer history"
        )
    return np.arange(first, n_rows, settings.anchor_refit)


def fit_anchors(
    prices: PriceTable,
    settings: MarketSettings,
    on_progress: Callable[[int, int], None] | None = None,
) -> Anchors:
    """Fit the five anchors on every refit day, through the disk cache.

    The cache is keyed by each refit's own window, so that a longer history of the same
    universe computes its new days alone.

    Parameters
    ----------
    on_progress : called with (refits done, refits to do)

    Raises
    ------
    DataError
        If there are fewer than two assets (on any refit day), too few rows for the longest
        window, or an asset whose price stands still for a whole window.
    """
    if prices.n_assets < 2:
        raise DataError(
            f"{prices.source}: one asset is no universe to allocate in; give two or more"
        )
    rows = refit_rows(len(prices), settings)
    tradable = tradable_days(prices.listed, WARMUP)
    windows = [_window(prices, tradable, int(row), settings) for row in rows]
    keys = [window.key for window in windows]
    path = cache_folder() / "anchors" / f"{content_key(prices.assets, _recipe(settings))}.npz"
    fits = cached_fits(path, keys, lambda i: _task(prices, windows[i], settings), on_progress)
    weights = np.stack([fit[:, :-1] for fit in fits])
    fallbacks = np.array([bool(fit[0, -1]) for fit in fits])
    if tradable is not None:
        rows, weights, fallbacks = _with_leavers(rows, weights, fallbacks, tradable)
    index = np.searchsorted(rows, np.arange(len(prices)), side="right") - 1
    return Anchors(ANCHORS, rows, weights, index, fallbacks)


def _with_leavers(
    rows: NDArray[np.int64], weights: Float, fallbacks: Bool, tradable: Bool
) -> tuple[NDArray[np.int64], Float, Bool]:
    """Refits, and the days between them on which an asset is tradable no more."""
    left = np.flatnonzero((tradable[:-1] & ~tradable[1:]).any(axis=1)) + 1
    all_rows = np.union1d(rows, left[left > rows[0]])
    refit = np.searchsorted(rows, all_rows, side="right") - 1
    return all_rows, tradable_part(weights[refit], tradable[all_rows][:, None]), fallbacks[refit]


def _recipe(settings: MarketSettings) -> list[Any]:
    return [
        VERSION,
        settings.anchor_window,
        settings.anchor_target_volatility,
        settings.anchor_cap,
        list(ANCHORS),
    ]


@dataclass(frozen=True)
class _Window:
    """What one refit sees.

    Attributes
    ----------
    row : of the refit
    members : shape [n], the assets that it takes
    close : shape [W+1, m], the members'
    """

    row: int
    members: Bool
    close: Float

    @property
    def key(self) -> str:
        """Of the content alone where all assets take part."""
        return content_key(self.close, *(() if self.members.all() else (self.members,)))

    def spread(self, fitted: Float) -> Float:
        """The members' fit [K, m+2] in the columns of all assets [K, n+2]."""
        out = np.zeros((len(fitted), len(self.members) + 2))
        out[:, np.append(self.members, [True, True])] = fitted
        return out


def _window(
    prices: PriceTable, tradable: Bool | None, row: int, settings: MarketSettings
) -> _Window:
    # Momentum looks back a year, however short the window of the other four.
    length = max(settings.anchor_window, MOMENTUM_LOOKBACK)
    start, members = max(0, row - length), np.ones(prices.n_assets, dtype=np.bool_)
    if prices.listed is not None and tradable is not None:
        first = prices.listed.argmax(axis=0)
        members = tradable[row] & (row - first >= max(settings.anchor_min_window, WARMUP))
        _require_two(prices, members, row, settings)
        start = max(start, int(first[members].max()))
    close = prices.close[start : row + 1]
    return _Window(row, members, close if members.all() else close[:, members])


def _require_two(prices: PriceTable, members: Bool, row: int, settings: MarketSettings) -> None:
    if members.sum() < 2:
        raise DataError(
            f"{prices.source}: on {prices.dates[row]} the anchors have {int(members.sum())} of "
            f"the {prices.n_assets} assets to choose from (listed for "
            f"{max(settings.anchor_min_window, WARMUP)} days and going on), and need 2; cut the "
            "dates, or add assets"
        )


def _check_moving(prices: PriceTable, window: _Window, settings: MarketSettings) -> None:
    """Refuse a window in which an asset has no variance: no anchor can weigh it."""
    logs = np.log(window.close)
    moved = np.var(np.diff(logs, axis=0)[-settings.anchor_window :], axis=0)
    still = np.flatnonzero(window.members)[moved < SMALLEST_VARIANCE]
    if len(still):
        raise DataError(
            f"{prices.source}: the price of {prices.assets[still[0]]!r} grew evenly in the "
            f"{len(window.close) - 1} days before {prices.dates[window.row]}; leave the asset out "
            "(cash is there without it)"
        )


def _task(prices: PriceTable, window: _Window, settings: MarketSettings) -> Any:
    """The fit of one refit's window, to be done in this process or in another."""
    from joblib import delayed

    _check_moving(prices, window, settings)
    return delayed(_fit_members)(
        window,
        settings.anchor_target_volatility,
        settings.anchor_cap,
        settings.anchor_window,
    )


def _fit_members(window: _Window, target_volatility: float, cap: float, length: int) -> Float:
    return window.spread(fit_window(window.close, target_volatility, cap, length))
