"""`finflow data`: what prices there are and what is in them, clean copies, and datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from finflow_sb3.cli.console import out, print_json, set_quiet
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.market.summary import PriceSummary
    from finflow_sb3.offline.describe import Description

__all__ = ["app"]

app = typer.Typer(
    help="List, inspect and import prices; describe and export datasets.", no_args_is_help=True
)

READERS = {"minari": "Minari", "d3rlpy": "d3rlpy", "npz": "NumPy"}

Source = Annotated[
    str,
    typer.Argument(
        metavar="PRICES", help="us20, a CSV, CSV.gz or Parquet file, or yahoo:SYMBOL,..."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
MaxGap = Annotated[
    int, typer.Option(min=0, max=60, help="Longest gap, in rows, that is forward-filled.")
]

Partial = Annotated[
    bool, typer.Option("--partial", help="Let assets start or end inside the dates.")
]


@app.command("list")
def list_command(as_json: Json = False) -> None:
    """List where prices can come from."""
    from finflow_sb3.market.sources import list_sources

    sources = list_sources()
    if as_json:
        print_json([{"name": name, "description": about} for name, about in sources])
        return
    table = Table("source", "prices")
    for name, about in sources:
        table.add_row(Text(name), Text(about))
    out.print(table)


@app.command("info")
def info_command(
    source: Source, as_json: Json = False, max_gap: MaxGap = 5, partial: Partial = False
) -> None:
    """Check prices and show assets, dates, gaps, returns and risks."""
    from finflow_sb3.market.sources import load_prices
    from finflow_sb3.market.summary import summarise

    summary = summarise(load_prices(source, max_gap=max_gap, partial=partial))
    if as_json:
        print_json(summary.as_dict())
    else:
        _show(summary)


@app.command("import")
def import_command(
    source: Annotated[str, typer.Argument(metavar="FILE", help="CSV, CSV.gz or Parquet file.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Parquet file to write; FILE's name by default."),
    ] = None,
    as_json: Json = False,
    max_gap: MaxGap = 5,
    partial: Partial = False,
) -> None:
    """Check a file, say what was found, and write a clean Parquet."""
    from finflow_sb3.market.sources import load_prices, write_prices
    from finflow_sb3.market.summary import summarise

    target = _beside(source) if output is None else output
    prices = load_prices(source, max_gap=max_gap, partial=partial)
    summary = summarise(prices)
    written = write_prices(prices, target)
    if as_json:
        print_json({"output": str(written), **summary.as_dict()})
        return
    _show(summary)
    too = "" if summary.complete else " -p market.partial:true"
    out.print(Text(f"Wrote {written}. Use it with --prices {written}{too}"), soft_wrap=True)


@app.command("describe")
def describe_command(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="File of finflow collect, .h5.")
    ],
    prices: Annotated[
        str | None,
        typer.Option(help="Prices it was collected on, for dates.", show_default="us20 if it was"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw returns and actions as a PNG.")
    ] = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print results and errors only.")] = False,
) -> None:
    """Say what a dataset holds: rules, rewards, trades, actions tried, and what it can't teach."""
    set_quiet(quiet)
    if plot is not None and plot.suffix.lower() != ".png":
        raise ConfigError(f"{plot}: pictures are written as PNG; end the name with .png")
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    found = _described(dataset, prices)
    if plot is not None:
        from finflow_sb3.evaluation.dataset_plots import dataset_plot
        from finflow_sb3.evaluation.plot_style import png_bytes
        from finflow_sb3.files import write_whole

        write_whole(plot, png_bytes(dataset_plot(found)))
    if as_json:
        print_json(found)
        return
    from finflow_sb3.cli.description import show_description

    show_description(found)
    if plot is not None:
        out.print(Text(f"Picture: {plot}"), soft_wrap=True)


def _described(dataset: Path, prices: str | None) -> Description:
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.market.sources import load_prices
    from finflow_sb3.offline.describe import describe

    table = None if prices is None else load_prices(prices, partial=True)
    with watching() as watch:
        return describe(dataset, table, watch.progress)


@app.command("export")
def export_command(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="File of finflow collect, .h5.")
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="minari:ID for Minari's local store, a folder for Minari elsewhere, a file ending "
            "in .h5 for d3rlpy or in .npz.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Write a dataset in a format that others read."""
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.offline.export import export_dataset

    exported = export_dataset(dataset, target)
    if as_json:
        print_json(exported)
        return
    line = (
        f"Wrote {exported.transitions:,} transitions in {exported.episodes:,} episodes for "
        f"{READERS[exported.format]}: {exported.path}"
    )
    out.print(Text(line), soft_wrap=True)


def _beside(source: str) -> Path:
    """FILE with the ending .parquet, unless that is FILE itself or no file at all."""
    path = Path(source)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    if name == path.name:
        raise ConfigError(f"{source}: say with --output which Parquet file to write")
    return path.with_name(f"{name}.parquet")


def _show(summary: PriceSummary) -> None:
    # Without the outer padding the dates fit into 80 columns.
    table = Table("asset", pad_edge=summary.complete)
    listed = () if summary.complete else ("first", "last")
    for heading in listed:
        table.add_column(heading, min_width=len(summary.first_date))
    for heading in ("annual return", "annual volatility", "max drawdown", "filled"):
        table.add_column(heading, justify="right")
    columns = (
        summary.assets,
        zip(summary.first_listed, summary.last_listed, strict=True),
        summary.annual_return,
        summary.annual_volatility,
        summary.max_drawdown,
        summary.filled,
    )
    for asset, days, growth, volatility, drawdown, filled in zip(*columns, strict=True):
        percentages = (f"{value:.1%}" for value in (growth, volatility, drawdown))
        known = (day or "-" for day in days) if listed else ()
        table.add_row(Text(asset), *known, *percentages, str(filled))
    lines = [
        f"{summary.source}: {len(summary.assets)} assets, {summary.rows} rows, "
        f"{summary.first_date} to {summary.last_date}",
        f"longest gap: {summary.longest_gap_days} days, "
        f"{summary.longest_gap_from} to {summary.longest_gap_to}; "
        f"forward-filled closes: {sum(summary.filled)}",
    ]
    for line in lines:
        out.print(Text(line), soft_wrap=True)
    out.print(table)
    if summary.survivorship_note is not None:
        out.print(Text(summary.survivorship_note, style="yellow"), soft_wrap=True)
