"""`finflow train --algo sac`: one of SB3's own algorithms from scratch, and its evaluation."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import TYPE_CHECKING, Any, Literal

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_sources
from finflow_sb3.config_keys import PlainAlgorithm
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings
    from finflow_sb3.config_arguments import PlainArguments
    from finflow_sb3.pipeline import Finetuned, Trained

__all__ = ["Algorithm", "train_plain_command"]

Algorithm = Literal["cqsac", PlainAlgorithm]


def train_plain_command(shared: Shared, algo: PlainAlgorithm, own: dict[str, Any]) -> None:
    """Train, evaluate and print.

    Parameters
    ----------
    own : flags of `finflow train`, of which `batch_size` alone has an effect here
    """
    given = [f"--{n.replace('_', '-')}" for n, v in own.items() if v not in (None, [])]
    without = [flag for flag in given if flag != "--batch-size"]
    if "--resume" in without:
        raise ConfigError(
            f"--resume: runs of {algo} keep no checkpoints and can't be resumed; leave it out"
        )
    if without:
        raise ConfigError(
            f"--algo {algo} trains online from scratch; leave out {', '.join(without)} "
            "(its length is -p n_timesteps:252000)"
        )
    if own["batch_size"] is not None:
        batch = f"batch_size:{own['batch_size']}"
        shared = dataclasses.replace(shared, param=[*(shared.param or []), batch])
    trained = _trained(*_configured(shared, algo), algo)
    if shared.json:
        print_json(trained)
    if trained.finetuned is not None and not trained.finetuned.finished:
        _say_stopped(trained.finetuned)
    if not shared.json and trained.evaluated is not None and trained.finetuned is not None:
        from finflow_sb3.cli.results import show_evaluated, show_plain

        show_plain(trained.finetuned)
        show_evaluated(trained.evaluated)


def _configured(shared: Shared, algo: str) -> tuple[Settings, PlainArguments]:
    from finflow_sb3.config_arguments import plain_arguments
    from finflow_sb3.config_files import resolve

    sources = shared_sources(shared, {})
    settings = resolve(algo=algo, **sources)
    files, params = sources["files"], sources["params"]
    return settings, plain_arguments(algo, settings.env, files=files, params=params)


def _trained(settings: Settings, arguments: PlainArguments, algo: str) -> Trained:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.plain_training import train_and_evaluate_plain

    with watching() as watch:
        return train_and_evaluate_plain(settings, algo, arguments, watch)


def _say_stopped(trained: Finetuned) -> None:
    """Say what is left of a run that was stopped, and exit with 130, or with 1 where it went
    wrong by itself.
    """
    because = "" if trained.stopped is None else f" as {trained.stopped}"
    kept = "" if trained.best is None else ", best policy so far kept"
    print(
        f"stopped at step {trained.steps:,}{because}{kept}; evaluate it with: "
        f"finflow evaluate {shlex.quote(str(trained.run))}",
        file=sys.stderr,
    )
    raise typer.Exit(130 if trained.stopped is None else 1)
