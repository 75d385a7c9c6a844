"""`finflow pretrain`: IQL on offline data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.errors import ConfigError

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    dataset: Annotated[
        Path | None,
        typer.Option(help="File of finflow collect.", show_default="collected, or from the cache"),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(help="Gradient steps in an epoch.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Transitions in a batch.")] = None,
    expectile: Annotated[
        float | None, typer.Option(help="τ of the expectile regression, 0.5 to 0.999.")
    ] = None,
    weight_temp: Annotated[
        float | None, typer.Option(help="β in exp(β·A), the inverse temperature.")
    ] = None,
    iql_temperature: Annotated[
        float | None, typer.Option(metavar="T", help="The same as a divisor: β = 1/T.")
    ] = None,
) -> None:
    """Learn an allocation from offline data; the best epoch on validation is kept."""
    flags = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": batch_size,
        "expectile": expectile,
        "weight_temp": _inverse_temperature(weight_temp, iql_temperature),
    }
    settings = shared_settings(shared, "iql", iql=flags)

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import pretrain

    with watching(interrupted="finetune --pretrained") as watch:
        pretrained = pretrain(settings, dataset, watch)
    if shared.json:
        print_json(pretrained)
    else:
        from finflow_sb3.cli.results import show_pretrained

        show_pretrained(pretrained)


def _inverse_temperature(weight_temp: float | None, temperature: float | None) -> float | None:
    if temperature is None:
        return weight_temp
    if weight_temp is not None:
        raise ConfigError("--iql-temperature is 1/--weight-temp; give one of the two")
    if not temperature > 0.0:
        raise ConfigError(f"--iql-temperature: {temperature} is out of range; give one above 0")
    return 1.0 / temperature
