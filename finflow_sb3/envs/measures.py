"""What an episode came to, net of costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["episode_measures"]

TRADING_DAYS = 252


def episode_measures(returns: NDArray[np.float64]) -> dict[str, float]:
    """Net return, Sharpe, Sortino, maximum drawdown and CVaR 5 % of one episode.

    Parameters
    ----------
    returns : shape [D], simple daily returns net of costs. Ratios of a constant series are 0.
    """
    value = np.cumprod(1.0 + returns)
    peak = np.maximum(1.0, np.maximum.accumulate(value))
    deviation = float(np.std(returns, ddof=1)) if len(returns) > 1 else 0.0
    downside = float(np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2)))
    annual = np.sqrt(TRADING_DAYS) * float(np.mean(returns))
    worst = np.sort(returns)[: max(1, round(0.05 * len(returns)))]
    return {
        "net_return": float(value[-1] - 1.0),
        "sharpe": annual / deviation if deviation > 1e-12 else 0.0,
        "sortino": annual / downside if downside > 1e-12 else 0.0,
        "max_drawdown": float(np.min(value / peak) - 1.0),
        "cvar_95": float(np.mean(worst)),
    }
