"""What a terminal shows while cells of a matrix run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from finflow_sb3.cli.console import console

if TYPE_CHECKING:
    from finflow_sb3.benchmark.tasks import Event, Listener

__all__ = ["cells_shown"]

_STYLES = {"done": "green", "again": "yellow", "failed": "red"}


@contextmanager
def cells_shown(total: int | None = None) -> Iterator[Listener]:
    """A listener that prints a line for each cell that ends, over bars of those that run.

    Parameters
    ----------
    total : cells in all, where it is known
    """
    bars = Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=min(40, max(8, console.width - 76))),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=4,
        disable=console.quiet or not console.is_terminal,
    )
    with bars:
        yield _Cells(bars, total)


class _Cells:
    """A bar for all cells, and one for each that runs."""

    def __init__(self, bars: Progress, total: int | None):
        self.bars, self.total, self.ended = bars, total, 0
        self.all = bars.add_task("cells", total=total, done="")
        self.begun: dict[str, tuple[float, TaskID]] = {}

    def __call__(self, event: Event) -> None:
        title = event.cell.title
        if event.what == "started":
            bar = self.bars.add_task(title, total=None, done="")
            self.begun[title] = (time.monotonic(), bar)
        elif event.what == "progress":
            if title in self.begun:
                done = f"{event.stage} {event.done:,}/{event.total:,}"
                _, bar = self.begun[title]
                self.bars.update(bar, completed=event.done, total=event.total, done=done)
        else:
            self._end(event)

    def _end(self, event: Event) -> None:
        title = event.cell.title
        seconds = 0.0
        if title in self.begun:
            at, bar = self.begun.pop(title)
            seconds = time.monotonic() - at
            self.bars.remove_task(bar)
        why = f": {event.why}" if event.why else ""
        line = Text(f"{event.what:<6} {title} ({seconds:.0f} s){why}", _STYLES[event.what])
        console.print(line, soft_wrap=True)
        self.ended += event.what in ("done", "failed")
        of = "" if self.total is None else f"/{self.total}"
        self.bars.update(self.all, completed=self.ended, done=f"{self.ended}{of}")
