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

__all__ = ["Trade", "constrain", "grow", "move_towards", "solve_mu", "trade"]

Float = NDArray[np.float64]

MU_TOLERANCE = 1e-15
MAX_NEWTON_STEPS = 100


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
    before, after = held[:, :-1], target[:, :-1]
    fees = np.broadcast_to(np.asarray(fee, dtype=np.float64), before.shape[1:])
    mu = np.ones(len(held))
    done = np.zeros(len(held), dtype=bool)
    for _ in range(MAX_NEWTON_STEPS):
        gap = mu[:, None] * after - before
        value = mu - 1.0 + np.add.reduce(fees * np.abs(gap), axis=1)
        slope = 1.0 + np.add.reduce(fees * np.sign(gap) * after, axis=1)
        step = mu - value / slope
        # A row that has arrived stays, whatever the others need: its bits are its own.
        mu = np.where(done, mu, step)
        done = done | (np.abs(value / slope) <= MU_TOLERANCE)
        if done.all():
            break
    return mu


def trade(held: Float, target: Float, fee: Float | float) -> Trade:
    """Trade from `held` to `target`, paying the proportional `fee` out of the portfolio."""
    mu = solve_mu(held, target, fee)
    turnover = np.add.reduce(np.abs(mu[:, None] * target[:, :-1] - held[:, :-1]), axis=1)
    return Trade(target, mu, turnover)


def grow(weights: Float, returns: Float) -> tuple[Float, Float]:
    """One day's growth factor [B] and the drifted weights [B, n+1].

    Parameters
    ----------
    weights : shape [B, n+1], held after the trade
    returns : shape [B, n+1], simple returns of the day, cash last
    """
    grown = weights * (1.0 + returns)
    growth = np.add.reduce(grown, axis=1)
    return growth, grown / growth[:, None]


def move_towards(held: Float, target: Float, rate: float) -> Float:
    """Trade `rate` of the way: w⁻ + η·(target − w⁻) (Gârleanu & Pedersen 2013)."""
    if rate == 1.0:
        return target
    return held + rate * (target - held)


def constrain(
    held: Float,
    target: Float,
    no_trade_band: float = 0.0,
    max_turnover: float | None = None,
    max_position: float | None = None,
) -> Float:
    """The trade that the constraints let through, in this order.

    1. `no_trade_band`: changes smaller than the band are left out; the changed weights are
       scaled so that the total is one again (what they cannot take goes to cash).
    2. `max_turnover`: the whole trade is scaled down to Σ_risky |w_i − w⁻_i| ≤ max_turnover.
    3. `max_position`: purchases stop at the cap, w_i ≤ max(cap, w⁻_i); what is over stays in
       cash, so that the turnover limit still holds.
    """
    if no_trade_band > 0.0:
        target = _leave_out_small(held, target, no_trade_band)
    if max_turnover is not None:
        moved = np.add.reduce(np.abs(target[:, :-1] - held[:, :-1]), axis=1)
        scale = np.minimum(1.0, max_turnover / np.maximum(moved, 1e-300))
        target = held + scale[:, None] * (target - held)
    if max_position is not None:
        risky = np.minimum(target[:, :-1], np.maximum(max_position, held[:, :-1]))
        target = _with_rest_in_cash(risky)
    return target


def _leave_out_small(held: Float, target: Float, band: float) -> Float:
    changed = np.abs(target - held) >= band
    kept = np.where(changed, 0.0, held)
    free = np.maximum(0.0, 1.0 - np.add.reduce(kept, axis=1))
    wanted = np.add.reduce(np.where(changed, target, 0.0), axis=1)
    scale = np.where(wanted > 0.0, free / np.where(wanted > 0.0, wanted, 1.0), 0.0)
    out = np.where(changed, target * scale[:, None], held)
    some = np.any(changed, axis=1, keepdims=True)
    stuck = some[:, 0] & (wanted <= 0.0)
    out[stuck] = _with_rest_in_cash(out[stuck, :-1])
    return np.where(some, out, held)


def _with_rest_in_cash(risky: Float) -> Float:
    rest = np.maximum(0.0, 1.0 - np.add.reduce(risky, axis=1))
    return np.concatenate([risky, rest[:, None]], axis=1)
