"""Pictures of learning: the course of a run's figures over its steps, runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from finflow_sb3.config import ANCHORS
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.plot_style import (
    COLOURS,
    DPI,
    INK,
    MUTED,
    PALETTE,
    POLICY,
    SMALL,
    dress,
    text,
    wide,
)

__all__ = ["PANELS", "Course", "learning_plots", "moving_mean"]

Float = NDArray[np.float64]

# Kind of run → figure → title of its panel.
PANELS = {
    "fine-tuning": {
        "return": "Training: reward of an episode",
        "net_sharpe": "Training: net Sharpe",
        "turnover": "Training: turnover a day",
        "validation/sharpe": "Validation: Sharpe",
        "validation/excess": "Validation: excess, a year",
        "entropy": "Entropy of the policy",
        "critic_loss": "Critic loss",
        "actor_loss": "Actor loss",
        "q_mean": "Mean Q",
        "gates": "Gates",
    },
    "pretraining": {
        "validation/sharpe": "Validation: Sharpe",
        "validation/excess": "Validation: excess, a year",
        "validation/turnover": "Validation: turnover a year",
        "q_loss": "Critic loss",
        "v_loss": "Value loss",
        "policy_loss": "Policy loss",
        "bc_loss": "Cloning loss",
        "gates": "Gates",
    },
}
UNITS = {"fine-tuning": "environment steps", "pretraining": "gradient steps"}
PERCENT = ("validation/excess", "turnover", "gates")
WITH_ZERO = ("return", "net_sharpe", "validation/sharpe", "validation/excess", "q_mean")
DASHES = ("-", (0, (4, 1.6)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))
SPREAD = 100.0
"""Positive figures whose largest is so many times their median are drawn on a log scale."""
STEPS = [1, 2, 2.5, 5, 10]
PALE = ("#332288", "#88ccee", "#ddcc77")
"""Colours of the palette that are too near to the first run's or to the paper's."""
ROW_HEIGHT = 1.75


@dataclass(frozen=True)
class Course:
    """The figures of one run over its steps.

    Attributes
    ----------
    name : how the run is called
    kind : "fine-tuning" or "pretraining"
    figures : name → (steps, values), those of gates as ``gates/<position>``
    events : steps at which something happened
    """

    name: str
    kind: str
    figures: Mapping[str, tuple[Sequence[int], Sequence[float]]]
    events: tuple[int, ...] = field(default=())

    def gates(self) -> list[str]:
        return [name for name in self.figures if name.startswith("gates/")]

    def has(self, panel: str) -> bool:
        names = self.gates() if panel == "gates" else [panel]
        return any(len(self.figures[name][0]) for name in names if name in self.figures)


def learning_plots(
    courses: Sequence[Course], width: float = 10.0, smooth: int = 1
) -> dict[str, Figure]:
    """For each kind of run a figure, with a panel for each figure that any run has.

    Parameters
    ----------
    width : inches; 10 for a page, about 4.6 for a telephone
    smooth : lines of the log in the moving mean; what it was made of is drawn faintly behind

    Raises
    ------
    DataError
        If no run has a figure yet.
    """
    drawn = {}
    for kind, panels in PANELS.items():
        own = [course for course in courses if course.kind == kind]
        names = [name for name in panels if any(course.has(name) for course in own)]
        if names:
            drawn[kind] = _figure(kind, names, own, width, smooth)
    if not drawn:
        raise DataError("nothing to draw: no figure is logged yet; wait for the run's first line")
    return drawn


def moving_mean(values: Sequence[float], count: int) -> Float:
    """Mean of each value and those before it, `count` in all where there are as many."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - count, 0)
    mean: Float = (total[ends] - total[starts]) / (ends - starts)
    return mean


def _figure(
    kind: str,
    names: Sequence[str],
    courses: Sequence[Course],
    width: float,
    smooth: int,
) -> Figure:
    colours = _colours(courses)
    columns = 3 if wide(width) else 1
    rows = -(-len(names) // columns)
    height = rows * ROW_HEIGHT + 0.45 + 0.2 * -(-len(courses) // columns)
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    title = f"{kind.capitalize()}, over {UNITS[kind]}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.0, color=INK)
    panels = _panels(figure, rows, columns, len(names))
    for axes, name in zip(panels, names, strict=True):
        dress(axes)
        axes.set_title(PANELS[kind][name], loc="left", fontsize=SMALL, color=INK)
        if name == "gates":
            _draw_gates(axes, courses, smooth)
        else:
            for course in courses:
                _draw(axes, course, name, colours[course.name], smooth)
        _scale(axes, name, courses)
        _mark_events(axes, courses, colours)
    _same_steps(panels)
    figure.legend(
        [Line2D([], [], color=colours[course.name], linewidth=2.0) for course in courses],
        [text(course.name) for course in courses],
        loc="outside lower left",
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        handlelength=1.6,
    )
    return figure


def _panels(figure: Figure, rows: int, columns: int, count: int) -> list[Axes]:
    """Places row by row; the last one has what is left of its row."""
    grid = figure.add_gridspec(rows, columns, hspace=0.08, wspace=0.04)
    places = [grid[i // columns, i % columns] for i in range(count - 1)]
    places.append(grid[rows - 1, (count - 1) % columns :])
    return [figure.add_subplot(place) for place in places]


def _same_steps(panels: Sequence[Axes]) -> None:
    """Let all panels begin and end at the same step: some figures start late."""
    limits = np.array([axes.get_xlim() for axes in panels])
    for axes in panels:
        axes.set_xlim(limits[:, 0].min(), limits[:, 1].max())


def _draw(axes: Axes, course: Course, name: str, colour: str, smooth: int) -> None:
    steps, values = course.figures.get(name, ((), ()))
    if not len(steps):
        return
    single = {"marker": "o", "markersize": 3.0} if len(steps) == 1 else {}
    if smooth > 1:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
        values = moving_mean(values, smooth)  # type: ignore[assignment]
    axes.plot(steps, values, color=colour, linewidth=1.5, **single)  # type: ignore[arg-type]
    if name == "validation/sharpe":
        best = int(np.argmax(course.figures[name][1]))
        height = course.figures[name][1][best]
        axes.plot(steps[best], height, marker="*", markersize=8, color=colour, zorder=6)


def _draw_gates(axes: Axes, courses: Sequence[Course], smooth: int) -> None:
    """A colour for each anchor, as in the report; the runs after the first are dashed."""
    named: dict[str, str] = {}
    for number, course in enumerate(courses):
        for k, key in enumerate(course.gates()):
            steps, values = course.figures[key]
            anchor = ANCHORS[k] if k < len(ANCHORS) else f"gate {k}"
            colour = COLOURS.get(anchor, PALETTE[k % len(PALETTE)])
            named[anchor] = colour
            axes.plot(
                steps,
                moving_mean(values, smooth),
                color=colour,
                linestyle=DASHES[number % len(DASHES)],
                linewidth=1.2,
                marker="o" if len(steps) == 1 else None,
                markersize=3.0,
            )
    axes.set_ylim(bottom=0.0)
    axes.legend(
        [Line2D([], [], color=colour, linewidth=2.0) for colour in named.values()],
        list(named),
        fontsize=SMALL - 2.0,
        ncols=2,
        frameon=False,
        labelcolor=MUTED,
        handlelength=1.0,
        columnspacing=1.0,
        labelspacing=0.2,
        loc="best",
    )


def _scale(axes: Axes, name: str, courses: Sequence[Course]) -> None:
    values = np.concatenate([np.asarray(c.figures.get(name, ((), ()))[1]) for c in courses])
    if name.endswith("loss") and len(values) and values.min() > 0.0:
        if values.max() > SPREAD * float(np.median(values)):
            axes.set_yscale("log")
    elif name in PERCENT:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g} %"))
    if name in WITH_ZERO and len(values) and values.min() <= 0.0 <= values.max():
        axes.axhline(0.0, color=MUTED, linewidth=0.8)
    if axes.get_yscale() == "linear":
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.02)


def _mark_events(axes: Axes, courses: Sequence[Course], colours: Mapping[str, str]) -> None:
    """Small marks along the upper edge: there may be many of them."""
    for course in courses:
        if not course.events:  # a line without points would have no place in the layout
            continue
        axes.plot(
            course.events,
            [1.0] * len(course.events),
            linestyle="none",
            marker="v",
            markersize=4.5,
            color=colours[course.name],
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )


def _colours(courses: Sequence[Course]) -> dict[str, str]:
    palette = (POLICY, *(c for c in PALETTE if c not in PALE))
    return {course.name: palette[i % len(palette)] for i, course in enumerate(courses)}
