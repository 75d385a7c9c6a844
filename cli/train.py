"""`finflow train` and `finflow demo`: every stage in a row."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finflow_sb3.cli.console import console, out, print_json
from finflow_sb3.cli.finetune import (
    GradientCheckpointing,
    MixedPrecision,
    Resume,
    check_finished,
    precision,
)
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.cli.runs import (
    CHANGING,
    FIXED_BY_RUN,
    OwnRules,
    flags,
    refuse_flags,
    settings_of_resumed,
)
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings
    from finflow_sb3.pipeline import Trained

__all__ = ["demo_command", "train_command"]

Mode = Literal["demo", "full", "offline", "online"]
ALGO = {"offline": "iql", "online": "cqsac"}
# Bare keys of a resumed run, of whichever phase, that both phases have.
ALGO_OF_RUN = "cqsac"


@shared_options
def train_command(
    shared: Shared,
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="full pretrains and fine-tunes, offline and online one of both; demo is small.",
            show_default="full",
        ),
    ] = None,
    iql_epochs: Annotated[int | None, typer.Option(help="Epochs of pretraining.")] = None,
    sac_episodes: Annotated[
        int | None, typer.Option(min=1, help="Episodes of fine-tuning, episode_length steps each.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Transitions in a batch, in both phases.")
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(help="File of finflow collect.", show_default="collected, or from the cache"),
    ] = None,
    behaviour: OwnRules = None,
    resume: Resume = None,
    mixed_precision: MixedPrecision = None,
    gradient_checkpointing: GradientCheckpointing = None,
) -> None:
    """Collect, pretrain, fine-tune and evaluate in one go."""
    cqsac = {
        "batch_size": batch_size,
        "mixed_precision": precision(mixed_precision),
        "gradient_checkpointing": gradient_checkpointing,
    }
    own = {
        "mode": mode,
        "iql_epochs": iql_epochs,
        "sac_episodes": sac_episodes,
        "dataset": dataset,
        **cqsac,
    }
    if resume is not None:
        refuse_flags(FIXED_BY_RUN, shared, own, CHANGING)
        settings = settings_of_resumed(resume, shared, ALGO_OF_RUN)
        trained = _resumed(resume, settings, shared.prices, behaviour or [])
    else:
        chosen = mode or "full"
        if chosen == "demo" and (iql_epochs is not None or sac_episodes is not None):
            raise ConfigError(
                "--mode demo has lengths of its own; use --mode full with --iql-epochs and "
                "--sac-episodes"
            )
        sections: dict[str, dict[str, Any]] = {
            "iql": {"epochs": iql_epochs, "batch_size": batch_size},
            "cqsac": cqsac,
        }
        settings = shared_settings(shared, ALGO.get(chosen), **sections)
        if sac_episodes is not None:
            steps = sac_episodes * settings.env_kwargs.episode_length
            settings = settings.replace(cqsac={"n_timesteps": steps})
        trained = _trained(settings, chosen, dataset, behaviour or [])
    _show(trained, shared.json, flags(behaviour=behaviour))


@shared_options
def demo_command(shared: Shared) -> None:
    """Everything from prices to the report with small settings, in a few minutes."""
    settings = shared_settings(shared, None)
    trained = _trained(settings, "demo", None, [])
    _show(trained, shared.json)
    if not shared.json and trained.pretrained and trained.finetuned:
        pretrained, finetuned = trained.pretrained.run, trained.finetuned.run
        _suggest(settings.market.prices, pretrained, finetuned)


def _trained(
    settings: Settings, mode: Mode, dataset: Path | None, behaviours: list[str]
) -> Trained:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import demo_settings, train

    with watching() as watch:
        if mode == "demo":
            small = demo_settings(settings)
            console.print(
                f"Demo on {small.market.prices}: {small.collect.episodes} episodes of known rules, "
                f"{small.iql.epochs} epochs of IQL, {small.cqsac.n_timesteps:,} steps of CQSAC, "
                "a backtest.",
                markup=False,
                highlight=False,
            )
        return train(settings, mode, dataset, watch, behaviours=behaviours)


def _resumed(run: Path, settings: Settings, prices: str | None, behaviours: list[str]) -> Trained:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.resuming import continue_training

    with watching() as watch:
        return continue_training(
            run, watch, settings=settings, prices=prices, behaviours=behaviours
        )


def _show(trained: Trained, as_json: bool, flags: str = "") -> None:
    if as_json:
        print_json(trained)
    for stage in (trained.pretrained, trained.finetuned):
        if stage is not None:
            check_finished(stage, f"train{flags} --resume")
    if not as_json and trained.evaluated is not None:
        from finflow_sb3.cli.results import show_evaluated

        show_evaluated(trained.evaluated)


def _suggest(prices: str, pretrained: Path, finetuned: Path) -> None:
    from rich.text import Text

    from finflow_sb3.cli.results import command

    source = "" if prices == "us20" else f" --prices {shlex.quote(prices)}"
    suggestions = {
        "Train at full length": f"finflow train --mode full{source}",
        "Fine-tune longer from this start": (
            f"{command('finetune --pretrained', pretrained)} --n-timesteps 252000"
        ),
        "Every figure as JSON": f"{command('evaluate', finetuned)} --json",
    }
    out.print(Text("What to try next:"))
    for what, line in suggestions.items():
        out.print(Text(f"  {what}:"))
        out.print(Text(f"    {line}", "cyan"), soft_wrap=True)
