"""`finflow allocate`: what to buy and sell today."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.ensembles import Combine, RunFolders, Shrink
from finflow_sb3.cli.options import Shared, only_shared
from finflow_sb3.cli.runs import refuse_flags

__all__ = ["command"]


@only_shared("prices")
def command(
    shared: Shared,
    runs: RunFolders,
    holdings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="CSV with symbol,shares and a row CASH; lot too, if wanted."
        ),
    ] = None,
    cash: Annotated[
        str | None,
        typer.Option(metavar="MONEY", help="Cash, where --holdings has none or is not given."),
    ] = None,
    lot: Annotated[
        str, typer.Option(metavar="SHARES", help="Smallest order, as 0.001 for fractions.")
    ] = "1",
    min_order: Annotated[
        str, typer.Option(metavar="MONEY", help="Orders of less are left out.")
    ] = "0",
    trade_rate: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Part of the way to the target that is traded; 1 is all of it.",
            show_default="the run's, 0.1 in action base anchors",
        ),
    ] = None,
    peak: Annotated[
        str | None,
        typer.Option(
            metavar="MONEY",
            help="Highest value so far, which the policy's drawdown counts from.",
            show_default="the present value",
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            help="Day to allocate for; later prices are not seen.",
            show_default="today",
        ),
    ] = None,
    max_age: Annotated[
        int,
        typer.Option(min=0, metavar="DAYS", help="Business days that prices may be older."),
    ] = 3,
    max_revision: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="RETURN", help="Largest change of a past daily return that passes."
        ),
    ] = 1e-4,
    max_move: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="RETURN", help="Largest daily return since training that passes."
        ),
    ] = 0.3,
    combine: Combine = None,
    shrink: Shrink = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="For orders.csv and allocation.json."),
    ] = None,
) -> None:
    """Turn a run's decision on the latest prices into orders in shares.

    Several runs decide as one. The prices must be those of the run's assets, in any order, about
    four years of days up to now. Nothing is sent anywhere.
    """
    refuse_flags("a run allocates with its own config.yml", shared, {}, keep=("prices",))

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.allocate import allocate
    from finflow_sb3.cli.watching import watching

    with watching() as watch:
        found = allocate(
            runs,
            shared.prices,
            holdings,
            cash=cash,
            lot=lot,
            min_order=min_order,
            trade_rate=trade_rate,
            peak=peak,
            as_of=as_of,
            max_age=max_age,
            max_revision=max_revision,
            max_move=max_move,
            combination=combine,
            shrinkage=shrink,
            out=out,
            watch=watch,
        )
    if shared.json:
        print_json(found.as_dict())
    else:
        from finflow_sb3.cli.orders_table import show_allocation

        show_allocation(found)
