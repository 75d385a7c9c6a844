"""Pictures of a benchmark: growth of the median seeds, Sharpe ratios seed by seed, profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from finflow_sb3.benchmark.scores import Group, Row, median_run
from finflow_sb3.benchmark.table import title_of
from finflow_sb3.evaluation.aggregate import Profile
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.plot_style import (
    GRID,
    INK,
    MUTED,
    PALETTE,
    POLICY,
    SMALL,
    canvas,
    colour,
    dress,
    legend,
    text,
    year_axis,
    years,
)

__all__ = ["growth_plot", "profile_plot", "sharpe_plot"]

WIDTH = 10.0
# Many lines from few colours: a turn of the palette has the next kind of line.
LINES = ("-", (0, (4, 1.6)), (0, (1, 1.3)))


def growth_plot(groups: Sequence[Group], market: str, order: Sequence[str]) -> Figure:
    """Growth of 1 of each algorithm's median seed, net of costs, on a log scale.

    Parameters
    ----------
    order : names of all algorithms, by which each has the same look in every picture
    """
    runs = [(group.algo, median_run(group, market).curve(0)) for group in groups]
    runs.sort(key=lambda run: -float(run[1].value[-1]))
    first = runs[0][1]
    figure, axes = canvas(WIDTH, f"Growth of 1 on {market}, {years(first)}, net of costs (log)")
    axes.set_yscale("log")
    for algo, curve in runs:
        axes.plot(_days(curve), np.concatenate([[1.0], curve.value]), **_look(algo, order))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.tick_params(axis="y", which="minor", length=0)
    year_axis(axes, first)
    _legend(figure, [algo for algo, _ in runs], order, "median seed")
    return figure


def _days(curve: Curve) -> np.ndarray:
    return np.concatenate([curve.decisions[:1], curve.dates])


def sharpe_plot(rows: Sequence[Row], groups: Sequence[Group]) -> Figure:
    """A dot for each seed and market, the interquartile mean with its interval, best on top."""
    ordered = sorted(rows, key=lambda row: row.sharpe.value)
    by_name = {group.algo: group for group in groups}
    figure = Figure(
        figsize=(WIDTH, 1.3 + 0.34 * len(rows)), dpi=150, layout="constrained", facecolor="white"
    )
    axes = figure.add_subplot()
    level = rows[0].sharpe.level
    title = f"Net Sharpe ratio by seed, interquartile mean with its {level} % interval over seeds"
    figure.suptitle(text(title), x=0.01, ha="left", fontsize=11.0, color=INK)
    dress(axes)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    for y, row in enumerate(ordered):
        tone = POLICY if row.learns else MUTED
        scores = by_name[row.algo].scores().ravel()
        axes.plot(scores, np.full(len(scores), y), "o", color=tone, alpha=0.35, markersize=6)
        if np.isfinite(row.sharpe.low):
            axes.plot([row.sharpe.low, row.sharpe.high], [y, y], color=tone, linewidth=2.0)
        axes.plot([row.sharpe.value], [y], "|", color=tone, markersize=15, markeredgewidth=2.4)
    reference = next(row for row in rows if row.algo == "equal_weight")
    axes.axvline(reference.sharpe.value, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_yticks(range(len(ordered)), [title_of(row.algo) for row in ordered])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel("annual Sharpe ratio on the test split; dashed: equal weight", fontsize=SMALL)
    axes.xaxis.label.set_color(MUTED)
    return figure


def profile_plot(profiles: Mapping[str, Profile], order: Sequence[str]) -> Figure:
    """Share of runs whose Sharpe ratio is above each threshold, with pointwise bands."""
    level = next(iter(profiles.values())).level
    figure, axes = canvas(
        WIDTH, f"Performance profile: share of runs above a Sharpe ratio, with {level} % bands"
    )
    for algo, profile in profiles.items():
        look = _look(algo, order)
        axes.plot(profile.thresholds, profile.share, drawstyle="steps-post", **look)
        if np.isfinite(profile.low).all():
            axes.fill_between(
                profile.thresholds,
                profile.low,
                profile.high,
                step="post",
                color=look["color"],
                alpha=0.12,
                linewidth=0,
            )
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(x=0.0)
    axes.set_xlabel("annual Sharpe ratio, net of costs", fontsize=SMALL)
    axes.xaxis.label.set_color(MUTED)
    _legend(figure, list(profiles), order, "")
    return figure


def _look(algo: str, order: Sequence[str]) -> dict[str, Any]:
    """The same line for an algorithm in every picture: ours strong, rules thin."""
    if algo == "cqsac":
        return {"color": POLICY, "linewidth": 2.2, "zorder": 6}
    if algo == "equal_weight":
        return {"color": colour(algo), "linewidth": 1.8, "zorder": 5}
    place = [name for name in order if name not in ("cqsac", "equal_weight")].index(algo)
    turn, tone = divmod(place, len(PALETTE))
    return {
        "color": PALETTE[tone],
        "linestyle": LINES[turn % len(LINES)],
        "linewidth": 1.3,
        "zorder": 4,
    }


def _legend(figure: Figure, algos: Sequence[str], order: Sequence[str], title: str) -> None:
    # Thicker than the lines: a picture of few colours keeps those of large areas.
    looks = [{**_look(algo, order), "linewidth": 2.6} for algo in algos]
    handles = [Line2D([], [], **look) for look in looks]
    legend(figure, handles, [title_of(algo) for algo in algos], True, title or None)
