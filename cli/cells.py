"""What a terminal shows while cells of a matrix run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from finflow_sb3.cli.console import console

if TYPE_CHECKING:
    from finflow_sb3.benchmark.tasks import Event, Listener

__all__ = ["cells_shown"]

_STYLES = {"done": "green", "again": "yellow", "failed": "red"}


@contextmanager
def cells_shown(total: int | None = None) -> Iterator[Listener]:
    """A listener that prints a line for each cell that ends, over a bar on a terminal.

    Parameters
    ----------
    total : cells in all, where it is known
    """
    bar = Progress(
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )
    task = bar.add_task("cells", total=total, now="")
    begun: dict[str, float] = {}
    at: dict[str, str] = {}

    def listen(event: Event) -> None:
        title = event.cell.title
        if event.what == "started":
            begun[title] = time.monotonic()
            at[title] = title
        elif event.what == "progress":
            share = 100 * event.done // max(event.total, 1)
            at[title] = f"{title}: {event.stage} {share} %"
        else:
            at.pop(title, None)
            seconds = time.monotonic() - begun.pop(title, time.monotonic())
            why = f": {event.why}" if event.why else ""
            line = Text(f"{event.what:<6} {title} ({seconds:.0f} s){why}", _STYLES[event.what])
            console.print(line, soft_wrap=True)
            bar.advance(task, event.what in ("done", "failed"))
        bar.update(task, now=", ".join(at.values()))

    with bar:
        yield listen
