"""`finflow profile`: where the time of fine-tuning goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.options import Shared, shared_options
from finflow_sb3.cli.runs import seeded_settings

if TYPE_CHECKING:
    from rich.table import Table

    from finflow_sb3.profiling import Cost, Profile

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    steps: Annotated[int, typer.Option(min=1, help="Gradient updates to measure.")] = 500,
    pretrained: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Pretraining run that seeds the model, as in finetune."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            metavar="FOLDER",
            help="Folder for the trace.",
            show_default="logs/profile/<env>_<n>",
        ),
    ] = None,
    updates_warmup: Annotated[
        int, typer.Option(min=0, help="Updates before the first that is timed.")
    ] = 20,
) -> None:
    """Time the fine-tuning that finetune would begin, stage by stage, under torch.profiler.

    No run is made: a Chrome trace and the figures are all that is written.
    """
    settings = seeded_settings(pretrained, shared)

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.profiling import profile

    with watching() as watch:
        found = profile(settings, steps, pretrained, output, updates_warmup, watch)
    if shared.json:
        print_json(found)
    else:
        _show(found)


def _show(found: Profile) -> None:
    from rich.text import Text

    def line(text: str) -> None:
        out.print(Text(text), soft_wrap=True)

    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    compiled = ", compiled" if found.compiled else ""
    line(f"{found.env} on {found.device}, {threads}{compiled}: {found.updates:,} updates")
    table = _table("stage", found.stages)
    table.add_section()
    whole = sum(stage.ms for stage in found.stages)
    table.add_row("all", f"{whole:.2f}", f"{sum(s.share for s in found.stages):.1%}", "")
    out.print(table)
    if found.compiled:
        line(
            "Compiled: targets and the penalty's forward pass are within the critics' forward pass,"
        )
        line("and the penalty's backward pass within theirs.")
    out.print(_table(f"operator (self, {found.read_updates} updates)", found.operators))
    line(
        f"Updates a second: {found.updates_per_second:.1f}, under the profiler "
        f"{found.profiled_updates_per_second:.1f} ({found.overhead:+.0%} time an update)"
    )
    line(f"Peak memory: {_megabytes(found.peak_memory)} resident, before the profiler began")
    if found.peak_device_memory is not None:
        line(f"Peak memory on {found.device}: {_megabytes(found.peak_device_memory)} allocated")
    line(f"Trace of {found.traced_updates} updates: {found.trace}")


def _table(first: str, costs: tuple[Cost, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for heading in ("ms an update", "share", "calls an update"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in costs:
        calls = f"{cost.calls:.1f}" if cost.calls else ""
        table.add_row(cost.name, f"{cost.ms:.2f}", f"{cost.share:.1%}", calls)
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
