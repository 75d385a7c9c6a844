"""Measures of a net curve, and how sure a difference of two Sharpe ratios is.

Everything here is NumPy on arrays of daily simple returns. A year has 252 days. A measure that is
undefined (a ratio whose denominator is zero, a deviation of one day) is nan, never infinite
and never a warning; each docstring says when.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import TRADING_DAYS, Curve

__all__ = [
    "annual_return",
    "cvar",
    "downside_deviation",
    "drawdown",
    "measures",
    "profit_factor",
    "rolling_sharpe",
    "sharpe",
    "value_at_risk",
    "volatility",
    "win_rate",
]

Float = NDArray[np.float64]

# A constant series has a computed deviation of about 1e-18, not of zero.
FLAT = 1e-14
# The tail of var_95 and cvar_95 is one day in twenty.
TAIL = 20


def annual_return(returns: Float) -> float:
    """Geometric annual return, (Π(1+r))^(252/D) − 1; −1 after a total loss.

    nan where it is too large for a float, as an annualised day can be.
    """
    growth = float(np.prod(1.0 + returns))
    if growth <= 0.0:
        return -1.0
    try:
        return math.expm1(math.log(growth) * TRADING_DAYS / len(returns))
    except OverflowError:
        return math.nan


def volatility(returns: Float) -> float:
    """Annual standard deviation (ddof 1) of daily returns; nan for a single day."""
    if len(returns) < 2:
        return math.nan
    return _deviation(returns) * math.sqrt(TRADING_DAYS)


def downside_deviation(excess: Float) -> float:
    """Annual √mean(min(r, 0)²) of excess returns, shape [D]: gains count as zero (Sortino)."""
    return math.sqrt(float(np.mean(np.minimum(excess, 0.0) ** 2)) * TRADING_DAYS)


def sharpe(excess: Float) -> float:
    """Annual Sharpe ratio of excess returns, shape [D]: √252 · mean / std (ddof 1).

    nan for a single day and for constant returns.
    """
    deviation = _deviation(excess) if len(excess) > 1 else 0.0
    return _ratio(float(np.mean(excess)) * math.sqrt(TRADING_DAYS), deviation)


def value_at_risk(returns: Float) -> float:
    """The daily return that is undercut on at most 5 % of days.

    The empirical quantile without interpolation (McNeil, Frey & Embrechts 2015): of 100 days the
    sixth worst. A return, so negative where there are losses.
    """
    return float(np.sort(returns)[len(returns) // TAIL])


def cvar(returns: Float) -> float:
    """Mean daily return of the worst 5 % of days (Rockafellar & Uryasev 2002).

    Where that is no whole number of days, the last one counts in part. A return, so negative
    where there are losses.
    """
    ordered = np.sort(returns)
    whole, rest = divmod(len(returns), TAIL)
    total = ordered[:whole].sum() + ordered[whole] * rest / TAIL
    return float(total / (len(returns) / TAIL))


def win_rate(returns: Float) -> float:
    """Share of days with a net return above zero."""
    return float(np.mean(returns > 0.0))


def profit_factor(returns: Float) -> float:
    """Sum of the gains over the sum of the losses, both daily; nan without a loss."""
    gains = float(np.sum(np.maximum(returns, 0.0)))
    return _ratio(gains, float(-np.sum(np.minimum(returns, 0.0))))


def drawdown(values: Float) -> Float:
    """Value over the highest value so far, minus 1; shape [D], never positive.

    `values`, shape [D], is the value at the end of each day of a portfolio that starts from 1,
    so that a loss on the first day is a drawdown.
    """
    peak = np.maximum(np.maximum.accumulate(values), 1.0)
    return np.asarray(values / peak - 1.0)


def rolling_sharpe(returns: Float, window: int = 126) -> Float:
    """Annual Sharpe ratio of the `window` days that end on each day, shape [D].

    nan on the first ``window - 1`` days and where all returns of the window are equal.

    Raises
    ------
    DataError
        If `window` is below 2.
    """
    if window < 2:
        raise DataError(f"rolling_sharpe: window is {window}; a deviation needs at least 2 days")
    out = np.full(len(returns), np.nan)
    if len(returns) < window:
        return out
    windows = np.lib.stride_tricks.sliding_window_view(returns, window)
    deviation = windows.std(axis=1, ddof=1)
    varied = deviation > FLAT
    mean = windows.mean(axis=1)
    out[window - 1 :][varied] = mean[varied] / deviation[varied] * math.sqrt(TRADING_DAYS)
    return out


def measures(curve: Curve, cash_rate: Float | float | None = None) -> dict[str, float]:
    """Every measure of a curve, net of costs.

    Parameters
    ----------
    curve : the net curve, D days
    cash_rate : simple daily rate of cash on each of the curve's days, shape [D] or one number;
        None stands for 0. Sharpe, Sortino and the downside deviation are in excess of it.

    Returns
    -------
    dict
        ``total_return`` over the period; ``annual_return``, geometric; ``volatility``, annual;
        ``sharpe`` and ``sortino`` (mean excess return over the downside deviation), annual;
        ``calmar``, annual return over the largest drawdown; ``max_drawdown``, not positive;
        ``var_95`` and ``cvar_95``, daily returns of the worst 5 %, negative where there are
        losses; ``downside_deviation``, annual; ``turnover``, buys plus sells over value, a
        year; ``cost``, sum paid in units of the initial value; ``cost_drag``, costs over the
        value that they were paid from, a year; ``win_rate``, share of days above zero;
        ``profit_factor``, gains over losses.

        nan: volatility and Sharpe of a single day, Sharpe of constant returns, Sortino
        without a day below cash, Calmar without a drawdown, profit factor without a loss.

    Raises
    ------
    DataError
        If the curve has no days or a return is not a finite number, or if `cash_rate` does
        not have one rate for each day.
    """
    returns = np.asarray(curve.returns, dtype=np.float64)
    if len(returns) == 0:
        raise DataError(f"{curve.name}: the curve has no days; choose a longer period")
    if not np.all(np.isfinite(returns)):
        day = curve.dates[int(np.argmin(np.isfinite(returns)))]
        raise DataError(f"{curve.name}: return on {day} is not a number; check prices and weights")
    excess = _excess(curve.name, returns, cash_rate)
    value = curve.value
    annual = annual_return(returns)
    deepest = float(drawdown(value).min())
    downside = downside_deviation(excess)
    return {
        "total_return": float(value[-1] - 1.0),
        "annual_return": annual,
        "volatility": volatility(returns),
        "sharpe": sharpe(excess),
        "sortino": _ratio(float(np.mean(excess)) * TRADING_DAYS, downside),
        "calmar": _ratio(annual, -deepest),
        "max_drawdown": deepest,
        "var_95": value_at_risk(returns),
        "cvar_95": cvar(returns),
        "downside_deviation": downside,
        "turnover": float(np.mean(curve.turnover)) * TRADING_DAYS,
        "cost": float(np.sum(curve.cost)),
        "cost_drag": _cost_drag(curve.cost, value),
        "win_rate": win_rate(returns),
        "profit_factor": profit_factor(returns),
    }


def _excess(name: str, returns: Float, cash_rate: Float | float | None) -> Float:
    if cash_rate is None:
        return returns
    rate = np.asarray(cash_rate, dtype=np.float64)
    if rate.shape not in ((), returns.shape):
        raise DataError(
            f"{name}: cash_rate has shape {rate.shape}, the curve {len(returns)} days; "
            "give one rate for each day of the curve"
        )
    return np.asarray(returns - rate)


def _cost_drag(cost: Float, value: Float) -> float:
    """Costs over the value before each day's trade, a year; a ruined day has nothing to pay."""
    before = np.concatenate([[1.0], value[:-1]])
    share = np.divide(cost, before, out=np.zeros(len(cost)), where=before > 0.0)
    return float(np.mean(share)) * TRADING_DAYS


def _deviation(returns: Float) -> float:
    deviation = float(np.std(returns, ddof=1))
    return deviation if deviation > FLAT else 0.0


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else math.nan
