"""`finflow finetune`: CQSAC online, from a pretrained run, from scratch, or from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options
from finflow_sb3.cli.runs import (
    CHANGING,
    FIXED_BY_RUN,
    OwnRules,
    flags,
    refuse_flags,
    seeded_settings,
    settings_of_resumed,
)
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings
    from finflow_sb3.pipeline import Finetuned, Pretrained

__all__ = [
    "GradientCheckpointing",
    "MixedPrecision",
    "Resume",
    "check_finished",
    "command",
    "precision",
]

Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with a run, or from one checkpoint of it; settings given here change it, and "
        "--prices with a longer history has it learn from the new days.",
    ),
]
MixedPrecision = Annotated[
    bool | None,
    typer.Option(
        "--mixed-precision/--no-mixed-precision",
        help="Fine-tune with products of matrices in 16 bits.",
        show_default="no",
    ),
]
GradientCheckpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="Fine-tune in less memory and more time.",
        show_default="no",
    ),
]


def precision(mixed: bool | None) -> str | None:
    """The setting that the flag stands for."""
    return None if mixed is None else "auto" if mixed else "off"


@shared_options
def command(
    shared: Shared,
    pretrained: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Pretraining run to start from; its settings hold too."),
    ] = None,
    resume: Resume = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of finflow collect, to mix in.",
            show_default="collected if needed, or from the cache",
        ),
    ] = None,
    behaviour: OwnRules = None,
    n_timesteps: Annotated[int | None, typer.Option(help="Environment steps in all.")] = None,
    sac_episodes: Annotated[
        int | None, typer.Option(min=1, help="The same in episodes of episode_length steps.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Transitions in a batch.")] = None,
    checkpoint_interval: Annotated[
        int | None, typer.Option(help="Episodes between checkpoints.")
    ] = None,
    max_checkpoints: Annotated[int | None, typer.Option(help="Checkpoints kept.")] = None,
    save_best: Annotated[
        bool | None, typer.Option(help="Keep the policy that was best on validation.")
    ] = None,
    save_latest: Annotated[bool | None, typer.Option(help="Write checkpoints.")] = None,
    mixed_precision: MixedPrecision = None,
    gradient_checkpointing: GradientCheckpointing = None,
) -> None:
    """Train CQSAC online, from a pretrained run or from scratch; Ctrl-C saves a checkpoint."""
    cqsac = {
        "n_timesteps": n_timesteps,
        "batch_size": batch_size,
        "mixed_precision": precision(mixed_precision),
        "gradient_checkpointing": gradient_checkpointing,
    }
    run = {
        "checkpoint_interval": checkpoint_interval,
        "max_checkpoints": max_checkpoints,
        "save_best": save_best,
        "save_latest": save_latest,
    }
    if n_timesteps is not None and sac_episodes is not None:
        raise ConfigError("--n-timesteps and --sac-episodes say the same; give one of the two")
    if resume is not None:
        refuse_flags(FIXED_BY_RUN, shared, {"pretrained": pretrained, "dataset": dataset}, CHANGING)
        settings = settings_of_resumed(resume, shared, "cqsac", cqsac=cqsac, run=run)
        settings = _with_episodes(settings, sac_episodes)
        finetuned = _resumed(resume, settings, shared.prices, behaviour or [])
    else:
        settings = _settings(shared, pretrained, sac_episodes, cqsac=cqsac, run=run)
        finetuned = _new(settings, pretrained, dataset, behaviour or [])
    if shared.json:
        print_json(finetuned)
    check_finished(finetuned, f"finetune{flags(behaviour=behaviour)} --resume")
    if not shared.json:
        from finflow_sb3.cli.results import show_finetuned

        show_finetuned(finetuned)


def _settings(
    shared: Shared, pretrained: Path | None, episodes: int | None, **sections: dict[str, Any]
) -> Settings:
    return _with_episodes(seeded_settings(pretrained, shared, **sections), episodes)


def _with_episodes(settings: Settings, episodes: int | None) -> Settings:
    if episodes is None:
        return settings
    return settings.replace(cqsac={"n_timesteps": episodes * settings.env_kwargs.episode_length})


def _new(
    settings: Settings, pretrained: Path | None, dataset: Path | None, behaviours: list[str]
) -> Finetuned:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import finetune

    with watching() as watch:
        return finetune(settings, pretrained, dataset, watch=watch, behaviours=behaviours)


def _resumed(run: Path, settings: Settings, prices: str | None, behaviours: list[str]) -> Finetuned:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.resuming import resume

    with watching() as watch:
        return resume(run, watch=watch, settings=settings, prices=prices, behaviours=behaviours)


def check_finished(finetuned: Finetuned | Pretrained, go_on: str) -> None:
    """Say how to go on with a run that was stopped, and exit with 130, or with 1 where the
    stability monitor stopped it.

    Parameters
    ----------
    go_on : the command that goes on, as in "finetune --resume"
    """
    if finetuned.finished:
        return
    from finflow_sb3.cli.watching import stopped

    reason = getattr(finetuned, "stopped", None)
    because = "" if reason is None else f" as {reason}"
    stopped(f"stopped at step {finetuned.steps:,}{because}", go_on, finetuned.run)
    raise typer.Exit(130 if reason is None else 1)
