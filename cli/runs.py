"""What commands that start from a run have in common: its settings, and flags it does not take."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finflow_sb3.cli.options import Shared, shared_settings
from finflow_sb3.config import OfflineAlgorithm, Settings
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.runs.folder import RunFolder

__all__ = [
    "CHANGING",
    "FIXED_BY_RUN",
    "OwnRules",
    "algo_of_resumed",
    "flags",
    "refuse_flags",
    "seeded_settings",
    "settings_from",
    "settings_of_resumed",
]

FIXED_BY_RUN = "--resume: a run stays where it is, with the start that it had"
CHANGING = ("prices", "config", "param", "preset", "device", "seed")
"""Shared options that a run may be resumed with; what can't change is refused by name."""

OwnRules = Annotated[
    list[str] | None,
    typer.Option(
        "--behaviour",
        metavar="MODULE:FUNCTION",
        help="A rule of your own, which takes turns with those of collect.behaviours; repeatable.",
    ),
]

_FROM_VARIABLES = {"env": "FINFLOW_ENV", "preset": "FINFLOW_PRESET"}


def flags(**given: list[Any] | None) -> str:
    """Flags that were given, for the line that says how to go on; each with a space before it."""
    return "".join(
        f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, values in given.items()
        for value in values or []
    )


def refuse_flags(why: str, shared: Shared, own: dict[str, Any], keep: tuple[str, ...] = ()) -> None:
    """Refuse flags that would have no effect.

    Parameters
    ----------
    why : why they have none, the start of the message
    own : the command's own flags, None where one was not given
    keep : names of shared options that do have one

    Raises
    ------
    ConfigError
        Naming the flags that were given.
    """
    values = {**own, **dataclasses.asdict(shared)}
    for name, variable in _FROM_VARIABLES.items():
        if values[name] == os.environ.get(variable):
            values[name] = None
    given = [
        f"--{name.replace('_', '-')}"
        for name, value in values.items()
        if name not in ("json", "quiet", *keep) and value not in (None, [])
    ]
    if given:
        raise ConfigError(f"{why}; leave out {', '.join(given)}")


def settings_of_resumed(
    path: Path, shared: Shared, algo: str, /, **sections: dict[str, Any]
) -> Settings:
    """The run's own settings with what is given now; prices are the library's to compare."""
    run = _run_of(path).path
    return settings_from(run, dataclasses.replace(shared, prices=None), algo, **sections)


def algo_of_resumed(path: Path) -> OfflineAlgorithm:
    """The algorithm of a pretraining run, or of the one that a checkpoint is of."""
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.run_notes import noted_algo

    return noted_algo(_run_of(path))


def _run_of(path: Path) -> RunFolder:
    """The run that a path names, itself or by one of its checkpoints."""
    from finflow_sb3.runs.checkpoints import named_checkpoint
    from finflow_sb3.runs.folder import RunFolder

    named = named_checkpoint(path)
    return RunFolder.open(named.parent.parent if named else path)


def settings_from(run: Path, shared: Shared, algo: str, /, **sections: dict[str, Any]) -> Settings:
    """Settings that go on from those of `run`: what else is given overrides its config.yml.

    The order of `finflow_sb3.config_files.resolve` holds, with the run's settings in the place
    of the packaged defaults.
    """
    from finflow_sb3.config_files import read_config

    return shared_settings(shared, algo, read_config(run / "config.yml"), **sections)


def seeded_settings(
    pretrained: Path | None, shared: Shared, **sections: dict[str, Any]
) -> Settings:
    """Settings of fine-tuning: those of the pretraining run hold too, where there is one."""
    run = pretrained.parent if pretrained and pretrained.name == "best" else pretrained
    if run is not None and (run / "config.yml").is_file():
        return settings_from(run, shared, "cqsac", **sections)
    return shared_settings(shared, "cqsac", **sections)
