"""`finflow collect`: offline data from known allocation rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes to collect.", show_default="1000")
    ] = None,
    save_path: Annotated[
        Path | None,
        typer.Option(help="File to write, .h5 or .npz.", show_default="the cache"),
    ] = None,
    n_envs: Annotated[int | None, typer.Option(help="Portfolios in the batch.")] = None,
    behaviours: Annotated[
        str | None,
        typer.Option(metavar="RULE,...", help="Rules that trade, in equal shares; all if absent."),
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise around each action.")
    ] = None,
) -> None:
    """Let known allocation rules trade the training split, and keep what they did."""
    names = None if behaviours is None else [name.strip() for name in behaviours.split(",")]
    flags = {"episodes": episodes, "n_envs": n_envs, "behaviours": names, "noise": noise}
    settings = shared_settings(shared, None, collect=flags)

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import collect

    with watching() as watch:
        collected = collect(settings, save_path, watch)
    if shared.json:
        print_json(collected)
    else:
        from finflow_sb3.cli.results import show_collected

        show_collected(collected, settings.market.prices)
