"""Rewards: pure functions of one day's outcome, for a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["differential_sharpe", "log_return_reward"]

Float = NDArray[np.float64]


def log_return_reward(
    net_growth: Float,
    baseline_log_return: Float | float,
    turnover: Float,
    drawdown_before: Float,
    drawdown_after: Float,
    sigma: float,
    lambda_turn: float = 0.0,
    lambda_cvar: float = 0.0,
    cvar_target: float = -0.02,
    lambda_dd: float = 0.0,
) -> Float:
    """(log net growth − baseline)/σ, less penalties.

    Parameters
    ----------
    net_growth : shape [B], value after the day over value before its trade, costs included
    baseline_log_return : log return of what is to be beaten; independent of the action, so it
        moves no optimum and takes variance away
    turnover : shape [B]
    drawdown_before, drawdown_after : shape [B], 1 − value/peak, both ≥ 0
    sigma : daily standard deviation of equal weight on the training split: the unit
    lambda_cvar : weight of the shortfall hinge max(0, cvar_target − net return)/σ, whose mean
        at the 5 % quantile is the part of CVaR that lies beyond the target
        (Rockafellar & Uryasev 2000)
    lambda_dd : weight of the increase of the drawdown, in σ
    """
    reward = (np.log(net_growth) - baseline_log_return) / sigma
    if lambda_turn:
        reward = reward - lambda_turn * turnover
    if lambda_cvar:
        shortfall = np.maximum(0.0, cvar_target - (net_growth - 1.0)) / sigma
        reward = reward - lambda_cvar * shortfall
    if lambda_dd:
        deeper = np.maximum(0.0, drawdown_after - drawdown_before) / sigma
        reward = reward - lambda_dd * deeper
    return np.asarray(reward)


def differential_sharpe(
    excess_return: Float, first: Float, second: Float, decay: float
) -> tuple[Float, Float, Float]:
    """Differential Sharpe ratio and the moments after it (Moody & Saffell 2001, eq. 13-14).

    D = (B·ΔA − A·ΔB/2)/(B − A²)^{3/2} with ΔA = R − A, ΔB = R² − B, the moments before the
    step; then A += η·ΔA, B += η·ΔB.

    Parameters
    ----------
    excess_return : shape [B], R
    first, second : shape [B], exponential moments A of R and B of R²
    decay : η

    Returns
    -------
    reward, first, second : shape [B] each
    """
    delta_first = excess_return - first
    delta_second = excess_return**2 - second
    variance = np.maximum(second - first**2, 1e-12)
    reward = (second * delta_first - 0.5 * first * delta_second) / variance**1.5
    return np.asarray(reward), first + decay * delta_first, second + decay * delta_second
