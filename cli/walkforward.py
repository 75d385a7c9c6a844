"""`finflow walkforward`: train again on each fold, and join the test days into one net curve."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from finflow_sb3.cli.cells import (
    Address,
    Executors,
    Out,
    Retries,
    Workers,
    cells_shown,
    names_in,
)
from finflow_sb3.cli.console import out as output
from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.cli.tables import figures_table

if TYPE_CHECKING:
    from finflow_sb3.walkforward import WalkForward

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    algos: Annotated[
        str, typer.Option(help="Algorithms that learn, separated by commas.")
    ] = "cqsac",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from --seed on.")] = 1,
    test_days: Annotated[int, typer.Option(min=21, help="Days that a fold is tested on.")] = 504,
    train_days: Annotated[
        int, typer.Option(min=126, help="Days that the first fold is trained on, or each.")
    ] = 2016,
    window: Annotated[
        Literal["expanding", "rolling"],
        typer.Option(help="expanding trains on all of the past, rolling on --train-days of it."),
    ] = "expanding",
    out: Out = Path("walkforward"),
    executor: Executors = "local",
    workers: Workers = None,
    address: Address = None,
    retries: Retries = 2,
) -> None:
    """Train again on each fold's past, and join the days after it into one net curve.

    The same command again runs only what has no result in --out yet.
    """
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.benchmark.matrix import Executor
    from finflow_sb3.benchmark.plan import own_params
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.walkforward import walkforward

    params, plain = own_params(shared.param or [])
    settings = shared_settings(dataclasses.replace(shared, param=params), None)
    with watching() as watch, cells_shown(out) as listen:
        found = walkforward(
            settings,
            names_in(algos),
            seeds,
            test_days,
            train_days,
            window == "expanding",
            out,
            Executor(executor, workers, retries, address),
            watch,
            listen,
            plain,
            shared.config or [],
        )
    if shared.json:
        print_json({"out": found.out, "folds": found.folds, "measures": found.measures})
    else:
        _show(found)
    if found.failed:
        raise typer.Exit(1)


def _show(found: WalkForward) -> None:
    from rich.text import Text

    from finflow_sb3.evaluation.plot_style import label
    from finflow_sb3.walkforward_report import figures, headings

    table = figures_table("", *headings())
    for name, lags in found.measures.items():
        table.add_row(label(name), *figures(lags["lag_0"]))
    first = found.curves[0]
    output.print(
        Text(f"{len(found.folds)} folds, {first.dates[0]} to {first.dates[-1]}, net of costs:")
    )
    output.print(table)
    for title, why in found.failed.items():
        output.print(Text(f"{title} failed: {why}", "red"), soft_wrap=True)
    output.print(Text(f"Table and picture: {found.out / 'walkforward.md'}"), soft_wrap=True)
