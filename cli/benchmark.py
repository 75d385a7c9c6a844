"""`finflow benchmark`: algorithms x markets x seeds, on processes or on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from finflow_sb3.cli.console import out as output
from finflow_sb3.cli.console import print_error, print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings

if TYPE_CHECKING:
    from finflow_sb3.benchmark.run import Benchmark

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    algos: Annotated[
        str,
        typer.Option(
            help="Algorithms and rules, separated by commas: cqsac, cqsac_scratch, iql, td3bc, "
            "sac, td3, ddpg, ppo, a2c, tqc, crossq, hrp, minimum_variance, ..."
        ),
    ] = "cqsac,iql,sac,tqc,ppo,anchors,equal_weight",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds, from --seed on.")] = 3,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Environment steps of all that learn online.",
            show_default="each one's own",
        ),
    ] = None,
    markets: Annotated[
        str | None,
        typer.Option(help="Sources of prices, separated by commas.", show_default="--prices"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmark"),
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes of this machine, or Ray.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at a time.", show_default="all processors")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster.", show_default="one on this machine")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="Of a cell that fails.")] = 2,
) -> None:
    """Compare algorithms and rules on the test split, net of costs, over several seeds.

    The same command again runs only what has no result in --out yet. Settings of SB3's algorithms
    are given as -p sac.batch_size:128.
    """
    plain, own = _params(shared)
    settings = shared_settings(own, None)

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.benchmark.matrix import Executor
    from finflow_sb3.benchmark.run import benchmark
    from finflow_sb3.cli.cells import cells_shown

    try:
        with cells_shown() as listen:
            found = benchmark(
                settings,
                _names(algos),
                seeds,
                steps,
                _names(markets or ""),
                out,
                Executor(executor, workers, retries, address),
                listen,
                plain,
                shared.config or [],
            )
    except KeyboardInterrupt:
        print_error(f"stopped; what is done is kept in {out}: the same command goes on with it")
        raise typer.Exit(130) from None
    if shared.json:
        print_json(found)
    else:
        _show(found)
    if found.failed:
        raise typer.Exit(1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _params(shared: Shared) -> tuple[list[str], Shared]:
    """Parameters of SB3's own algorithms, which the settings do not hold, and the others."""
    import dataclasses

    from finflow_sb3.config_keys import PLAIN_ALGORITHMS

    given = shared.param or []
    plain = [p for p in given if p.partition(":")[0].partition(".")[0] in PLAIN_ALGORITHMS]
    return plain, dataclasses.replace(shared, param=[p for p in given if p not in plain])


def _show(found: Benchmark) -> None:
    from finflow_sb3.benchmark.tables import SHORT, name_of, sentence, short_row

    for market in dict.fromkeys(s.market for s in found.summaries):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", title=market)
        table.add_column("", no_wrap=True)
        for heading in ("seeds", *SHORT):
            table.add_column(heading, justify="right", vertical="bottom")
        for summary in found.summaries:
            if summary.market == market:
                table.add_row(name_of(summary.algo), str(summary.seeds), *short_row(summary))
        output.print(table)
    output.print(Text(sentence(found.summaries)))
    for title, why in found.failed.items():
        output.print(Text(f"{title} failed: {why}", "red"), soft_wrap=True)
    output.print(Text(f"Table and pictures: {found.out / 'benchmark.md'}"), soft_wrap=True)
