"""`finflow evaluate`: backtest a run on its test split, and write the report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options
from finflow_sb3.cli.runs import refuse_flags

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    run: Annotated[Path, typer.Argument(help="Folder of a pretraining or fine-tuning run.")],
) -> None:
    """Backtest a run's best policy on its test split, beside the rules it has to beat.

    The run's own settings hold; --prices takes a newer history of the same assets.
    """
    why = "a run is evaluated with its own config.yml and other prices at most"
    refuse_flags(why, shared, {}, keep=("prices",))

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import evaluate

    with watching() as watch:
        evaluated = evaluate(run, shared.prices, watch)
    if shared.json:
        print_json(evaluated)
    else:
        from finflow_sb3.cli.results import show_evaluated

        show_evaluated(evaluated)
