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

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import ANCHORS, MarketSettings
from finflow_sb3.errors import DataError
from finflow_sb3.market.cache import cache_folder, content_key
from finflow_sb3.market.features import WARMUP
from finflow_sb3.market.fitting import cached_fits, clean_weights
from finflow_sb3.market.listing import tradable_days, tradable_part
from finflow_sb3.market.prices import PriceTable

__all__ = ["Anchors", "fit_anchors"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

# Part of every cache key: raise it when the weights that a window gives change.
VERSION = 2
MOMENTUM_LOOKBACK = 252
MOMENTUM_SKIP = 21
VOLATILITY_LOOKBACK = 63
TRADING_DAYS = 252
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


def fit_window(close: Float, target_volatility: float, cap: float, window: int) -> Float:
    """The five anchors from one window of closes.

    Parameters
    ----------
    close : shape [W+1, n], at least the year that momentum looks back
    target_volatility : annual, of the defensive anchor
    cap : largest weight of the growth anchor
    window : trailing returns that all but momentum see

    Returns
    -------
    shape [K, n+2]: weights with cash in column n, and in the last column 1 where growth
    fell back on minimum variance (in every row, for the cache's sake).
    """
    from skfolio.optimization import HierarchicalRiskParity, MaximumDiversification, MeanRisk

    returns = (close[1:] / close[:-1] - 1.0)[-window:]
    n = close.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minimum_variance = clean_weights(MeanRisk().fit(returns).weights_)
        diversified = clean_weights(MaximumDiversification().fit(returns).weights_)
        hrp = clean_weights(HierarchicalRiskParity().fit(returns).weights_)
        growth = _maximum_sharpe(returns, cap)
    fell_back = growth is None
    rows = np.zeros((len(ANCHORS), n + 2))
    rows[0, :n] = minimum_variance
    rows[1, :n] = diversified
    rows[2, :n] = top_quarter(close)
    rows[3, : n + 1] = scaled_to_volatility(hrp, returns, target_volatility)
    rows[4, :n] = minimum_variance if growth is None else growth
    rows[:, -1] = fell_back
    return rows


def _maximum_sharpe(returns: Float, cap: float) -> Float | None:
    """Long-only maximum Sharpe with shrunk moments; None where no mean within the cap is > 0."""
    from skfolio.moments import LedoitWolf
    from skfolio.optimization import MeanRisk, ObjectiveFunction
    from skfolio.prior import EmpiricalPrior

    prior = EmpiricalPrior(mu_estimator=_shrinkage(), covariance_estimator=LedoitWolf())
    prior.fit(returns)
    cap = max(cap, 1.0 / returns.shape[1])
    if _largest_mean(prior.return_distribution_.mu, cap) <= 0:
        return None
    model = MeanRisk(
        objective_function=ObjectiveFunction.MAXIMIZE_RATIO,
        prior_estimator=prior,
        max_weights=cap,
    )
    return clean_weights(model.fit(returns).weights_)


def _shrinkage() -> Any:
    """James & Stein's shrinkage of means to their average, its share kept within [0, 1].

    skfolio's own share can pass 1, which turns the order of the assets round (on us20 in one
    refit of ten), or be negative, which drives the means apart.
    """
    from skfolio.moments import ShrunkMu

    class PositivePart(ShrunkMu):  # type: ignore[misc]
        def fit(self, X: Float, y: Any = None, **parameters: Any) -> PositivePart:
            share = super().fit(X, y, **parameters).beta_
            self.beta_ = float(np.clip(share, 0.0, 1.0))
            self.alpha_ = 1.0 - self.beta_
            self.mu_ = self.alpha_ * np.mean(X, axis=0) + self.beta_ * self.mu_target_
            return self

    return PositivePart()


def _largest_mean(mu: Float, cap: float) -> float:
    """The largest expected return that long-only weights of at most `cap` can have.

    Where it is not positive the ratio has no maximum, and the solver fails.
    """
    left = 1.0 - cap * np.arange(len(mu))
    return float(np.sort(mu)[::-1] @ np.clip(left, 0.0, cap))


def top_quarter(close: Float) -> Float:
    """Equal weights on the ⌈n/4⌉ assets with the highest 12-1 month return (ties: the first)."""
    momentum = close[-1 - MOMENTUM_SKIP] / close[-1 - MOMENTUM_LOOKBACK] - 1.0
    count = -(-len(momentum) // 4)
    chosen = np.argsort(-momentum, kind="stable")[:count]
    weights = np.zeros(len(momentum))
    weights[chosen] = 1.0 / count
    return weights


def scaled_to_volatility(weights: Float, returns: Float, target: float) -> Float:
    """`weights` scaled down to `target` annual volatility over the last quarter, rest in cash."""
    daily = float(np.std(returns[-VOLATILITY_LOOKBACK:] @ weights, ddof=1))
    scale = min(1.0, target / max(daily * np.sqrt(TRADING_DAYS), 1e-12))
    return np.append(weights * scale, 1.0 - scale)
