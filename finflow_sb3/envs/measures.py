"""What an episode came to, net of costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["episode_measures"]

TRADING_DAYS = 252

Float = NDArray[np.float64]


def episode_measures(returns: Float) -> dict[str, Float]:
    """Net return, Sharpe, Sortino, maximum drawdown and CVaR 5 % of episodes of one length.

    Parameters
    ----------
    returns : shape [E, D], simple daily returns net of costs. Ratios of a constant series are 0.

    Returns
    -------
    name → shape [E]
    """
    days = returns.shape[1]
    value = np.cumprod(1.0 + returns, axis=1)
    peak = np.maximum(1.0, np.maximum.accumulate(value, axis=1))
    deviation = np.std(returns, axis=1, ddof=1) if days > 1 else np.zeros(len(returns))
    downside = np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2, axis=1))
    annual = np.sqrt(TRADING_DAYS) * np.mean(returns, axis=1)
    worst = np.sort(returns, axis=1)[:, : max(1, round(0.05 * days))]
    return {
        "net_return": value[:, -1] - 1.0,
        "sharpe": _ratio(annual, deviation),
        "sortino": _ratio(annual, downside),
        "max_drawdown": np.min(value / peak, axis=1) - 1.0,
        "cvar_95": np.asarray(np.mean(worst, axis=1)),
    }


def _ratio(above: Float, below: Float) -> Float:
    large = below > 1e-12
    return np.where(large, above / np.where(large, below, 1.0), 0.0)
