"""Where a portfolio's risk comes from: each weight's part of its volatility.

For weights w and the covariance Σ of trailing daily returns, asset i contributes w_i·(Σw)_i / σ to
the volatility σ = √(wᵀΣw) (Euler's theorem; Tasche 1999). The shares w_i·(Σw)_i/σ² add up to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.observations import TRADING_DAYS

__all__ = ["Risk", "risk_of"]

Float = NDArray[np.float64]
# A daily variance that is rounding and no risk.
NOTHING = 1e-24


@dataclass(frozen=True)
class Risk:
    """Of one portfolio.

    Attributes
    ----------
    volatility : a year, from `days` trailing daily returns
    shares : shape [n+1], of that volatility, adding up to one; zero where there is no risk
    """

    volatility: float
    shares: Float
    days: int


def risk_of(weights: Float, returns: Float, row: int, window: int = TRADING_DAYS) -> Risk:
    """The risk of holding `weights`, as the last days up to `row` have it.

    Parameters
    ----------
    weights : shape [n+1], cash last
    returns : simple daily returns, shape [T, n+1]; row 0 has none
    window : days of history, fewer where there are no more
    """
    recent = returns[max(1, row + 1 - window) : row + 1]
    covariance = np.cov(recent, rowvar=False)
    marginal = covariance @ weights
    variance = float(weights @ marginal)
    if variance <= NOTHING:
        return Risk(0.0, np.zeros_like(weights), len(recent))
    volatility = float(np.sqrt(variance * TRADING_DAYS))
    return Risk(volatility, np.asarray(weights * marginal / variance), len(recent))
