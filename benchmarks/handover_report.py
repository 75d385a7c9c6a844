"""Tables and picture of `handover.py`'s results.

Intervals are Student's t at 95 % over the seeds; changes and differences are paired by seed, and
no correction is made for their number. Regret is Cal-QL's cumulative regret (Nakamoto et al. 2023,
section 3), the mean over the online steps of how far a policy is below the best, here in the
figure's own unit: the best is the highest value that any variant of the file reaches with any seed
at any point, the curve is linear between points. "Below start" is the same against the policy's own
value at step 0, where what lies above it counts as none. A Sharpe ratio's are ratios, a
return's are percentage points a year.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.stats import t as student

from finflow_sb3.evaluation import plot_style as style
from finflow_sb3.files import write_whole

Float = NDArray[np.float64]

# Figure → its title, what it is multiplied by, and its digits.
FIGURES = {
    "annual_return": ("Annual return, net, %", 100.0, 2),
    "sharpe": ("Sharpe ratio, net", 1.0, 3),
}
TITLES = {
    "packaged": "Packaged settings",
    "no pull": "Without the pull to the anchors' average (prior_coef 0)",
    "no pull, 4 updates": "Without the pull, four updates where there was one",
}
SHORT = {"annual_return": "return", "sharpe": "Sharpe"}
UNITS = {"annual_return": "return, points a year", "sharpe": "Sharpe ratio"}
BASE = "naive"
SINGLE = ("warm-up", "mixing", "floor", "small α")


@dataclass(frozen=True)
class Curves:
    """One figure of one variant in one panel.

    Attributes
    ----------
    points : steps asked for, [P]
    steps : steps at which they were met, [P]
    updates : made by then, [P]
    seeds : whose curves these are, [S]
    values : [S, P]
    """

    points: tuple[int, ...]
    steps: Float
    updates: tuple[int, ...]
    seeds: tuple[int, ...]
    values: Float

    @property
    def changes(self) -> Float:
        """Since step 0, [S, P]."""
        return self.values - self.values[:, :1]


def interval(values: Float) -> tuple[Float, Float]:
    """Mean over the first dimension and half of its 95 % interval; nan with one seed."""
    count = len(values)
    if count < 2:
        return values.mean(axis=0), np.full(values.shape[1:], np.nan)
    spread = values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0), student.ppf(0.975, count - 1) * spread


def mean_shortfall(steps: Float, values: Float, reference: Float | float) -> Float:
    """Mean over the steps of what each curve is below the reference, [S]; over it counts as 0."""
    below = np.maximum(np.asarray(reference) - values, 0.0)
    return np.asarray(np.trapezoid(below, steps, axis=1) / (steps[-1] - steps[0]))


def panels(records: list[dict[str, Any]], figure: str) -> dict[str, dict[str, Curves]]:
    """Panel → variant → its curves, in the order in which they were first measured."""
    cells: dict[str, dict[str, dict[int, list[dict[str, Any]]]]] = {}
    for record in records:
        if record["panel"] is not None:
            panel = cells.setdefault(record["panel"], {})
            panel.setdefault(record["variant"], {})[record["seed"]] = record["points"]
    return {
        panel: {variant: _curves(of, figure) for variant, of in variants.items()}
        for panel, variants in cells.items()
    }


def _curves(of: dict[int, list[dict[str, Any]]], figure: str) -> Curves:
    seeds = tuple(sorted(of))
    scale, first = FIGURES[figure][1], of[seeds[0]]
    return Curves(
        points=tuple(point["point"] for point in first),
        steps=np.array([point["step"] for point in first], dtype=np.float64),
        updates=tuple(point["updates"] for point in first),
        seeds=seeds,
        values=scale * np.array([[point[figure] for point in of[seed]] for seed in seeds]),
    )


# ---------------------------------------------------------------- tables


def tables(records: list[dict[str, Any]]) -> str:
    """Markdown: levels, changes and regret of every panel and figure."""
    lines: list[str] = []
    for figure, (title, scale, digits) in FIGURES.items():
        found = panels(records, figure)
        best = max(float(c.values.max()) for panel in found.values() for c in panel.values())
        for panel, variants in found.items():
            lines += ["", f"**{TITLES[panel]}. {title}** (best of all: {best:.{digits}f})", ""]
            lines += _levels(variants, digits)
            lines += ["", *_changes(variants, best, digits), "", *_dips(variants)]
        lines += ["", _starts(records, figure, scale, digits)]
    for panel in found:
        lines += ["", f"**{TITLES[panel]}. Inside, at the last point, mean of the seeds**", ""]
        lines += _inside([record for record in records if record["panel"] == panel])
    return "\n".join(lines)


def _levels(variants: dict[str, Curves], digits: int) -> Iterator[str]:
    points = next(iter(variants.values())).points
    yield "| variant | seeds | " + " | ".join(f"{point:,}" for point in points) + " | updates |"
    yield "|---|---:|" + "---:|" * (len(points) + 1)
    for name, curves in variants.items():
        cells = " | ".join(plain(*pair, digits) for pair in columns(curves.values))
        yield f"| {name} | {len(curves.seeds)} | {cells} | {curves.updates[-1]:,} |"


def _changes(variants: dict[str, Curves], best: float, digits: int) -> Iterator[str]:
    points = next(iter(variants.values())).points[1:]
    heads = " | ".join(f"to {point:,}" for point in points)
    yield f"| variant | {heads} | below start | regret | regret − naive's |"
    yield "|---|" + "---:|" * (len(points) + 3)
    regrets = {
        name: mean_shortfall(curves.steps, curves.values, best) for name, curves in variants.items()
    }
    for name, curves in variants.items():
        cells = [signed(*pair, digits) for pair in columns(curves.changes[:, 1:])]
        below = mean_shortfall(curves.steps, curves.values, curves.values[:, :1])
        cells += [plain(*interval(below), digits), plain(*interval(regrets[name]), digits)]
        cells.append(_against(variants, regrets, name, digits))
        yield f"| {name} | {' | '.join(cells)} |"


def _against(variants: dict[str, Curves], regrets: dict[str, Float], name: str, digits: int) -> str:
    """What a variant's regret is over the naive one's, over the seeds that both have."""
    if name == BASE or BASE not in variants:
        return ""
    naive = dict(zip(variants[BASE].seeds, regrets[BASE], strict=True))
    own = dict(zip(variants[name].seeds, regrets[name], strict=True))
    pairs = [own[seed] - naive[seed] for seed in own if seed in naive]
    return signed(*interval(np.array(pairs)), digits) if pairs else ""


def _dips(variants: dict[str, Curves]) -> Iterator[str]:
    """Where a change lies beyond its interval."""
    for word, side in (("Below", -1.0), ("Above", 1.0)):
        found = []
        for name, curves in variants.items():
            beyond = [
                f"{point:,}"
                for point, (mean, half) in zip(curves.points, columns(curves.changes), strict=True)
                if side * mean > half
            ]
            found += [f"{name} at {', '.join(beyond)}"] if beyond else []
        yield f"{word} the start beyond the interval: {'; '.join(found) or 'none'}."


def _starts(records: list[dict[str, Any]], figure: str, scale: float, digits: int) -> str:
    """What the seeds start from, and what the anchors' average itself has."""
    runs = [record for record in records if record["panel"] is None]
    seeded = scale * np.array([run["validation"][figure] for run in runs])
    average = scale * np.array([run["untrained"][figure] for run in runs])
    ahead = signed(*interval(seeded - average), digits)
    level = f"{average.mean():.{digits}f}"
    return f"{SHORT[figure]} of the anchors' average {level}, of the pretrained policy {ahead} more"


def _inside(records: list[dict[str, Any]]) -> Iterator[str]:
    """What the updates themselves log; entropy also at the first point with updates."""
    yield "| variant | entropy coefficient | entropy, first | entropy | mean Q | critic loss |"
    yield "|---|---:|---:|---:|---:|---:|"
    names = ("ent_coef", "entropy", "q_mean", "critic_loss")
    for variant in dict.fromkeys(record["variant"] for record in records):
        courses = [record["points"] for record in records if record["variant"] == variant]
        logged = [[point for point in course if "entropy" in point] for course in courses]
        if not all(logged):
            continue
        first = np.mean([course[0]["entropy"] for course in logged])
        last = [np.mean([course[-1][name] for course in logged]) for name in names]
        cells = f"{last[0]:.3f} | {first:.1f} | {last[1]:.1f} | {last[2]:.1f} | {last[3]:.2f}"
        yield f"| {variant} | {cells.replace('-', '−')} |"


def columns(values: Float) -> list[tuple[float, float]]:
    mean, half = interval(values)
    return [(float(m), float(h)) for m, h in zip(mean, half, strict=True)]


def plain(mean: Float | float, half: Float | float, digits: int) -> str:
    return f"{float(mean):.{digits}f} ± {float(half):.{digits}f}"


def signed(mean: Float | float, half: Float | float, digits: int) -> str:
    shown = f"{round(float(mean), digits) or 0.0:+.{digits}f} ± {float(half):.{digits}f}"
    return shown.replace("-", "−")


# ---------------------------------------------------------------- picture


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Changes since step 0: a row for each panel and figure, a column for each variant."""
    found = {figure: panels(records, figure) for figure in FIGURES}
    rows = [(panel, figure) for panel in found["annual_return"] for figure in FIGURES]
    names = [name for name in next(iter(found["annual_return"].values())) if name != BASE]
    size = (10.0, 1.2 + 1.6 * len(rows))
    figure = Figure(figsize=size, dpi=style.DPI, layout="constrained", facecolor="white")
    title = "Validation after the hand-over: change since step 0, over environment steps"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11.0, color=style.INK)
    grid = figure.subplots(len(rows), len(names), sharex=True, sharey="row", squeeze=False)
    for line, (panel, of) in zip(grid, rows, strict=True):
        line[0].set_title(" ", fontsize=style.SMALL)  # its height is the heading's
        _heading(line[0], f"{TITLES[panel]}: {UNITS[of]}")
        for axes, name in zip(line, names, strict=True):
            _cell(axes, found[of][panel], name)
    for axes, name in zip(grid[-1], names, strict=True):
        _steps_axis(axes)
        shown = f"naive + {name}" if name in SINGLE else name
        axes.set_xlabel(shown, fontsize=style.SMALL, color=style.INK)
    handles = [_handle(style.POLICY, "-"), _handle(style.NEXT, "--")]
    texts = ["this variant: mean, 95 % interval, each seed", "naive: mean, 95 % interval"]
    style.legend(figure, handles, texts, beside=False)
    write_whole(path, style.png_bytes(figure))


def _heading(axes: Axes, text: str) -> None:
    """Text over a row, which a title would widen the first column for."""
    place = {"xycoords": "axes fraction", "annotation_clip": False}
    note = axes.annotate(text, (0.0, 1.05), fontsize=style.SMALL, color=style.INK, **place)
    note.set_in_layout(False)


def _cell(axes: Axes, variants: dict[str, Curves], name: str) -> None:
    style.dress(axes)
    axes.axhline(0.0, color=style.MUTED, linewidth=0.8, zorder=1)
    if BASE in variants:
        _line(axes, variants[BASE], style.NEXT, "--")
    if name in variants:
        curves = variants[name]
        axes.plot(curves.steps, curves.changes.T, color=style.POLICY, linewidth=0.5, alpha=0.5)
        _line(axes, curves, style.POLICY, "-")


def _line(axes: Axes, curves: Curves, colour: str, dash: str) -> None:
    mean, half = interval(curves.changes)
    axes.fill_between(curves.steps, mean - half, mean + half, color=colour, alpha=0.22, lw=0)
    axes.plot(curves.steps, mean, color=colour, linestyle=dash, marker="o", ms=2.5, lw=1.7)


def _handle(colour: str, dash: str) -> Line2D:
    return Line2D([], [], color=colour, linestyle=dash, marker="o", markersize=2.5, linewidth=1.7)


def _steps_axis(axes: Axes) -> None:
    """Roots of the steps: the first thousands are what is looked at."""
    axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    axes.set_xticks([0, 2_000, 5_000, 20_000], ["0", "2k", "5k", "20k"])
