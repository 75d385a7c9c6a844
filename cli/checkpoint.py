"""`finflow checkpoint`: list and verify checkpoints, and exchange them with Stable-Baselines3."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finflow_sb3.cli.console import out, print_error, print_json
from finflow_sb3.cli.options import Shared, only_shared, shared_options, shared_settings
from finflow_sb3.cli.runs import refuse_flags

if TYPE_CHECKING:
    from finflow_sb3.runs.inspection import Listed

__all__ = ["app"]

app = typer.Typer(
    help="List and verify checkpoints; exchange them with Stable-Baselines3.", no_args_is_help=True
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a fine-tuning run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@app.command("list")
def list_command(run: Run, as_json: Json = False) -> None:
    """List the checkpoints of a run."""
    from finflow_sb3.runs.inspection import list_checkpoints

    found = list_checkpoints(run)
    if as_json:
        print_json(found)
    elif found:
        _show(found)
    else:
        _line(f"{run}: no checkpoints")


@app.command("verify")
def verify_command(run: Run, as_json: Json = False) -> None:
    """Compare every file of every checkpoint with its checksum; exits with 1 if one differs."""
    from finflow_sb3.runs.inspection import verify_checkpoints

    found = verify_checkpoints(run)
    if as_json:
        print_json(found)
    else:
        for path in found.whole:
            _line(f"{path}: whole")
        for problem in found.damaged:
            print_error(problem)
    if found.damaged:
        raise typer.Exit(1)


@app.command("export")
@only_shared()
def export_command(
    shared: Shared,
    run: Run,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT.zip", help="File to write.")],
    checkpoint: Annotated[
        str, typer.Option(metavar="NAME", help="latest, best, or one of the list, as step_25200.")
    ] = "latest",
) -> None:
    """Write a checkpoint as a zip that CQSAC.load of Stable-Baselines3's kind reads."""
    refuse_flags("a checkpoint is exported with the config.yml of its run", shared, {})

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.exchange import export_zip

    with watching() as watch:
        exported = export_zip(run, output, checkpoint, watch)
    if shared.json:
        print_json(exported)
        return
    _line(f"{exported.path}: {exported.checkpoint.name}, {exported.steps:,} steps")
    _line(f'In Python: finflow_sb3.CQSAC.load("{exported.path}")')


@app.command("import")
@shared_options
def import_command(
    shared: Shared,
    file: Annotated[Path, typer.Argument(metavar="ZIP", help="Zip that CQSAC.save wrote.")],
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Read it, although such files can hold code. Tensors and numbers are read alone.",
        ),
    ] = False,
) -> None:
    """Make a run of a zip. Prices, environment and sizes come from the settings given."""
    settings = shared_settings(shared, "cqsac")

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.results import command
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.exchange import import_zip

    with watching() as watch:
        imported = import_zip(file, settings, trust, watch)
    if shared.json:
        print_json(imported)
        return
    sharpe = imported.validation["sharpe"]
    _line(f"{imported.run}: {imported.steps:,} steps, validation Sharpe {sharpe:.3f}")
    _line(f"Next: {command('evaluate', imported.run)}")
    if imported.steps < settings.cqsac.n_timesteps:
        _line(f"Go on: {command('finetune --resume', imported.run)}")
    else:
        further = command("finetune --resume", imported.run)
        _line(f"Go on: {further} --n-timesteps {2 * imported.steps}")


def _show(found: tuple[Listed, ...]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("checkpoint", no_wrap=True)
    table.add_column("step", justify="right")
    table.add_column("size", justify="right")
    table.add_column("written")
    table.add_column("")
    for one in found:
        written = one.written.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        size = f"{one.size / 1e6:,.1f} MB"
        table.add_row(one.path.name, f"{one.step:,}", size, written, ", ".join(one.named))
    out.print(table)


def _line(text: str) -> None:
    from rich.text import Text

    out.print(Text(text), soft_wrap=True)
