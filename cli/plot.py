"""`finflow plot`: learning curves of runs, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.options import Shared, only_shared
from finflow_sb3.cli.runs import refuse_flags

if TYPE_CHECKING:
    from finflow_sb3.plot_runs import Plotted

__all__ = ["command"]


@only_shared()
def command(
    shared: Shared,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, of both kinds.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            metavar="FOLDER",
            help="Where to write.",
            show_default="report in the first run",
        ),
    ] = None,
    smooth: Annotated[
        int, typer.Option(min=1, metavar="N", help="Draw means over N lines of the log.")
    ] = 1,
) -> None:
    """Draw learning curves of one or several runs, also while they are going on."""
    refuse_flags("curves are drawn from the runs' own metrics", shared, {})

    from finflow_sb3.plot_runs import plot_runs

    plotted = plot_runs(runs, output, smooth)
    if shared.json:
        print_json(plotted)
    else:
        _show(plotted)


def _show(plotted: Plotted) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold")
    for heading in ("steps", "validation\nSharpe", "best", "at step"):
        table.add_column(heading, justify="right", vertical="bottom")
    for run in plotted.runs:
        figures = (_ratio(run.sharpe), _ratio(run.best_sharpe))
        best_step = "–" if run.best_step is None else f"{run.best_step:,}"
        table.add_row(run.name, f"{run.steps:,}", *figures, best_step)
    out.print(table)
    for path in (plotted.png, plotted.page):
        out.print(Text(f"Learning curves: {path}"), soft_wrap=True)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
