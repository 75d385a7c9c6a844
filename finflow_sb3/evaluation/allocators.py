"""Textbook allocators from skfolio, refitted through a period on trailing windows.

Weights of a refit at row t depend on closes and cash rates at rows ≤ t alone, so a longer history
changes none of them.

=======================  =================================================================
inverse_volatility       ∝ 1/σ
minimum_variance         least variance, long only (Markowitz 1952)
maximum_sharpe           largest sample Sharpe ratio above cash (Sharpe 1966)
risk_budgeting           equal contributions to the variance (Maillard et al. 2010)
maximum_diversification  Choueifaty & Coignard 2008
hrp                      hierarchical risk parity (López de Prado 2016)
herc                     hierarchical equal risk contribution (Raffinot 2018)
minimum_cvar             least mean loss of the worst 5 % (Rockafellar & Uryasev 2000)
nested_clusters          minimum variance within and across clusters (López de Prado 2019)
=======================  =================================================================

Estimates are the sample's, without the shrinkage and caps of the growth anchor: they are what a
reader knows under these names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config_evaluation import ALLOCATORS
from finflow_sb3.market.cache import cache_folder, content_key
from finflow_sb3.market.fitting import cached_fits, clean_weights
from finflow_sb3.market.prices import PriceTable

__all__ = ["ALLOCATORS", "Fitted", "fit_allocators", "fit_window", "listed_on", "usable_assets"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

FALLBACKS = ("minimum variance", "equal weights")
"""What an allocator without a solution holds, in this order."""
# Part of every cache key: raise it when the weights that a window gives change.
VERSION = 1
SMALLEST_VARIANCE = 1e-14


@dataclass(frozen=True)
class Fitted:
    """An allocator's targets through a period.

    Attributes
    ----------
    weights : shape [R, n+1], one row a refit, cash last
    fallbacks : how many refits hold each of `FALLBACKS`, for want of a solution
    """

    weights: Float
    fallbacks: tuple[int, ...]


def fit_allocators(
    prices: PriceTable,
    names: Sequence[str],
    rows: NDArray[np.int64],
    lookback: int,
    usable: Bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Fitted]:
    """Fit allocators at the closes of `rows`, through the disk cache.

    The cache is keyed by each window's content, so that a longer history, another split or one
    more allocator computes what is new alone.

    Parameters
    ----------
    names : of `ALLOCATORS`
    rows : shape [R], rows of the refits
    lookback : trailing returns that a refit sees; as many as there are near the start of the data
    usable : shape [R, n], assets that may be held after each refit; `usable_assets` of its
        window if not given
    on_progress : called with (fits done, fits to do)
    """
    if usable is None:
        usable = np.stack([usable_assets(prices, int(row), lookback) for row in rows])
    jobs = [(name, i) for name in names for i in range(len(rows))]
    windows = [_window(prices, int(row), lookback) for row in rows]
    marks = [content_key(*window, mask) for window, mask in zip(windows, usable, strict=True)]
    path = cache_folder() / "allocators" / f"{content_key(VERSION, prices.assets)}.npz"

    def task(number: int) -> Any:
        from joblib import delayed

        name, i = jobs[number]
        return delayed(fit_window)(name, *windows[i], usable[i])

    fits = cached_fits(path, [f"{name}:{marks[i]}" for name, i in jobs], task, on_progress)
    by_name = np.stack(fits).reshape(len(names), len(rows), -1) if jobs else np.zeros((0, 0, 0))
    return {name: _fitted(found) for name, found in zip(names, by_name, strict=True)}


def usable_assets(prices: PriceTable, row: int, lookback: int) -> Bool:
    """Assets that an allocator can weigh at `row`, shape [n].

    Those listed on every day of the window, whose returns vary: a price that stands still has no
    risk to be weighed by.
    """
    close, _ = _window(prices, row, lookback)
    whole = listed_on(prices, np.arange(row - len(close) + 1, row + 1)).all(axis=0)
    moved = np.var(np.diff(np.log(close), axis=0), axis=0) >= SMALLEST_VARIANCE
    return np.asarray(whole & moved)


def listed_on(prices: PriceTable, rows: NDArray[np.int64]) -> Bool:
    """Where an asset has a price, shape [len(rows), n]."""
    listed: Bool | None = prices.listed
    if listed is None:
        return np.ones((len(rows), prices.n_assets), dtype=np.bool_)
    return np.asarray(listed[rows])


def fit_window(name: str, close: Float, cash_rate: Float, usable: Bool) -> Float:
    """One allocator's weights from one window.

    Parameters
    ----------
    name : of `ALLOCATORS`
    close : shape [W+1, n]
    cash_rate : shape [W], daily, of the days on which the window's returns were earned
    usable : shape [n]; others get nothing, and where there is none all is cash

    Returns
    -------
    shape [n+2]: weights with cash in column n; in the last column 0, or k where the k-th of
    `FALLBACKS` is held because skfolio found no solution (no mean above cash, a cluster too
    small, a solver that failed)
    """
    out = np.zeros(len(usable) + 2)
    if usable.sum() < 2:
        out[:-2] = usable
        out[-2] = 1.0 - out[:-2].sum()
        return out
    returns = close[1:, usable] / close[:-1, usable] - 1.0
    if name == "maximum_sharpe":
        returns = returns - cash_rate[:, None]
    model = _model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(returns)
    out[np.flatnonzero(usable)] = clean_weights(model.weights_)
    out[-1] = _place(model)
    return out


def _model(name: str) -> Any:
    """A fresh skfolio estimator that falls back along `FALLBACKS`."""
    from skfolio import RiskMeasure
    from skfolio import optimization as o

    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "inverse_volatility": (o.InverseVolatility, {}),
        "minimum_variance": (o.MeanRisk, {}),
        "maximum_sharpe": (
            o.MeanRisk,
            {"objective_function": o.ObjectiveFunction.MAXIMIZE_RATIO},
        ),
        "risk_budgeting": (o.RiskBudgeting, {}),
        "maximum_diversification": (o.MaximumDiversification, {}),
        "hrp": (o.HierarchicalRiskParity, {}),
        "herc": (o.HierarchicalEqualRiskContribution, {}),
        "minimum_cvar": (o.MeanRisk, {"risk_measure": RiskMeasure.CVAR}),
        # As in the paper: clusters are weighed on the window itself. skfolio's default refits
        # the inner weights on folds of it, at five times the time.
        "nested_clusters": (o.NestedClustersOptimization, {"cv": "ignore"}),
    }
    kind, arguments = kinds[name]
    return kind(**arguments, fallback=[o.MeanRisk(), o.EqualWeighted()])


def _place(model: Any) -> int:
    """0 where the model itself found weights, k where its k-th fallback did."""
    from skfolio.optimization import EqualWeighted

    if model.fallback_ is None:
        return 0
    return 2 if isinstance(model.fallback_, EqualWeighted) else 1


def _window(prices: PriceTable, row: int, lookback: int) -> tuple[Float, Float]:
    """Closes [W+1, n] and cash rates [W] that a refit at the close of `row` sees."""
    first = max(0, row - lookback)
    return prices.close[first : row + 1], prices.cash_rate[first + 1 : row + 1]


def _fitted(found: Float) -> Fitted:
    places = found[:, -1]
    counts = tuple(int(np.sum(places == k + 1)) for k in range(len(FALLBACKS)))
    return Fitted(found[:, :-1], counts)
