"""Pictures of curves. Every function returns a matplotlib `Figure` and leaves pyplot alone.

The first curve is the one that is shown; the others are there to compare it with, and muted.
`width` is in inches: 10 for a page, about 4.6 for a telephone, with the same size of type.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import drawdown, rolling_sharpe
from finflow_sb3.evaluation.plot_style import (
    CASH,
    COLOURS,
    INK,
    MUTED,
    NEXT,
    OTHER,
    PALETTE,
    POLICY,
    SMALL,
    canvas,
    label,
    legend,
    line_style,
    png_bytes,
    spread,
    text,
    wide,
    year_axis,
    years,
)
from finflow_sb3.files import write_whole

__all__ = [
    "drawdown_plot",
    "equity_plot",
    "gates_plot",
    "rolling_sharpe_plot",
    "save_png",
    "weights_plot",
]

Float = NDArray[np.float64]


def equity_plot(curves: Sequence[Curve], width: float = 10.0) -> Figure:
    """Growth of 1, net of costs, on a log scale.

    Raises
    ------
    DataError
        If there is no curve, as in every function of this module.
    """
    first = _first(curves)
    fee = f"{first.fee * 1e4:g} bps costs"
    figure, axes = canvas(width, f"Growth of 1, net of {fee}, {years(first)} (log scale)")
    axes.set_yscale("log")
    # A log axis has no place for a ruined portfolio's zero.
    series = [np.maximum(np.concatenate([[1.0], c.value]), 1e-4) for c in curves]
    _lines(axes, curves, series, start=True)
    axes.yaxis.set_major_locator(LogLocator(subs=_log_ticks(series)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
    _name_lines(figure, axes, curves, series)
    return figure


def drawdown_plot(curves: Sequence[Curve], width: float = 10.0) -> Figure:
    """Loss from the highest value so far, in percent."""
    first = _first(curves)
    figure, axes = canvas(width, f"Drawdown from the highest value so far, {years(first)}")
    series = [drawdown(c.value) for c in curves]
    axes.fill_between(first.dates, series[0], 0.0, color=POLICY, alpha=0.13, linewidth=0)
    _lines(axes, curves, series)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(top=0.0)
    _legend_below(figure, curves)
    return figure


def rolling_sharpe_plot(curves: Sequence[Curve], width: float = 10.0, window: int = 126) -> Figure:
    """Annual Sharpe ratio (cash at 0) over the trailing `window` days."""
    first = _first(curves)
    title = f"Sharpe ratio over the trailing {window} days, {years(first)}"
    figure, axes = canvas(width, title)
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    _lines(axes, curves, [rolling_sharpe(c.returns, window) for c in curves])
    _legend_below(figure, curves)
    return figure


def weights_plot(curve: Curve, width: float = 10.0, top: int = 8) -> Figure:
    """Weights over time, stacked: the `top` assets by average weight, the others, cash."""
    n_assets = len(curve.assets)
    mean = curve.weights.mean(axis=0)
    shown = min(top, len(PALETTE), n_assets)
    order = np.argsort(-mean[:n_assets], kind="stable")
    bands = [curve.weights[:, i] for i in order[:shown]]
    names = [curve.assets[i] for i in order[:shown]]
    colours = list(PALETTE[:shown])
    for ranks, colour in _remainders(shown, n_assets):
        bands.append(curve.weights[:, order[ranks]].sum(axis=1))
        names.append(f"{len(order[ranks])} others" if ranks.stop == n_assets else "next 40")
        colours.append(colour)
    bands.append(curve.weights[:, n_assets])
    title = f"What {label(curve.name)} held: {n_assets} assets and cash, {years(curve)}"
    return _areas(curve, bands, [*names, "cash"], [*colours, CASH], title, width)


def gates_plot(curve: Curve, width: float = 10.0) -> Figure:
    """How much each anchor was listened to over time, stacked.

    Raises
    ------
    DataError
        If the curve has no gates.
    """
    if curve.gates is None:
        raise DataError(f"{curve.name}: the curve has no gates; only action_base anchors has")
    colours = [COLOURS.get(a, PALETTE[i % len(PALETTE)]) for i, a in enumerate(curve.anchors)]
    title = f"How much {label(curve.name)} listened to each anchor, {years(curve)}"
    bands = [curve.gates[:, k] for k in range(curve.gates.shape[1])]
    return _areas(curve, bands, list(curve.anchors), colours, title, width)


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    write_whole(path, png_bytes(figure))


def _first(curves: Sequence[Curve]) -> Curve:
    if not curves or not len(curves[0]):
        raise DataError("nothing to draw: no curve, or a curve without days; choose a period")
    return curves[0]


def _lines(
    axes: Axes, curves: Sequence[Curve], series: Sequence[Float], start: bool = False
) -> None:
    for curve, values in zip(curves, series, strict=True):
        days = curve.dates
        if start:
            days = np.concatenate([curve.decisions[:1], days])
        axes.plot(days, values, **line_style(curve, curve is curves[0]))  # type: ignore[arg-type]
    year_axis(axes, curves[0])


def _name_lines(
    figure: Figure, axes: Axes, curves: Sequence[Curve], series: Sequence[Float]
) -> None:
    """Names at the ends of the lines where there is room beside them, else a legend below."""
    if not wide(figure.get_figwidth()):
        _legend_below(figure, curves)
        return
    low, high = np.log(axes.get_ylim())
    ends = np.array([(np.log(s[-1]) - low) / (high - low) for s in series])
    gap = 1.3 * SMALL / 72 / (0.8 * figure.get_figheight())
    places = spread(ends, gap)
    for curve, end, place in zip(curves, ends, places, strict=True):
        style = line_style(curve, curve is curves[0])
        axes.annotate(
            text(label(curve.name)),
            xy=(1.0, end),
            xytext=(1.03, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            fontweight="bold" if curve is curves[0] else "normal",
            color=POLICY if curve is curves[0] else INK,
            arrowprops={"arrowstyle": "-", "color": style["color"], "lw": 0.9, "relpos": (0, 0.5)},
        )
    axes.margins(x=0.0)


def _legend_below(figure: Figure, curves: Sequence[Curve]) -> None:
    handles = [
        Line2D([], [], **line_style(c, c is curves[0]))  # type: ignore[arg-type]
        for c in curves
    ]
    names = [text(label(c.name)) for c in curves]
    legend(figure, handles, names, beside=False)


def _remainders(shown: int, n_assets: int) -> list[tuple[slice, str]]:
    """Ranks that share a band, and its colour: in a large universe the next 40 have their own."""
    if n_assets == shown:
        return []
    if n_assets <= shown + 80:
        return [(slice(shown, n_assets), OTHER)]
    return [(slice(shown, shown + 40), NEXT), (slice(shown + 40, n_assets), OTHER)]


def _areas(
    curve: Curve,
    bands: list[Float],
    names: list[str],
    colours: list[str],
    title: str,
    width: float,
) -> Figure:
    figure, axes = canvas(width, title)
    axes.stackplot(curve.dates, bands, colors=colours, linewidth=0.3, edgecolor="white")
    axes.set_ylim(0.0, 1.0)
    axes.margins(x=0.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    year_axis(axes, curve)
    handles = [Patch(facecolor=c, edgecolor=MUTED, linewidth=0.4) for c in colours]
    texts = [f"{text(n)}  {_share(b.mean())}" for n, b in zip(names, bands, strict=True)]
    if wide(width):
        handles, texts = handles[::-1], texts[::-1]
    legend(figure, handles, texts, beside=wide(width), title="average")
    return figure


def _share(mean: float) -> str:
    return f"{100 * mean:.0f} %" if mean >= 0.0095 or mean <= 0.0 else f"{100 * mean:.1f} %"


def _log_ticks(series: Sequence[Float]) -> tuple[float, ...]:
    """Multiples of each power of ten that give a few ticks, whatever the range."""
    ratio = max(float(s.max()) for s in series) / min(float(s.min()) for s in series)
    if ratio < 4:
        return (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    return (1.0, 2.0, 5.0) if ratio < 200 else (1.0,)
