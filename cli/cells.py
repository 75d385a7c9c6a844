"""Commands that run a matrix of cells: their options, and what a terminal shows meanwhile."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from finflow_sb3.cli.console import console

if TYPE_CHECKING:
    from finflow_sb3.benchmark.tasks import Event, Listener

__all__ = ["Address", "Executors", "Out", "Retries", "Workers", "cells_shown", "names_in"]

Out = Annotated[Path, typer.Option(help="Folder of the results.")]
Executors = Annotated[
    Literal["local", "ray"], typer.Option(help="Processes of this machine, or Ray.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Cells at a time.", show_default="all processors")
]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster.", show_default="one on this machine")
]
Retries = Annotated[int, typer.Option(min=0, help="Of a cell that fails.")]

_STYLES = {"done": "green", "again": "yellow", "failed": "red"}


@contextmanager
def cells_shown(out: Path) -> Iterator[Listener]:
    """A listener that prints a line for each cell that ends, over bars of those that run.

    Ctrl-C exits with 130, and says that the same command goes on.

    Parameters
    ----------
    out : where results are kept
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
    try:
        with bars:
            yield _Cells(bars)
    except KeyboardInterrupt:
        kept = shlex.quote(str(out))
        print(f"stopped; what is done is in {kept}: the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


def names_in(text: str) -> list[str]:
    """Names between commas; those after `yahoo:` are its symbols."""
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if names and names[-1].startswith("yahoo:") and part.isupper():
            names[-1] += f",{part}"
        elif part:
            names.append(part)
    return names


class _Cells:
    """A bar for all cells, and one for each that runs."""

    def __init__(self, bars: Progress):
        self.bars, self.total, self.ended = bars, 0, 0
        self.all = bars.add_task("cells", total=None, done="")
        self.begun: dict[str, tuple[float, TaskID]] = {}

    def __call__(self, event: Event) -> None:
        title = event.cell.title
        if event.what == "started":
            self.total = event.total
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
        done = f"{self.ended}/{self.total}"
        self.bars.update(self.all, completed=self.ended, total=self.total, done=done)
