"""What a trade costs and what a day earns, for a batch of portfolios.

All functions are pure and work row by row: row b of a result depends on row b of the
arguments alone, with the same operations in the same order, so that a batch of one and a
batch of a thousand give the same bits.

Weights have shape [B, n+1], cash last; they are shares of the portfolio's value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.rows import row_sums

__all__ = ["Trade", "grow", "move_towards", "solve_mu", "trade"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Trade:
    """A batch of trades.

    Attributes
    ----------
    weights : shape [B, n+1], held after the trade
    mu : shape [B], value after the trade over value before it
    turnover : shape [B], Σ over risky assets of |μ·w_i − w⁻_i|, in units of the value before
    """

    weights: Float
    mu: Float
    turnover: Float


def solve_mu(held: Float, target: Float, fee: Float | float) -> Float:
    """Value after trading over value before, with proportional costs.

    μ = 1 − Σ_i c_i·|μ·w_i − w⁻_i| over risky assets. f(μ) = μ − 1 + Σ c_i·|μ·w_i − w⁻_i| is
    convex, piecewise linear and increasing, and f(1) ≥ 0: Newton's method from 1 falls on
    the root from the right and ends on it after as many steps as there are kinks at most.

    Parameters
    ----------
    held : shape [B, n+1], weights before the trade (drifted), cash last
    target : shape [B, n+1], weights after it
    fee : proportional cost c of traded value, one number or shape [n]

    Returns
    -------
    shape [B]
    """
    return _mu_and_sales(held, target, np.asarray(fee, dtype=np.float64))[0]


def trade(held: Float, target: Float, fee: Float | float) -> Trade:
    """Trade from `held` to `target`, paying the proportional `fee` out of the portfolio."""
    mu, sales = _mu_and_sales(held, target, np.asarray(fee, dtype=np.float64))
    return Trade(target, mu, row_sums(np.abs(sales, out=sales)[:, :-1]))


def _mu_and_sales(held: Float, target: Float, fee: Float) -> tuple[Float, Float]:
    """μ [B], and w⁻ − μ·w [B, n+1].

    With what is bought known, |μ·w − w⁻| has no corners, and μ = (1 − S(w⁻))/(1 − S(w)), where
    S(x) = Σ c_i·x_i over what is sold, less the same over what is bought. That is Newton's step.
    As μ falls from 1, purchases turn into sales (what is not traded at all is sold, to pay for
    the rest) and never back: the loop ends when none turns. Few do, so S is corrected for them.
    """
    sales = held - target
    bought = sales < 0.0
    bought[:, -1] = False
    sign = np.copysign(1.0, sales)
    of_held, of_target = _priced(sign, held, fee), _priced(sign, target, fee)
    while True:
        mu = np.minimum((1.0 - of_held) / (1.0 - of_target), 1.0)
        np.multiply(target, mu[:, None], out=sales)
        np.subtract(held, sales, out=sales)
        turned = np.flatnonzero(bought & (sales >= 0.0))
        if not len(turned):
            return mu, sales
        bought.flat[turned] = False
        row, column = np.divmod(turned, held.shape[1])
        cost = 2.0 * (fee[column] if fee.ndim else fee)
        # In the order of the columns for every row: a row's bits do not depend on the others.
        np.add.at(of_held, row, cost * held[row, column])
        np.add.at(of_target, row, cost * target[row, column])


def _priced(sign: Float, weights: Float, fee: Float) -> Float:
    """Σ c_i·s_i·x_i over risky assets, shape [B]."""
    if fee.ndim:
        return np.asarray(np.einsum("ij,ij,j->i", sign[:, :-1], weights[:, :-1], fee))
    return np.asarray(fee * np.einsum("ij,ij->i", sign[:, :-1], weights[:, :-1]))


def grow(weights: Float, returns: Float) -> tuple[Float, Float]:
    """One day's growth factor [B] and the drifted weights [B, n+1].

    Parameters
    ----------
    weights : shape [B, n+1], held after the trade
    returns : shape [B, n+1], simple returns of the day, cash last
    """
    grown = weights * (1.0 + returns)
    growth = row_sums(grown)
    grown /= growth[:, None]
    return growth, grown


def move_towards(held: Float, target: Float, rate: float) -> Float:
    """Trade `rate` of the way: w⁻ + η·(target − w⁻) (Gârleanu & Pedersen 2013)."""
    if rate == 1.0:
        return target
    moved = target - held
    moved *= rate
    moved += held
    return moved
