"""Value after trading with costs that are no multiple of what is traded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["solve"]

Float = NDArray[np.float64]
Cost = Callable[[Float, NDArray[np.int64]], Float]

# Of f; the root is off by as much over the slope of f, which is 0.1 at least.
CLOSE = 2e-15
MOST = 200


def solve(cost: Cost, count: int) -> tuple[Float, NDArray[np.bool_]]:
    """The root μ of f(μ) = μ − 1 + C(μ) in (0, 1], for `count` portfolios.

    f rises, and f(1) ≥ 0. The root is kept between a point below it and one above it, by the
    Illinois form of regula falsi, with halving where that is slow. Each portfolio stops by
    itself: it never sees what others need.

    Parameters
    ----------
    cost : C: μ of some portfolios [m], and which these are [m] → their costs [m]

    Returns
    -------
    mu : shape [count]; 1 where there is no root, because C(0) ≥ 1
    found : shape [count]
    """
    every = np.arange(count)
    high, mu = np.ones(count), np.ones(count)
    f_high = cost(high, every)
    open_ = np.flatnonzero(f_high > CLOSE)
    found = np.ones(count, dtype=bool)
    if not len(open_):
        return mu, found
    low = np.zeros(count)
    f_low = cost(low, every) - 1.0
    found[open_] = f_low[open_] < 0.0
    open_ = open_[found[open_]]
    side = np.zeros(count, dtype=np.int64)
    for step in range(MOST):
        if not len(open_):
            break
        a, b, fa, fb = low[open_], high[open_], f_low[open_], f_high[open_]
        point = (a * fb - b * fa) / (fb - fa)
        if step == 0:  # costs hardly change with μ: nearly the root
            point = 1.0 - fb
        halve = ~((point > a) & (point < b)) | (step > 9 and step % 3 == 0)
        point = np.where(halve, 0.5 * (a + b), point)
        f = point - 1.0 + cost(point, open_)
        mu[open_] = point
        _narrow(open_, point, f, low, high, f_low, f_high, side)
        width = high[open_] - low[open_]
        open_ = open_[(np.abs(f) > CLOSE) & (width > 4e-16)]
    return mu, found


def _narrow(
    which: NDArray[np.int64],
    point: Float,
    f: Float,
    low: Float,
    high: Float,
    f_low: Float,
    f_high: Float,
    side: NDArray[np.int64],
) -> None:
    """Put the points into the brackets; an end that stays twice counts for half (Illinois)."""
    below = f < 0.0
    under, over = which[below], which[~below]
    f_high[under] *= np.where(side[under] == -1, 0.5, 1.0)
    f_low[over] *= np.where(side[over] == 1, 0.5, 1.0)
    low[under], f_low[under], side[under] = point[below], f[below], -1
    high[over], f_high[over], side[over] = point[~below], f[~below], 1
