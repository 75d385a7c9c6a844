"""What each anchor holds: a function from a trailing window of closes to weights, by its name.

An anchor is changed by changing its function and raising `VERSION`. A new one has its function
here and its name in `config.ANCHORS`, and is the view of a new expert (`market.features`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import ANCHORS
from finflow_sb3.market.fitting import clean_weights

__all__ = ["FITS", "MOMENTUM_LOOKBACK", "VERSION", "Trailing", "anchor", "fit_window"]

Float = NDArray[np.float64]

# Part of every cache key: raise it when the weights that a window gives change.
VERSION = 2
MOMENTUM_LOOKBACK = 252
MOMENTUM_SKIP = 21
VOLATILITY_LOOKBACK = 63
TRADING_DAYS = 252


@dataclass(frozen=True)
class Trailing:
    """What an anchor may look at on a refit day.

    Attributes
    ----------
    close : shape [W+1, n], at least the year that momentum looks back
    returns : shape [V, n], the trailing returns that all but momentum see
    target_volatility : annual, of the defensive anchor
    cap : largest weight of the growth anchor
    """

    close: Float
    returns: Float
    target_volatility: float
    cap: float

    @cached_property
    def minimum_variance(self) -> Float:
        """Long-only weights of the smallest variance, shape [n]."""
        from skfolio.optimization import MeanRisk

        return clean_weights(MeanRisk().fit(self.returns).weights_)

    @cached_property
    def maximum_sharpe(self) -> Float | None:
        """Long-only maximum Sharpe with shrunk moments; None where no mean within the cap is
        positive.
        """
        from skfolio.moments import LedoitWolf
        from skfolio.optimization import MeanRisk, ObjectiveFunction
        from skfolio.prior import EmpiricalPrior

        prior = EmpiricalPrior(mu_estimator=_shrinkage(), covariance_estimator=LedoitWolf())
        prior.fit(self.returns)
        cap = max(self.cap, 1.0 / self.returns.shape[1])
        if _largest_mean(prior.return_distribution_.mu, cap) <= 0:
            return None
        model = MeanRisk(
            objective_function=ObjectiveFunction.MAXIMIZE_RATIO,
            prior_estimator=prior,
            max_weights=cap,
        )
        return clean_weights(model.fit(self.returns).weights_)


Fit = Callable[[Trailing], Float]
"""Weights of one anchor, shape [n], or [n+1] with cash last; they sum to 1."""

FITS: dict[str, Fit] = {}
"""The anchors' functions by the name that `config.ANCHORS` calls them by."""


def anchor(function: Fit) -> Fit:
    """Have an anchor under its function's name in `FITS`."""
    FITS[function.__name__] = function
    return function


def fit_window(close: Float, target_volatility: float, cap: float, window: int) -> Float:
    """Every anchor from one window of closes.

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
    seen = Trailing(close, (close[1:] / close[:-1] - 1.0)[-window:], target_volatility, cap)
    rows = np.zeros((len(ANCHORS), close.shape[1] + 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row, name in zip(rows, ANCHORS, strict=True):
            weights = FITS[name](seen)
            row[: len(weights)] = weights
        rows[:, -1] = seen.maximum_sharpe is None
    return rows


@anchor
def volatility(seen: Trailing) -> Float:
    """Minimum variance."""
    return seen.minimum_variance


@anchor
def correlation(seen: Trailing) -> Float:
    """Maximum diversification (Choueifaty & Coignard 2008)."""
    from skfolio.optimization import MaximumDiversification

    return clean_weights(MaximumDiversification().fit(seen.returns).weights_)


@anchor
def momentum(seen: Trailing) -> Float:
    """The top quarter by 12-1 month return, equal weights."""
    return top_quarter(seen.close)


@anchor
def defensive(seen: Trailing) -> Float:
    """HRP (López de Prado 2016) scaled to a target volatility, the rest in cash."""
    from skfolio.optimization import HierarchicalRiskParity

    hrp = clean_weights(HierarchicalRiskParity().fit(seen.returns).weights_)
    return scaled_to_volatility(hrp, seen.returns, seen.target_volatility)


@anchor
def growth(seen: Trailing) -> Float:
    """Maximum Sharpe with shrinkage and a cap, or minimum variance where that has no maximum."""
    found = seen.maximum_sharpe
    return seen.minimum_variance if found is None else found


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
