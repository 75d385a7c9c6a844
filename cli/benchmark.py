"""`finflow benchmark`: algorithms × markets × seeds, and what they come to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from finflow_sb3.benchmark.run import Benchmark
    from finflow_sb3.benchmark.scores import Row

__all__ = ["command"]

SHARPE = {"sharpe": "Sharpe", "excess_sharpe": "over equal weight", "sharpe_lag_1": "lag 1"}
REST = {
    "max_drawdown": "max\ndrawdown",
    "turnover": "turnover\na year",
    "costs": "costs\na year",
    "n_timesteps": "steps",
    "gradient_steps": "offline\nupdates",
    "seconds": "seconds\na run",
}
WIDE = 120


@shared_options
def command(
    shared: Shared,
    algos: Annotated[
        str,
        typer.Option(
            help="Algorithms and rules, separated by commas: cqsac, cqsac_scratch, iql, td3bc, "
            "sac, td3, ddpg, ppo, a2c, tqc, crossq, and rules such as hrp; equal_weight always."
        ),
    ] = "cqsac,sac,equal_weight",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from --seed on.")] = 3,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Environment steps of all that learn online.", show_default="each one's own"
        ),
    ] = None,
    markets: Annotated[
        str | None,
        typer.Option(
            metavar="PRICES,...",
            help="Sources of prices, separated by commas.",
            show_default="that of --prices",
        ),
    ] = None,
    out: Out = Path("benchmark"),
    executor: Executors = "local",
    workers: Workers = None,
    address: Address = None,
    retries: Retries = 2,
) -> None:
    """Train each algorithm with each seed on each market, backtest it, and compare.

    Each cell runs in a process of its own. The same command again runs only what has no result in
    --out yet. Settings of one algorithm: -p sac.learning_rate:1e-3.
    """
    if markets is not None and shared.prices is not None:
        raise ConfigError("--markets: says which prices, as --prices does; leave one out")

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.benchmark.matrix import Executor
    from finflow_sb3.benchmark.plan import own_params
    from finflow_sb3.benchmark.run import benchmark

    params, plain = own_params(shared.param or [])
    settings = shared_settings(dataclasses.replace(shared, param=params), None)
    with cells_shown(out) as listen:
        found = benchmark(
            settings,
            names_in(algos),
            seeds,
            steps,
            names_in(markets or ""),
            out,
            Executor(executor, workers, retries, address),
            listen,
            plain,
            shared.config or [],
        )
    if shared.json:
        print_json(found)
    else:
        _show(found)
    if found.failed:
        raise typer.Exit(1)


def _show(found: Benchmark) -> None:
    from rich.text import Text

    output.print(Text(found.verdict))
    sets = [SHARPE | REST] if output.width >= WIDE else [SHARPE, REST]
    for rows in (found.overall, found.rows):
        for market in dict.fromkeys(row.market for row in rows):
            output.print(Text(f"{market}, test split, net of costs:"))
            for columns in sets:
                output.print(_table([row for row in rows if row.market == market], columns))
    for title, why in found.failed.items():
        output.print(Text(f"{title} failed: {why}", "red"), soft_wrap=True)
    output.print(Text(f"Tables and pictures: {found.out / 'benchmark.md'}"), soft_wrap=True)


def _table(rows: list[Row], columns: dict[str, str]) -> Table:
    """A row for each algorithm, best first; what learned is bold."""
    from finflow_sb3.benchmark.table import cells, title_of

    table = figures_table("", *columns.values())
    for row in sorted(rows, key=lambda row: -row.sharpe.value):
        found = cells(row, {})
        style = "bold cyan" if row.learns else ""
        table.add_row(title_of(row.algo), *(found[name] for name in columns), style=style)
    return table
