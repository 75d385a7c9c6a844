"""`finflow pretrain`: IQL or TD3+BC on offline data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.finetune import Resume, check_finished
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.cli.runs import (
    CHANGING,
    FIXED_BY_RUN,
    OwnRules,
    algo_of_resumed,
    flags,
    refuse_flags,
    settings_of_resumed,
)
from finflow_sb3.config import OfflineAlgorithm
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings
    from finflow_sb3.pipeline import Pretrained

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    algo: Annotated[
        OfflineAlgorithm | None,
        typer.Option(
            "--algo", help="What learns; its section owns bare keys, as gamma.", show_default="iql"
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File of finflow collect; or a dataset without a market: minari:ID, d3rlpy's or "
            ".npz.",
            show_default="collected, or from the cache",
        ),
    ] = None,
    action_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="LOW HIGH",
            help="Bounds of actions, for d3rlpy's files and .npz, which have none.",
            show_default="-1 1",
        ),
    ] = None,
    behaviour: OwnRules = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs.")] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(help="Gradient steps in an epoch.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Transitions in a batch.")] = None,
    expectile: Annotated[
        float | None, typer.Option(help="Of iql: τ of the expectile regression, 0.5 to 0.999.")
    ] = None,
    weight_temp: Annotated[
        float | None, typer.Option(help="Of iql: β in exp(β·A), the inverse temperature.")
    ] = None,
    iql_temperature: Annotated[
        float | None, typer.Option(metavar="T", help="The same as a divisor: β = 1/T.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of td3bc: α in λ = α/mean|Q|, weight of Q on cloning.")
    ] = None,
    resume: Resume = None,
) -> None:
    """Learn an allocation from offline data; the best epoch on validation is kept.

    From a dataset without a market a perceptron learns, and the last epoch is kept. Ctrl-C saves a
    checkpoint.
    """
    if resume is not None:
        given = {"dataset": dataset, "action_range": action_range, "algo": algo}
        refuse_flags(FIXED_BY_RUN, shared, given, CHANGING)
    chosen = (algo or "iql") if resume is None else algo_of_resumed(resume)
    own: dict[OfflineAlgorithm, dict[str, float | None]] = {
        "iql": {
            "expectile": expectile,
            "weight_temp": weight_temp,
            "iql_temperature": iql_temperature,
        },
        "td3bc": {"alpha": alpha},
    }
    _refuse_of_others(chosen, own)
    temperature = own["iql"].pop("iql_temperature")
    own["iql"]["weight_temp"] = _inverse_temperature(weight_temp, temperature)
    changes = {
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        "batch_size": batch_size,
        **own[chosen],
    }
    if resume is not None:
        settings = settings_of_resumed(resume, shared, chosen, **{chosen: changes})
        pretrained = _resumed(resume, settings, shared.prices, behaviour or [])
    else:
        settings = shared_settings(shared, chosen, **{chosen: changes})
        pretrained = _new(settings, chosen, dataset, action_range, behaviour or [])
    if shared.json:
        print_json(pretrained)
    check_finished(pretrained, f"pretrain{flags(behaviour=behaviour)} --resume")
    if not shared.json:
        from finflow_sb3.cli.results import show_pretrained

        show_pretrained(pretrained, flags(behaviour=behaviour))


def _new(
    settings: Settings,
    algo: OfflineAlgorithm,
    dataset: str | None,
    action_range: tuple[float, float] | None,
    behaviours: list[str],
) -> Pretrained:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import pretrain

    with watching() as watch:
        return pretrain(
            settings,
            dataset,
            watch=watch,
            algo=algo,
            action_range=action_range,
            behaviours=behaviours,
        )


def _resumed(
    run: Path, settings: Settings, prices: str | None, behaviours: list[str]
) -> Pretrained:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.resuming import resume_pretraining

    with watching() as watch:
        return resume_pretraining(
            run, watch=watch, settings=settings, prices=prices, behaviours=behaviours
        )


def _refuse_of_others(
    algo: OfflineAlgorithm, own: dict[OfflineAlgorithm, dict[str, float | None]]
) -> None:
    """Flags of another algorithm would have no effect."""
    for other, values in own.items():
        given = [
            f"--{name.replace('_', '-')}" for name, value in values.items() if value is not None
        ]
        if given and other != algo:
            raise ConfigError(
                f"{', '.join(given)}: is of {other}, and this is {algo}; leave it out"
            )


def _inverse_temperature(weight_temp: float | None, temperature: float | None) -> float | None:
    if temperature is None:
        return weight_temp
    if weight_temp is not None:
        raise ConfigError("--iql-temperature is 1/--weight-temp; give one of the two")
    if not temperature > 0.0:
        raise ConfigError(f"--iql-temperature: {temperature} is out of range; give one above 0")
    return 1.0 / temperature
