"""Options of commands that take several runs, and `finflow train --seeds`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.ensemble_training import TrainedEnsemble

__all__ = ["Combine", "RunFolders", "Seeds", "Shrink", "check_all_trained", "together"]

RunFolders = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="A run, an ensemble, or several runs to act as one."),
]
Combine = Annotated[
    Literal["mean", "median", "validation"] | None,
    typer.Option(
        help="How several runs' weights are combined; validation weighs by validation Sharpe.",
        show_default="mean",
    ),
]
Shrink = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="λ",
        help="Trade less where runs disagree: 1 − λ·disagreement/distance of the way.",
        show_default="0",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(min=2, help="Train so many, with seeds from --seed on, to act as one."),
]


def together(seeds: int | None, combine: str | None, shrink: float | None) -> dict[str, Any] | None:
    """Arguments of `train_ensemble` from these flags; None where one run is asked for.

    Raises
    ------
    ConfigError
        If it is said how to combine what is one run.
    """
    if seeds is None:
        given = [("--combine", combine), ("--shrink", shrink)]
        without = [flag for flag, value in given if value is not None]
        if without:
            raise ConfigError(f"{without[0]}: concerns several runs; give --seeds too")
        return None
    return {"seeds": seeds, "combination": combine or "mean", "shrinkage": shrink or 0.0}


def check_all_trained(trained: TrainedEnsemble, go_on: str) -> None:
    """Say how to go on with an ensemble that was stopped, and exit with 130."""
    if trained.finished:
        return
    from finflow_sb3.cli.watching import stopped

    done = f"{len(trained.members)} of {len(trained.seeds)} seeds"
    stopped(f"stopped after {done}", go_on, trained.run)
    raise typer.Exit(130)
