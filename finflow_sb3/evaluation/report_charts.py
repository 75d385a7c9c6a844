"""The charts of the fact sheet, each made from the curves of one execution lag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.evaluation.charts import (
    BANDS,
    STEP,
    Chart,
    band,
    line,
    packed,
    series_name,
    thinned,
)
from finflow_sb3.evaluation.curve import TRADING_DAYS, Curve
from finflow_sb3.evaluation.metrics import cvar, drawdown, rolling_sharpe, value_at_risk
from finflow_sb3.evaluation.plot_style import COLOURS, label

__all__ = [
    "ROLLING",
    "cost_charts",
    "gates_chart",
    "growth_charts",
    "returns_chart",
    "rolling_charts",
    "weights_chart",
]

Float = NDArray[np.float64]

ROLLING = 126
MONTH = 21
TOP = 12
PERCENT = {"tickformat": ".0%", "hoverformat": ".1%"}
TIME = {"type": "date", "showgrid": False}
# Ticks of a log axis from a millionth on: 1, 1.5, 2, 3, 5 and 7 of each power of ten.
TICKS = [m * 10.0**e for e in range(-6, 7) for m in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)]


def growth_charts(curves: Sequence[Curve], lagged: Sequence[Curve]) -> list[Chart]:
    """Value of 1 on a log axis, and drawdowns; every day of every curve.

    Parameters
    ----------
    curves : the policy's first
    lagged : the policy at other execution lags
    """
    # A log axis has no place for a ruined portfolio's zero.
    grown = [np.maximum(np.concatenate([[1.0], c.value]), 1e-6) for c in (*curves, *lagged)]
    equity = [line(curves, i, grown[i], "start") for i in range(len(curves))]
    equity += [
        line(curves, 0, values, "start", name=series_name(c, lagged=True))
        | {"visible": "legendonly", "line": {"color": "--accent", "width": 1.4, "dash": "dot"}}
        for c, values in zip(lagged, grown[len(curves) :], strict=True)
    ]
    low, high = min(float(g.min()) for g in grown), max(float(g.max()) for g in grown)
    ticks = [round(t, 7) for t in TICKS if low / 1.5 <= t <= high * 1.5]
    if high / low > 30:
        ticks = [t for t in ticks if f"{t:e}"[:3] in ("1.0", "2.0", "5.0")]
    texts = [f"{tick:g}" for tick in ticks]
    falls = [line(curves, i, drawdown(c.value), "all") for i, c in enumerate(curves)]
    falls[0] |= {"fill": "tozeroy", "fillcolor": "rgba(60, 130, 200, 0.16)"}
    value_axis = {"type": "log", "tickvals": ticks, "ticktext": texts, "hoverformat": ".3f"}
    return [
        Chart(
            "equity",
            "Growth of 1 (log scale)",
            "Value of 1 invested on the first day, after costs. Equal steps upwards are equal "
            "gains in percent. On a wide screen, click a name to show or hide a line, and drag to "
            "look closer.",
            tuple(equity),
            {"xaxis": TIME, "yaxis": value_axis, "hovermode": "x unified"},
            height=520,
            height_narrow=560,
        ),
        Chart(
            "drawdown",
            "Drawdown",
            f"How far below its earlier high each portfolio stood; shaded for "
            f"{label(curves[0].name)}.",
            tuple(falls),
            {"xaxis": TIME, "yaxis": PERCENT, "hovermode": "x unified"},
            height=420,
            height_narrow=500,
        ),
    ]


def rolling_charts(curves: Sequence[Curve]) -> list[Chart]:
    """Sharpe ratio, volatility and beta to equal weight over half a year, one point a week.

    Empty where there are no more days than the window has.
    """
    if len(curves[0]) <= ROLLING:
        return []
    at = thinned(len(curves[0]))
    equal = next(c for c in curves if c.name == "equal_weight")
    chosen = {
        "sharpe": [rolling_sharpe(c.returns, ROLLING) for c in curves],
        "volatility": [_rolling_volatility(c.returns) for c in curves],
        "beta": [_rolling_beta(c.returns, equal.returns) for c in curves],
    }
    texts = {
        "sharpe": ("Sharpe ratio", "Return for risk, cash at 0, a year.", {"hoverformat": ".2f"}),
        "volatility": ("Volatility", "Standard deviation of daily returns, a year.", PERCENT),
        "beta": (
            "Beta to equal weight",
            "How far a portfolio moved when equal weight moved by 1.",
            {"hoverformat": ".2f"},
        ),
    }
    return [
        Chart(
            f"rolling-{name}",
            title,
            f"{about} Over the trailing {ROLLING} days.",
            tuple(
                line(curves, i, values[at], "weeks")
                for i, values in enumerate(chosen[name])
                if name != "beta" or curves[i] is not equal
            ),
            {"xaxis": TIME, "yaxis": axis, "hovermode": "x unified"},
            height=360,
            height_narrow=440,
        )
        for name, (title, about, axis) in texts.items()
    ]


def _rolling_volatility(returns: Float) -> Float:
    out = np.full(len(returns), np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(returns, ROLLING)
    out[ROLLING - 1 :] = windows.std(axis=1, ddof=1) * np.sqrt(TRADING_DAYS)
    return out


def _rolling_beta(returns: Float, reference: Float) -> Float:
    """Covariance over the reference's variance in each window; nan where that is 0."""
    out = np.full(len(returns), np.nan)
    ours, theirs = (
        np.lib.stride_tricks.sliding_window_view(r, ROLLING) for r in (returns, reference)
    )
    centred = theirs - theirs.mean(axis=1, keepdims=True)
    variance = np.sum(centred**2, axis=1)
    varied = variance > 1e-28
    out[ROLLING - 1 :][varied] = np.sum(centred * ours, axis=1)[varied] / variance[varied]
    return out


def weights_chart(curve: Curve) -> Chart:
    """Weights each week, stacked: the assets that were held most, the others, cash."""
    at = thinned(len(curve))
    weights = curve.weights[at]
    n = len(curve.assets)
    mean = curve.weights.mean(axis=0)
    order = np.argsort(-mean[:n], kind="stable")
    shown = n if n <= TOP + 1 else TOP
    bands = [
        band(curve.assets[i], weights[:, i], BANDS[k % len(BANDS)])
        for k, i in enumerate(order[:shown])
    ]
    if shown < n:
        bands.append(band(f"{n - shown} others", weights[:, order[shown:]].sum(1), "--other"))
    bands.append(band("cash", weights[:, n], "--cash"))
    most = "" if shown == n else f" The {shown} that it held most have a colour of their own."
    return Chart(
        "weights",
        "Weights over time",
        f"What {label(curve.name)} held after the day's trade, one day in {STEP}.{most}",
        tuple(bands),
        _shares(),
        height=480,
        height_narrow=520,
    )


def gates_chart(curve: Curve) -> Chart | None:
    """How much each anchor was listened to, stacked; None where the curve has no gates."""
    if curve.gates is None:
        return None
    gates = curve.gates[thinned(len(curve))]
    return Chart(
        "gates",
        "Gates over time",
        f"How the classical allocations that the policy leans on were mixed, one day in {STEP}.",
        tuple(
            band(name, gates[:, k], COLOURS.get(name, BANDS[k % len(BANDS)]))
            for k, name in enumerate(curve.anchors)
        ),
        _shares(),
    )


def _shares() -> dict[str, Any]:
    return {
        "xaxis": TIME,
        "yaxis": {"tickformat": ".0%", "range": [0.0, 1.0]},
        "hovermode": "x unified",
    }


def cost_charts(curves: Sequence[Curve]) -> list[Chart]:
    """Turnover over a trailing month, and costs paid so far; one point a week."""
    at = thinned(len(curves[0]))
    month = np.ones(MONTH)
    turnover = [
        np.convolve(c.turnover, month)[: len(c)] / np.minimum(np.arange(1, len(c) + 1), MONTH)
        for c in curves
    ]
    return [
        Chart(
            "turnover",
            "Turnover",
            f"Purchases plus sales over value, mean of the trailing {MONTH} days, a year.",
            tuple(line(curves, i, t[at] * TRADING_DAYS, "weeks") for i, t in enumerate(turnover)),
            {"xaxis": TIME, "yaxis": {"hoverformat": ".2f", "rangemode": "tozero"}},
            height=360,
            height_narrow=440,
        ),
        Chart(
            "costs",
            "Costs paid so far",
            "In units of the initial value.",
            tuple(line(curves, i, np.cumsum(c.cost)[at], "weeks") for i, c in enumerate(curves)),
            {"xaxis": TIME, "yaxis": {"hoverformat": ".4f", "rangemode": "tozero"}},
            height=360,
            height_narrow=440,
        ),
    ]


def returns_chart(curves: Sequence[Curve]) -> Chart:
    """Distribution of the policy's daily returns beside equal weight's, with VaR and CVaR."""
    policy = curves[0]
    equal = next(c for c in curves if c.name == "equal_weight")
    both = np.concatenate([policy.returns, equal.returns])
    low, high = np.percentile(both, [0.1, 99.9])
    spread = max(float(high - low), 1e-6)
    edges = np.linspace(low - 0.05 * spread, high + 0.05 * spread, 61)
    middle = (edges[1:] + edges[:-1]) / 2
    # Days beyond the axis are counted in its outermost bars.
    ours, theirs = (
        np.histogram(np.clip(c.returns, edges[0], edges[-1]), edges)[0] / len(c)
        for c in (policy, equal)
    )
    tail = [("VaR 5 %", value_at_risk(policy.returns)), ("CVaR 5 %", cvar(policy.returns))]
    bars = {
        "type": "bar",
        "name": series_name(policy),
        "x": packed(middle),
        "y": packed(ours),
        "marker": {"color": "--accent"},
        "opacity": 0.7,
        "hovertemplate": "%{y:.2%} of days near %{x:.2%}",
    }
    step = {
        "type": "scatter",
        "mode": "lines",
        "name": series_name(equal),
        "x": packed(middle),
        "y": packed(theirs),
        "line": {"color": "--equal", "width": 1.6, "shape": "hvh"},
        "hovertemplate": "%{y:.2%} of days",
    }
    marks = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [value, value],
            "y": [0.0, float(max(ours.max(), theirs.max()))],
            "line": {"color": colour, "width": 1.8, "dash": "dash"},
            "hovertemplate": "%{x:.2%}",
        }
        for (name, value), colour in zip(tail, ("#e69f00", "#d55e00"), strict=True)
    ]
    return Chart(
        "returns",
        "Distribution of daily returns",
        "Share of days by net return; the outermost bars hold all days beyond. VaR and CVaR are "
        f"those of {label(policy.name)}.",
        (bars, step, *marks),
        {
            "xaxis": {"tickformat": ".1%", "showgrid": False},
            "yaxis": {"tickformat": ".0%"},
            "bargap": 0.05,
        },
        height=380,
    )
