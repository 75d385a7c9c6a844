"""Pictures of a study: its history, which settings mattered, their slices, the Pareto front."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg", force=False)

import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from optuna.trial import FrozenTrial, TrialState

from finflow_sb3.evaluation.plot_style import INK, MUTED, POLICY
from finflow_sb3.files import write_whole

__all__ = ["draw_study"]

DPI = 130
COLUMNS = 4
# Importance is a forest's: of fewer trials it says nothing.
ENOUGH = 4
Draw = Callable[..., Any]


def draw_study(
    study: optuna.Study, objectives: Sequence[str], names: Sequence[str], out: Path
) -> list[Path]:
    """Write PNG files of what a study knows; with several objectives some for each.

    Parameters
    ----------
    names : settings of the space, the most important first
    """
    from optuna.visualization import matplotlib as drawn

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    varied = [n for n in names if len({str(t.params.get(n)) for t in complete}) > 1]
    several = len(objectives) > 1
    found: list[Path] = []
    for i, objective in enumerate(objectives):
        about: dict[str, Any] = {"target_name": objective}
        if several:
            about["target"] = lambda trial, i=i: trial.values[i]
        end = f"_{objective}" if several else ""
        history = drawn.plot_optimization_history
        found.append(_saved(_figure(history, study, about), out / f"history{end}.png"))
        if len(complete) >= ENOUGH and varied:
            figure = _figure(drawn.plot_param_importances, study, {**about, "params": varied})
            found.append(_saved(figure, out / f"importance{end}.png"))
            figure = _slices(complete, varied, i, objective)
            found.append(_saved(figure, out / f"slices{end}.png"))
    if len(objectives) in (2, 3):
        about = {"target_names": list(objectives)}
        found.append(_saved(_figure(drawn.plot_pareto_front, study, about), out / "front.png"))
    return found


def _figure(draw: Draw, study: optuna.Study, about: dict[str, Any]) -> Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna's drawings are "experimental"
        axes = np.ravel(np.asarray(draw(study, **about), dtype=object))
    figure: Figure = axes[0].figure
    return figure


def _slices(
    complete: Sequence[FrozenTrial], names: Sequence[str], index: int, objective: str
) -> Figure:
    """A small picture for each setting: its value against the objective, later trials darker."""
    rows = ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(11.0, 2.6 * rows), dpi=DPI, layout="constrained")
    axes = np.ravel(figure.subplots(rows, COLUMNS, sharey=True, squeeze=False))
    order = np.linspace(0.25, 1.0, len(complete))
    reached = [trial.values[index] for trial in complete]
    for axis, name in zip(axes, names, strict=False):
        each = complete[0].distributions[name]
        values = [trial.params[name] for trial in complete]
        axis.set_facecolor("white")
        if isinstance(each, optuna.distributions.CategoricalDistribution):
            values = [each.choices.index(value) for value in values]
            axis.set_xticks(range(len(each.choices)), [str(c) for c in each.choices])
        elif getattr(each, "log", False):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.scatter(values, reached, s=18, color=POLICY, alpha=order, linewidths=0)
        axis.set_title(name, fontsize=9, color=INK, loc="left")
        axis.tick_params(labelsize=8, colors=MUTED, which="both")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.supylabel(objective, fontsize=9, color=MUTED)
    return figure


def _saved(figure: Figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, bbox_inches="tight", format="png")
    plt.close("all")
    write_whole(path, buffer.getvalue())
    return path
