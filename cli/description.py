"""How a dataset's description is printed. Import it after `silence_gym_notice`."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table
from rich.text import Text

from finflow_sb3.cli.console import out, words
from finflow_sb3.offline.coverage import ActionCoverage, Dimension
from finflow_sb3.offline.describe import Behaviour, Description

__all__ = ["show_description"]

SHOWN = 40
SIZES = ("bytes", "kB", "MB", "GB", "TB")


def show_description(found: Description) -> None:
    """What it is, its rules, its actions, and what it can hardly teach; its tables have at most 80
    columns.
    """
    for line in _head(found):
        _line(line)
    _line("")
    _line("Rewards of the rules", "bold")
    _line(f"{found.reward or 'of a kind that the file does not say'}; a year is 252 steps")
    out.print(_returns(found))
    _line("Trades, and how far from what the rules wanted", "bold")
    out.print(_trades(found))
    for line in _trade_notes(found):
        _line(line)
    _line("")
    _line("Actions tried", "bold")
    out.print(_actions(found.coverage))
    for line in _coverage_lines(found.coverage):
        _line(line)
    if found.warnings:
        _line("")
    for warning in found.warnings:
        out.print(Text(f"Warning: {warning}", "yellow"), width=min(out.width, 100))


def _head(found: Description) -> list[str]:
    span = f"market rows {found.first_row:,} to {found.last_row:,}"
    if found.first_date is not None:
        span = f"{found.first_date} to {found.last_date} ({span})"
    few = ", ".join(found.assets[:8]) + (", …" if len(found.assets) > 8 else "")
    place = "" if found.path is None else f"{found.path}: "
    size = "" if found.size is None else f", {_size(found.size)}"
    return [
        f"{place}{found.transitions:,} transitions in {found.episodes:,} episodes{size}",
        f"{span}; {len(found.assets)} assets: {few}",
        f"ended by time: {found.timeouts:,} (timeouts); by ruin: {found.terminals:,} (terminals)",
    ]


def _size(size: float) -> str:
    power = 0
    while size >= 1000 and power < len(SIZES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.3g} {SIZES[power]}"


def _count(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f} M"


def _returns(found: Description) -> Table:
    names = ("episodes", "steps", "a step", "a\nyear", "5 %", "median", "95 %")
    table = _table("rule", *names)
    for b in found.behaviours:
        year = b.annual_reward
        figures = (year.mean, year.q05, year.median, year.q95)
        cells = [f"{b.episodes:,}", _count(b.transitions), f"{b.reward:.4f}"]
        table.add_row(_words(b.name), *cells, *(f"{figure:.2f}" for figure in figures))
    return table


def _trades(found: Description) -> Table:
    names = ("turnover\na day", "95 %", "rule to\naction", "median", "95 %")
    table = _table("rule", *names, "action to\nexecuted", "rule to\nexecuted")
    for b in found.behaviours:
        distance = b.distance
        cells = [f"{x:.3f}" for x in (distance.mean, distance.median, distance.q95)]
        table.add_row(_words(b.name), *_turnover(b), *cells, *_gaps(b))
    return table


def _turnover(behaviour: Behaviour) -> tuple[str, ...]:
    found = behaviour.turnover
    if found is None:
        return ("–",) * 2
    return tuple(f"{x:.2%}" for x in (found.mean, found.q95))


def _gaps(behaviour: Behaviour) -> tuple[str, str]:
    gap = "–" if behaviour.gap is None else f"{behaviour.gap.mean:.3f}"
    bounds = behaviour.rule_gap
    return gap, "–" if bounds is None else f"{bounds[0]:.2f}–{bounds[1]:.2f}"


def _trade_notes(found: Description) -> list[str]:
    if all(b.turnover is None for b in found.behaviours):
        return ["The file does not say in which environment it was collected: trades are unknown."]
    return [
        "Turnover: buys plus sells, worked out from stored weights and actions. Distances: half",
        "the sum of |differences of weights|; the last one's mean is known to lie in bounds only.",
    ]


def _actions(coverage: ActionCoverage) -> Table:
    names = ("min", "5 %", "median", "95 %", "max", "at the\nclip", "bins\nvisited")
    table = _table("dimension", *names)
    shown = coverage.dimensions
    if len(shown) > SHOWN:
        shown = tuple(sorted(shown, key=lambda d: d.visited)[:SHOWN])
    for dimension in shown:
        table.add_row(Text(dimension.name), *_dimension(dimension))
    return table


def _dimension(dimension: Dimension) -> list[str]:
    s = dimension.spread
    figures = [f"{x:.2f}" for x in (s.minimum, s.q05, s.median, s.q95, s.maximum)]
    return [*figures, f"{dimension.at_limit:.1%}", f"{dimension.visited:.0%}"]


def _coverage_lines(coverage: ActionCoverage) -> list[str]:
    count = len(coverage.dimensions)
    lines = [
        f"95 % of the variance lies along {coverage.components} of {count} principal components; "
        f"participation ratio {coverage.participation:.1f}",
    ]
    if not math.isnan(coverage.neighbour):
        lines.append(
            f"nearest neighbour in a sample of {coverage.sample:,}: {coverage.neighbour:.3f} away, "
            f"{coverage.neighbour_uniform:.3f} if drawn uniformly (root mean square)"
        )
    if count > SHOWN:
        lines.insert(0, f"The {SHOWN} least visited of {count} dimensions; --json has all.")
    return lines


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", vertical="bottom", no_wrap=True)
    return table


def _words(name: str) -> Text:
    return Text(words(name))


def _line(line: str, style: str = "") -> None:
    out.print(Text(line, style), soft_wrap=True)
