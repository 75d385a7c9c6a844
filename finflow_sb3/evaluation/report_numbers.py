"""How the figures of a report are written, and what each measure is called."""

from __future__ import annotations

import math

__all__ = ["COLUMNS", "number"]

# Measure → name of its column, format, meaning.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "total_return": ("Total return", "percent", "growth over the whole period"),
    "annual_return": ("Annual return", "percent", "geometric mean growth a year"),
    "volatility": ("Volatility", "percent", "standard deviation of daily returns, a year"),
    "sharpe": ("Sharpe", "ratio", "mean return above cash over its standard deviation, a year"),
    "sortino": ("Sortino", "ratio", "mean return above cash over the downside deviation, a year"),
    "calmar": ("Calmar", "ratio", "annual return over the largest drawdown"),
    "max_drawdown": ("Max draw\u00addown", "percent", "largest loss from an earlier high"),
    "var_95": ("VaR 5\u00a0%", "fine", "daily return undercut on one day in twenty"),
    "cvar_95": ("CVaR 5\u00a0%", "fine", "mean of the worst twentieth of days"),
    "downside_deviation": ("Downside dev.", "percent", "volatility of returns below cash, a year"),
    "turnover": ("Turn\u00adover", "times", "purchases plus sales over value, a year"),
    "cost": ("Costs paid", "plain", "sum, for an initial value of 1"),
    "cost_drag": ("Cost drag", "fine", "costs over value, a year"),
    "win_rate": ("Win rate", "percent", "share of days with a gain"),
    "profit_factor": ("Profit factor", "ratio", "sum of the gains over sum of the losses"),
}


def number(value: float, kind: str) -> str:
    """A measure as a reader wants it: a true minus, a dash where it is undefined."""
    if not math.isfinite(value):
        return "–"
    text = {
        "percent": f"{100 * value:.1f} %",
        "fine": f"{100 * value:.2f} %",
        "ratio": f"{value:.2f}",
        "figure": f"{value:.3f}",
        "times": f"{value:.1f} ×",
        "plain": f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}",
    }[kind]
    if not any(digit in text for digit in "123456789"):
        text = text.removeprefix("-")
    return text.replace("-", "−").replace(" ", "\u00a0")
