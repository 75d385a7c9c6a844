"""`finflow watch`: a live table of a run that another process trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.options import Shared, only_shared
from finflow_sb3.cli.runs import refuse_flags

__all__ = ["command"]


@only_shared()
def command(
    shared: Shared,
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run that is going on, or was.")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Print it once and end.", show_default=False)
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Time between looks.")
    ] = 1.0,
) -> None:
    """Show how far a run is, its latest figures and checkpoints, until it ends or Ctrl-C.

    It reads the run's files and nothing else: the process that trains does not notice. Where
    stdout is no terminal, it prints once.
    """
    refuse_flags("a run is watched as it is", shared, {})

    from finflow_sb3.runs.snapshot import take_snapshot

    if shared.json:
        print_json(take_snapshot(run))
        return

    from finflow_sb3.cli.watch_table import watch_table

    if once or not out.is_terminal:
        out.print(watch_table(take_snapshot(run), out.width))
        return

    from rich.live import Live

    snapshot = take_snapshot(run)
    try:
        with Live(watch_table(snapshot, out.width), console=out, auto_refresh=False) as live:
            while not snapshot.over:
                time.sleep(interval)
                snapshot = take_snapshot(run)
                live.update(watch_table(snapshot, out.width), refresh=True)
    except KeyboardInterrupt:
        return
