"""How `finflow watch` shows a snapshot of a run."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finflow_sb3.checks import Level
from finflow_sb3.config import ANCHORS
from finflow_sb3.runs.snapshot import CheckpointFile, Snapshot

__all__ = ["watch_table"]

STATES = {
    "running": ("running", "bold green"),
    "finished": ("finished", "bold green"),
    "stopped": ("stopped, can go on with --resume", "bold yellow"),
    "failed": ("failed", "bold red"),
    "gone": ("not running any more: process gone", "bold red"),
    "unknown": ("state not known: the run has written no status.json", "bold yellow"),
}
LEVELS: dict[Level | None, str] = {
    "ok": "green",
    "notice": "yellow",
    "warning": "bold red",
    None: "",
}
# Name in metrics.jsonl → how it is called here, and its format.
FIGURES = {
    "return": ("episode reward", "{:.2f}"),
    "net_return": ("net return", "{:.1%}"),
    "net_sharpe": ("net Sharpe", "{:.2f}"),
    "turnover": ("turnover, day", "{:.2%}"),
    "critic_loss": ("critic loss", "{:.4g}"),
    "actor_loss": ("actor loss", "{:.4g}"),
    "q_mean": ("mean Q", "{:.3g}"),
    "entropy": ("entropy", "{:.3g}"),
    "policy_width": ("policy width", "{:.2g}"),
    "ent_coef": ("entropy coef.", "{:.3g}"),
    "cql_penalty": ("CQL penalty", "{:.3g}"),
    "effective_experts": ("effective experts", "{:.2f}"),
    "effective_assets": ("effective assets", "{:.1f}"),
    "no_trade_days": ("days without trade", "{:.0f}"),
    "v_loss": ("value loss", "{:.4g}"),
    "q_loss": ("critic loss", "{:.4g}"),
    "policy_loss": ("policy loss", "{:.4g}"),
    "bc_loss": ("cloning loss", "{:.4g}"),
}
VALIDATION = {
    "sharpe": ("Sharpe", "{:.3f}"),
    "excess": ("excess, year", "{:.2%}"),
    "annual_return": ("annual return", "{:.1%}"),
    "max_drawdown": ("max drawdown", "{:.1%}"),
    "turnover": ("turnover, year", "{:.1f}×"),
}
WIDEST = 110
SIDE_BY_SIDE = 78
CHECKPOINTS = 4
GATE = 12


def watch_table(snapshot: Snapshot, width: int) -> RenderableType:
    """The snapshot as it fits into `width` columns."""
    width = min(width, WIDEST)
    left = [_training(snapshot), *_gates(snapshot)]
    right = [*_validation(snapshot), *_checkpoints(snapshot)]
    body: list[RenderableType] = [*_head(snapshot, width - 4), Text()]
    if width >= SIDE_BY_SIDE:
        columns = Table.grid(padding=(0, 2, 0, 0))
        columns.add_row(_spaced(left), _spaced(right))
        body.append(columns)
    else:
        body.append(_spaced([*left, *right]))
    body += _events(snapshot)
    return Panel(Group(*body), title=Text(str(snapshot.run)), title_align="left", width=width)


def _spaced(parts: list[RenderableType]) -> RenderableType:
    """With an empty line between them."""
    return Group(*(part for one in parts for part in (one, Text()))) if parts else Text()


def _head(snapshot: Snapshot, width: int) -> Iterable[RenderableType]:
    said, style = STATES[snapshot.state]
    line = Text.assemble((said, style))
    if snapshot.stage is not None:
        line = Text.assemble((f"{snapshot.stage.capitalize()}: ", "bold"), line)
    yield line
    if snapshot.pid is not None:
        updated = _seconds_since(snapshot.updated)
        started = _seconds_since(snapshot.started)
        yield Text(
            f"process {snapshot.pid} on {snapshot.host}, started {_age(started)} ago, "
            f"heard of {_age(updated)} ago",
            "dim",
        )
    if snapshot.step is not None and snapshot.total:
        counts = f"{snapshot.step:,} / {snapshot.total:,}"
        if snapshot.steps_per_second is not None:
            counts += f"  {snapshot.steps_per_second:,.0f} steps/s"
        if snapshot.seconds_left is not None:
            left = datetime.timedelta(seconds=round(snapshot.seconds_left))
            counts += f"  {left} left"
        bar = Table.grid(padding=(0, 1, 0, 0))
        room = max(8, width - len(counts) - 2)
        done = ProgressBar(total=snapshot.total, completed=snapshot.step, width=min(room, 50))
        bar.add_row(done, counts)
        yield bar


def _training(snapshot: Snapshot) -> RenderableType:
    if snapshot.logged is None:
        return Text("Nothing is logged yet.", "dim")
    table = _table("training", f"{snapshot.logged:,}", "normal")
    for name, figure in snapshot.figures.items():
        called, form = FIGURES[name]
        value = _marked(_shown(figure.value, form), figure.level)
        table.add_row(called, value, Text(figure.normal, "dim"))
    return table


def _marked(shown: str, level: Level | None) -> Text:
    """In the colour of its level, which marks tell too where there are no colours."""
    marks = {"notice": "! ", "warning": "!! "}.get(level or "", "")
    return Text(marks + shown, LEVELS[level])


def _validation(snapshot: Snapshot) -> Iterable[RenderableType]:
    last, best = snapshot.validation, snapshot.best
    if last is None:
        return
    table = _table("validation", f"{last['step']:,}", f"best {best['step']:,}" if best else "")
    # Without a market a run is judged by its losses on what was held out.
    held_out = {name: form for name, form in FIGURES.items() if name in last}
    for name, (called, form) in (VALIDATION if "sharpe" in last else held_out).items():
        value = _marked(
            _shown(last.get(name), form), snapshot.validation_level if name == "sharpe" else None
        )
        table.add_row(called, value, _shown(best.get(name), form) if best else "")
    yield table


def _gates(snapshot: Snapshot) -> Iterable[RenderableType]:
    if not snapshot.gates:
        return
    table = _table("gates", "", "")
    for k, gate in enumerate(snapshot.gates):
        name = ANCHORS[k] if k < len(ANCHORS) else f"gate {k}"
        bar = ProgressBar(total=1.0, completed=gate, width=GATE)
        table.add_row(name, f"{gate:.0%}", bar)
    yield table


def _checkpoints(snapshot: Snapshot) -> Iterable[RenderableType]:
    shown = snapshot.checkpoints[:CHECKPOINTS]
    shown += tuple(c for c in snapshot.checkpoints[CHECKPOINTS:] if c.best)
    if not shown:
        return
    table = _table("checkpoints", "age", "")
    for checkpoint in shown:
        table.add_row(f"{checkpoint.step:,}", _age(checkpoint.age), _marks(checkpoint))
    yield table


def _marks(checkpoint: CheckpointFile) -> Text:
    marks = [name for name in ("latest", "best") if getattr(checkpoint, name)]
    return Text(", ".join(marks), "green" if checkpoint.best else "")


def _events(snapshot: Snapshot) -> Iterable[RenderableType]:
    if not snapshot.events:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("events", justify="right", no_wrap=True)
    table.add_column("")
    for event in snapshot.events:
        parts = (event.get("check"), event.get("action"), event.get("message"))
        said = ": ".join(str(part) for part in parts if part is not None)
        table.add_row(f"{event['step']:,}", Text(said, "yellow"))
    yield table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    table.add_column(others[0], justify="right", no_wrap=True, min_width=9)
    table.add_column(others[1], justify="left", no_wrap=True)
    return table


def _shown(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)


def _seconds_since(when: str | None) -> float:
    if when is None:
        return 0.0
    now = datetime.datetime.now(datetime.UTC)
    return max(0.0, (now - datetime.datetime.fromisoformat(when)).total_seconds())


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
