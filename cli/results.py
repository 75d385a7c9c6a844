"""How the results of the stages are printed on stdout."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from finflow_sb3.cli.console import out, words
from finflow_sb3.cli.tables import figures_table
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.evaluation.report_numbers import number
from finflow_sb3.pipeline import Collected, Evaluated, Finetuned, Pretrained
from finflow_sb3.results import Backtested

__all__ = [
    "command",
    "show_backtested",
    "show_collected",
    "show_evaluated",
    "show_finetuned",
    "show_pretrained",
]

Measures = dict[str, dict[str, dict[str, float]]]
"""By curve, lag and measure."""

RETURNS = {
    "annual\nreturn": ("lag_0", "annual_return", "percent"),
    "vola-\ntility": ("lag_0", "volatility", "percent"),
    "Sharpe": ("lag_0", "sharpe", "ratio"),
    "Sharpe,\nlag 1": ("lag_1", "sharpe", "ratio"),
    "Sortino": ("lag_0", "sortino", "ratio"),
    "Calmar": ("lag_0", "calmar", "ratio"),
}
RISKS_AND_COSTS = {
    "max\ndrawdown": ("lag_0", "max_drawdown", "percent"),
    "CVaR\n5 %": ("lag_0", "cvar_95", "fine"),
    "turnover\na year": ("lag_0", "turnover", "times"),
    "costs\na year": ("lag_0", "cost_drag", "fine"),
    "win\nrate": ("lag_0", "win_rate", "percent"),
}
VALIDATION = {
    "Sharpe": ("sharpe", "ratio"),
    "log return above equal weight, a year": ("excess", "fine"),
    "annual return": ("annual_return", "percent"),
    "max drawdown": ("max_drawdown", "percent"),
    "turnover a year": ("turnover", "times"),
}
LOSSES = {"v_loss": "V loss", "q_loss": "Q loss", "policy_loss": "policy loss"}
WIDE = 120


def command(text: str, *paths: Path) -> str:
    """A command line with its paths quoted for the shell."""
    return " ".join(["finflow", text, *(shlex.quote(str(path)) for path in paths)])


def show_collected(collected: Collected) -> None:
    names = ("episodes", "transitions", "mean reward a step", "mean distance")
    table = figures_table("behaviour", *names)
    for name, (episodes, reward, distance) in collected.behaviours.items():
        counts = (f"{episodes:,}", f"{collected.transitions_of[name]:,}")
        table.add_row(
            Text(words(name)), *counts, number(reward, "plain"), number(distance, "plain")
        )
    out.print(table)
    _line(
        f"{collected.transitions:,} transitions in {collected.episodes:,} episodes: "
        f"{collected.path}"
    )
    if collected.path.suffix != ".npz":
        prices = collected.prices
        source = "" if prices == "us20" else f" --prices {shlex.quote(prices)}"
        _line(f"Next: {command('pretrain --dataset', collected.path)}{source}")


def show_pretrained(pretrained: Pretrained, flags: str = "") -> None:
    """Figures of a pretraining run, and what comes next.

    Parameters
    ----------
    flags : that fine-tuning takes too, each with a space before it
    """
    if not pretrained.untrained:
        _show_without_market(pretrained)
        return
    table = figures_table("validation, net of costs", f"epoch {pretrained.best_epoch}", "untrained")
    for name, (key, kind) in VALIDATION.items():
        figures = (pretrained.validation[key], pretrained.untrained[key])
        table.add_row(name, *(number(figure, kind) for figure in figures))
    lines = {
        "Run": str(pretrained.run),
        "Best epoch": str(pretrained.best_epoch),
        "Next": command(f"finetune{flags} --pretrained", pretrained.run),
    }
    _panel("Pretrained", table, lines)
    if pretrained.fqe is not None:
        _show_ranking(pretrained.fqe)


def _show_ranking(found: Ranking) -> None:
    by_sharpe = any(each.sharpe is not None for each in found.epochs)
    first = "best on validation" if by_sharpe else "last epochs"
    table = figures_table(first, "Sharpe", "value", "its error")
    for each in found.epochs:
        figures = (each.sharpe, each.value, each.error)
        cells = ("–" if x is None else number(x, "figure") for x in figures)
        table.add_row(f"epoch {each.epoch}", *cells)
    out.print(Text(f"Fitted Q evaluation, {found.steps:,} steps each, γ {found.gamma:g}"))
    out.print(table)
    out.print(Text(found.sentence()), width=min(out.width, 100))


def _show_without_market(pretrained: Pretrained) -> None:
    table = figures_table("held-out episodes", f"epoch {pretrained.best_epoch}")
    for name, loss in pretrained.validation.items():
        table.add_row(LOSSES[name], number(loss, "plain"))
    _panel("Pretrained", table, {"Run": str(pretrained.run)})
    if pretrained.fqe is not None:
        _show_ranking(pretrained.fqe)


def show_finetuned(finetuned: Finetuned) -> None:
    table = figures_table("validation, net of costs", "last")
    for name, (key, kind) in VALIDATION.items():
        table.add_row(name, number(finetuned.validation[key], kind))
    lines = {"Run": str(finetuned.run), "Steps": f"{finetuned.steps:,}"}
    if finetuned.best is not None:
        lines["Best validation Sharpe"] = number(finetuned.best, "ratio")
    if finetuned.stopped is not None:
        lines["Ended early"] = finetuned.stopped
    lines["Stability"] = _stability(finetuned.stability)
    if (finetuned.run / "best").is_dir():
        lines["Next"] = command("evaluate", finetuned.run)
    _panel("Fine-tuned", table, lines)


def show_plain(trained: Finetuned) -> None:
    """The run of one of SB3's own algorithms."""
    _line(f"Run: {trained.run}")
    best = "" if trained.best is None else f", best validation Sharpe {trained.best:.2f}"
    _line(f"Steps: {trained.steps:,}{best}")


def _stability(checks: dict[str, dict[str, Any]]) -> str:
    """Which checks warned, how often, and their worst figures."""
    if not checks:
        return "not watched"
    warned = [
        f"{name} {found['warnings']} × (worst {found['worst']:.4g})"
        for name, found in checks.items()
        if found["warnings"]
    ]
    return f"warnings: {', '.join(warned)}" if warned else f"no warnings, {len(checks)} checks"


def show_evaluated(evaluated: Evaluated) -> None:
    _tell_period("Test split", evaluated.dates)
    _show_measures(evaluated.measures, evaluated.policy)
    for each in evaluated.break_even:
        name, answer = each.fact()
        out.print(Text(f"{name[0].upper()}{name[1:]}: {answer}"))
    _show_notes(evaluated.notes)
    out.print(Text(evaluated.verdict))
    _line(f"Report: {evaluated.report}")


def show_backtested(found: Backtested) -> None:
    period = "All usable days" if found.split == "all" else f"{found.split.capitalize()} split"
    _tell_period(period, found.dates)
    _show_measures(found.measures, None)
    _show_notes(found.notes)


def _tell_period(what: str, dates: tuple[str, str]) -> None:
    out.print(Text(f"{what}, {dates[0]} to {dates[1]}, net of costs:"))


def _show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        out.print(Text(note), width=min(out.width, 100))


def _show_measures(found: Measures, policy: str | None) -> None:
    """One wide table, or two narrow ones; a row for each curve, the policy's first and bold."""
    sets = [RETURNS | RISKS_AND_COSTS] if out.width >= WIDE else [RETURNS, RISKS_AND_COSTS]
    for columns in sets:
        table = figures_table("", *columns)
        for name in sorted(found, key=lambda name: name != policy):
            cells = (number(found[name][lag][key], kind) for lag, key, kind in columns.values())
            own = name == policy
            style = "bold cyan" if own else ""
            table.add_row(label(name), *cells, style=style, end_section=own)
        out.print(table)


def _panel(title: str, table: Table, lines: dict[str, str]) -> None:
    """A frame where it fits; a path that would be cut by it stands on lines of its own."""
    width = max(map(len, lines)) + 2
    rows = [f"{name + ':':<{width}}{text}" for name, text in lines.items()]
    if max(map(len, rows)) + 4 <= out.width:
        body: Iterable[RenderableType] = [table, *(Text(row) for row in rows)]
        out.print(Panel.fit(Group(*body), title=title, title_align="left"))
        return
    out.print(table)
    for row in rows:
        _line(row)


def _line(text: str) -> None:
    out.print(Text(text), soft_wrap=True)
