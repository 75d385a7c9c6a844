"""Pictures of a benchmark: curves of median seeds, Sharpe ratios by seed, performance profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.summary import EQUAL_WEIGHT, Summary, median_seed
from finflow_sb3.evaluation.aggregate import performance_profile
from finflow_sb3.evaluation.plot_style import (
    INK,
    MUTED,
    PALETTE,
    POLICY,
    SMALL,
    canvas,
    label,
    legend,
    png_bytes,
    text,
)
from finflow_sb3.evaluation.plots import equity_plot

__all__ = ["pictures"]

WIDTH = 10.0


def pictures(results: Sequence[CellResult], summaries: Sequence[Summary]) -> dict[str, bytes]:
    """PNG files by name, three for each market."""
    out: dict[str, bytes] = {}
    for market in dict.fromkeys(r.market for r in results):
        mine = [r for r in results if r.market == market]
        ranked = [s for s in summaries if s.market == market]
        groups = {s.algo: [r for r in mine if r.algo == s.algo] for s in ranked}
        out[f"equity-{market}.png"] = png_bytes(_equity(groups))
        out[f"sharpe-{market}.png"] = png_bytes(_sharpe(ranked, groups))
        out[f"profile-{market}.png"] = png_bytes(_profile(groups))
    return out


def shown(algo: str) -> str:
    """The name of its curve, which has a colour."""
    return "anchors' average" if algo == "anchors" else algo


def _equity(groups: dict[str, list[CellResult]]) -> Figure:
    """The best learned algorithm first, which the picture shows above the others."""
    algos = sorted(groups, key=lambda a: (a == EQUAL_WEIGHT, not groups[a][0].policy))
    curves = [dataclasses.replace(median_seed(groups[a]).curve(), name=shown(a)) for a in algos]
    return equity_plot(curves, WIDTH)


def _sharpe(ranked: Sequence[Summary], groups: dict[str, list[CellResult]]) -> Figure:
    figure, axes = canvas(WIDTH, "Sharpe ratio on the test split, net of costs, seed by seed")
    axes.grid(axis="y", visible=False)
    equal = next((s.sharpe.value for s in ranked if s.algo == EQUAL_WEIGHT), None)
    if equal is not None:
        axes.axvline(equal, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
    for place, summary in enumerate(reversed(ranked)):
        found = summary.sharpe
        axes.plot([found.low, found.high], [place, place], color=MUTED, linewidth=2.4, alpha=0.6)
        sharpes = [r.measures["lag_0"]["sharpe"] for r in groups[summary.algo]]
        axes.plot(sharpes, [place] * len(sharpes), "o", markersize=4.5, color=POLICY, alpha=0.55)
        axes.plot([found.value], [place], "|", markersize=13, markeredgewidth=2.0, color=INK)
    axes.set_yticks(range(len(ranked)), [text(label(shown(s.algo))) for s in reversed(ranked)])
    axes.tick_params(axis="y", labelsize=SMALL, labelcolor=INK)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    note = "dots: seeds; bar: interquartile mean with its interval; dashed line: equal weight"
    axes.set_xlabel(note, fontsize=SMALL, color=MUTED)
    return figure


def _profile(groups: dict[str, list[CellResult]]) -> Figure:
    """Share of seeds above a Sharpe ratio (Agarwal et al. 2021)."""
    figure, axes = canvas(WIDTH, "Share of seeds whose net Sharpe ratio is above a threshold")
    scores = {a: [[r.measures["lag_0"]["sharpe"]] for r in group] for a, group in groups.items()}
    every = np.concatenate([np.ravel(s) for s in scores.values()])
    margin = 0.05 + 0.1 * float(np.ptp(every))
    marks = np.linspace(every.min() - margin, every.max() + margin, 200)
    handles, names = [], []
    for i, (algo, found) in enumerate(scores.items()):
        ink = INK if algo == EQUAL_WEIGHT else PALETTE[i % len(PALETTE)]
        profile = performance_profile(found, marks)
        rule = not groups[algo][0].policy
        style = (0, (3, 1.5)) if rule else "-"
        (line,) = axes.step(marks, profile.share, color=ink, linestyle=style, where="post")
        if len(found) > 1:
            axes.fill_between(
                marks, profile.low, profile.high, color=ink, alpha=0.12, linewidth=0, step="post"
            )
        handles.append(line)
        names.append(text(label(shown(algo))))
    axes.set_xlabel("Sharpe ratio", fontsize=SMALL, color=MUTED)
    axes.set_ylim(-0.02, 1.02)
    legend(figure, handles, names, beside=True)
    return figure
