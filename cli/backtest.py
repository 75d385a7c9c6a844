"""`finflow backtest`: rules on a universe, without a trained policy."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    split: Annotated[
        Literal["train", "validation", "test", "all"],
        typer.Option("--split", help="Period; all is every day with a year of history."),
    ] = "test",
) -> None:
    """Backtest the rules that a policy has to beat, without training one.

    They are those of the section evaluation (baselines, lookback, rebalance, index), at the costs
    and constraints of env_kwargs, at execution lag 0 and 1.
    """
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.backtest_rules import backtest_baselines
    from finflow_sb3.cli.watching import watching

    with watching() as watch:
        found = backtest_baselines(shared_settings(shared, None), split, watch)
    if shared.json:
        print_json(found)
    else:
        from finflow_sb3.cli.results import show_backtested

        show_backtested(found)
