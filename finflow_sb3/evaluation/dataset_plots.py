"""Pictures of a dataset: what the rules earned, and what the actions tried."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from finflow_sb3.evaluation.plot_style import DPI, INK, MUTED, POLICY, SMALL, dress, text
from finflow_sb3.offline.coverage import Dimension
from finflow_sb3.offline.describe import Behaviour, Description

__all__ = ["dataset_plot"]

WIDTH = 10.0
LINE = 0.21
MARGIN = 1.3
NAMED = 60
PALE = "#dbe7f1"
SHADES = LinearSegmentedColormap.from_list("shades", [PALE, POLICY])


def dataset_plot(description: Description) -> Figure:
    """Returns of the rules' episodes beside the actions' coverage, 10 inches wide."""
    behaviours, dimensions = description.behaviours, description.coverage.dimensions
    shown = min(len(dimensions), NAMED)
    height = MARGIN + LINE * max(shown, 2 * len(behaviours), 10)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
    title = f"{description.transitions:,} transitions in {description.episodes:,} episodes"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.0, color=INK)
    left, right = figure.subplots(1, 2)
    _returns(left, behaviours)
    _coverage(right, dimensions)
    return figure


def _returns(axes: Axes, behaviours: Sequence[Behaviour]) -> None:
    """A box from the first to the third quarter of episodes, whiskers from 5 % to 95 %."""
    _panel(axes, "Reward of an episode, for a year")
    spreads = [b.annual_reward for b in behaviours]
    boxes = [
        {
            "med": s.median,
            "q1": s.q25,
            "q3": s.q75,
            "whislo": s.q05,
            "whishi": s.q95,
            "mean": s.mean,
        }
        for s in spreads
    ]
    line = {"color": POLICY, "linewidth": 1.2}
    axes.bxp(
        boxes,
        orientation="horizontal",
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        widths=0.5,
        boxprops={"facecolor": PALE, "edgecolor": POLICY, "linewidth": 1.2},
        medianprops={**line, "linewidth": 2.0},
        whiskerprops=line,
        capprops=line,
        meanprops={"marker": "o", "markersize": 4, "markerfacecolor": INK, "markeredgecolor": INK},
    )
    axes.set_yticks(range(1, len(behaviours) + 1), [text(_words(b.name)) for b in behaviours])
    axes.invert_yaxis()
    axes.axvline(0.0, color=MUTED, linewidth=0.8, zorder=0)
    axes.set_xlabel(
        "box: half of the episodes, whiskers: 9 of 10, dot: mean", fontsize=SMALL, color=MUTED
    )


def _coverage(axes: Axes, dimensions: Sequence[Dimension]) -> None:
    """How often each part of each dimension's range was tried; white is never."""
    _panel(axes, "Actions tried, from −1 to 1")
    counts = np.array([d.counts for d in dimensions], dtype=np.float64)
    shares = counts / counts.sum(axis=1, keepdims=True)
    tried = np.ma.masked_equal(shares, 0.0)
    axes.imshow(
        np.ma.log10(tried),
        cmap=SHADES,
        vmin=-5.0,
        vmax=-0.3,
        aspect="auto",
        interpolation="nearest",
        extent=(-1.0, 1.0, len(dimensions) - 0.5, -0.5),
    )
    # Too many names for their lines: every so many.
    step = -(-len(dimensions) // NAMED)
    places = range(0, len(dimensions), step)
    axes.set_yticks(places, [text(dimensions[i].name) for i in places])
    axes.grid(visible=False)
    axes.set_xlabel("darker: more often (log scale); white: never", fontsize=SMALL, color=MUTED)


def _panel(axes: Axes, title: str) -> None:
    dress(axes)
    axes.grid(visible=False, axis="y")
    axes.set_title(title, loc="left", fontsize=SMALL, color=INK)


def _words(name: str) -> str:
    return name.replace("_", " ")
