"""What a terminal shows while a stage runs. Import it after `silence_gym_notice`."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from finflow_sb3.cli.console import console
from finflow_sb3.config import ANCHORS
from finflow_sb3.cqsac.seeding import SeedReport
from finflow_sb3.pipeline import Watch
from finflow_sb3.pretrain.run import Epoch
from finflow_sb3.training.monitor import Event

__all__ = ["TerminalWatch", "say", "stopped", "watching"]

ACTIONS = {
    "cut_lr": "learning rates are cut",
    "rollback": "back to the last good checkpoint",
    "stop": "the run stops",
}
STAGES = {"episodes": "collecting"}
LOSSES = {"v_loss": "V loss", "q_loss": "Q loss", "policy_loss": "policy"}
WIDE = 116
READ_EVERY = 1.0


def say(line: str, style: str = "") -> None:
    """A line on stderr that is not wrapped: a path in it can be copied. Silent under --quiet."""
    console.print(Text(line, style), soft_wrap=True)


def stopped(what: str, command: str, run: Path) -> None:
    """The line of a run that was stopped, with how to go on; printed under --quiet too."""
    print(f"{what}; go on with: finflow {command} {shlex.quote(str(run))}", file=sys.stderr)


@contextmanager
def watching() -> Iterator[TerminalWatch]:
    """A watch whose bar ends with the block."""
    watch = TerminalWatch()
    try:
        yield watch
    finally:
        watch.close()


class TerminalWatch(Watch):
    """A bar for each stage on a terminal, and lines of text wherever stderr goes.

    Attributes
    ----------
    run : folder of the run that started last
    epochs : epochs of pretraining that have ended
    """

    def __init__(self) -> None:
        self.run: Path | None = None
        self.epochs = 0
        self._losses: list[str] = []
        self._best = -math.inf
        self._stage = ""
        self._bar: Progress | None = None
        self._news = _News()

    def close(self) -> None:
        """End the bar; it stays on the screen as it is."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._stage = None, ""

    def progress(self, stage: str, done: int, total: int) -> None:
        if console.quiet or not console.is_terminal:
            return
        if stage != self._stage or self._bar is None:
            self.close()
            self._stage, self._bar = stage, _bar()
            self._bar.add_task(STAGES.get(stage, stage), total=total, completed=done, note="")
            self._bar.start()
        note = self._news.line() if stage == "fine-tuning" else ""
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=note)

    def started(self, run: Path) -> None:
        self.close()
        self.run, self._news = run, _News(run / "metrics.jsonl")
        self.epochs, self._best = 0, -math.inf
        say(f"Run: {run}")

    def epoch(self, epoch: Epoch) -> None:
        if self.epochs == 0:
            self._losses = list(epoch.losses)
            heading = _heading(epoch, self._losses, console.width)
            console.print(Text(heading, "bold"), soft_wrap=True)
        self.epochs = epoch.number
        # Without a market there is none, and no epoch is better than another.
        sharpe = epoch.validation.get("sharpe", -math.inf)
        better, self._best = sharpe > self._best, max(sharpe, self._best)
        row = Text(_row(epoch, self._losses, console.width), "green" if better else "")
        console.print(row, soft_wrap=True)

    def seeded(self, report: SeedReport) -> None:
        copied = ", ".join(f"{name} {count:,}" for name, count in report.copied.items())
        console.print(Text(f"Seeded exactly, in parameters: {copied}."))
        console.print(Text(f"Starts fresh: {', '.join(report.fresh)}."))

    def warned(self, event: Event) -> None:
        what = "" if event.action == "warn" else f": {ACTIONS[event.action]}"
        say(f"Step {event.step:,}: {event.message}{what}.", "yellow")

    def remark(self, text: str) -> None:
        self.close()
        say(text)


class _News:
    """The latest figures in a growing `metrics.jsonl`."""

    def __init__(self, path: Path | None = None):
        self.path, self.offset, self.read_at = path, 0, -math.inf
        self.latest: dict[str, dict[str, Any]] = {}

    def line(self) -> str:
        """Episodes, mean reward of the latest ones and validation Sharpe, as far as known."""
        now = time.monotonic()
        if self.path is not None and now - self.read_at >= READ_EVERY:
            self.read_at = now
            self._read(self.path)
        parts = []
        train, validation = self.latest.get("train", {}), self.latest.get("validation", {})
        if train.get("episode"):
            parts.append(f"ep. {train['episode']:,}")
        if train.get("return") is not None:
            parts.append(f"return {train['return']:.2f}")
        if validation.get("sharpe") is not None:
            parts.append(f"Sharpe {validation['sharpe']:.2f}")
        return ", ".join(parts)

    def _read(self, path: Path) -> None:
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            values = json.loads(line)
            # A line has no return where no episode ended since the one before.
            self.latest.setdefault(values["kind"], {}).update(values)


def _bar() -> Progress:
    """As wide as the terminal lets it be beside the figures."""
    return Progress(
        TextColumn("{task.description:<11}"),
        BarColumn(bar_width=min(40, max(8, console.width - 72))),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[note]}", style="dim"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=console,
        refresh_per_second=4,
    )


def _gate_names(width: int) -> list[str]:
    return [name if width >= WIDE else name[:3] for name in ANCHORS]


def _heading(epoch: Epoch, losses: list[str], width: int) -> str:
    figures = f"{'epoch':>5}" + "".join(f"{LOSSES[name]:>9}" for name in losses)
    if "sharpe" not in epoch.validation:
        return figures + "  on held-out episodes:" + "".join(f"{LOSSES[n]:>9}" for n in losses)
    figures += f"{'Sharpe':>8}{'excess':>9}{'turnover':>9}"
    gates = "".join(f"{name:>{len(name) + 1 + (width >= WIDE)}}" for name in _gate_names(width))
    return figures + " " + gates


def _row(epoch: Epoch, names: list[str], width: int) -> str:
    validation = epoch.validation
    losses = [epoch.losses.get(name) for name in names]
    figures = f"{epoch.number:>5}" + "".join(f"{_short(loss):>9}" for loss in losses)
    if "sharpe" not in validation:
        held_out = "".join(f"{_short(validation.get(name)):>9}" for name in names)
        return figures + " " * len("  on held-out episodes:") + held_out
    figures += f"{validation['sharpe']:>8.3f}{validation['excess']:>9.2%}"
    figures += f"{validation['turnover']:>8.1f}×"
    gates = ""
    for name, gate in zip(_gate_names(width), epoch.gates, strict=False):
        percent = f"{gate:.0%}"
        gates += f"{percent:>{len(name) + 1 + (width >= WIDE)}}"
    return figures + " " + gates


def _short(loss: float | None) -> str:
    if loss is None:
        return "–"
    return f"{loss:.4f}" if abs(loss) >= 0.001 or loss == 0.0 else f"{loss:.1e}"
