"""The command `finflow`: its commands, and from an error to an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from finflow_sb3.cli import (
    allocate,
    backtest,
    benchmark,
    checkpoint,
    collect,
    config,
    data,
    doctor,
    evaluate,
    explain,
    export,
    finetune,
    plot,
    pretrain,
    profile,
    train,
    tune,
    walkforward,
    watch,
)
from finflow_sb3.cli.console import print_error
from finflow_sb3.errors import FinflowError

__all__ = ["app", "main"]


class _Group(TyperGroup):
    """Turns what the user can mend into one line and exit code 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # --debug is wanted most after a command has failed, at the end of the line.
        options = args[: args.index("--")] if "--" in args else args
        if "--debug" in options:
            rest = [arg for arg in options if arg != "--debug"] + args[len(options) :]
            args = ["--debug", *rest]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if ctx.params["debug"]:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except FinflowError as error:
            print_error(str(error))
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.filename is None:
                raise
            print_error(f"{os.fsdecode(error.filename)}: {error.strerror}")
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(130) from None
        raise typer.Exit(1)


app = typer.Typer(
    name="finflow",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from finflow_sb3._version import installed_version

        print(f"finflow {installed_version()}")
        raise typer.Exit


@app.callback()
def _finflow(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="FINFLOW_DEBUG", help="Show the traceback of an error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    """Learn a portfolio allocation offline, fine-tune it online, and evaluate it honestly."""


_COMMANDS = {
    "demo": train.demo_command,
    "doctor": doctor.command,
    "collect": collect.command,
    "pretrain": pretrain.command,
    "finetune": finetune.command,
    "train": train.train_command,
    "evaluate": evaluate.command,
    "explain": explain.command,
    "backtest": backtest.command,
    "allocate": allocate.command,
    "export": export.command,
    "benchmark": benchmark.command,
    "walkforward": walkforward.command,
    "tune": tune.command,
    "plot": plot.command,
    "watch": watch.command,
    "profile": profile.command,
}

for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(checkpoint.app, name="checkpoint")


def main() -> None:
    """Entry point of the command; under `torchrun` the first process alone prints."""
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    app()


if __name__ == "__main__":
    main()
