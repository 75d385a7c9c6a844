"""`finflow collect`: offline data from known allocation rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from finflow_sb3.cli.console import print_json
from finflow_sb3.cli.options import Shared, shared_options, shared_settings
from finflow_sb3.cli.runs import OwnRules, flags, refuse_flags
from finflow_sb3.errors import ConfigError

if TYPE_CHECKING:
    from finflow_sb3.config import Settings
    from finflow_sb3.pipeline import Collected

__all__ = ["command"]


@shared_options
def command(
    shared: Shared,
    episodes: Annotated[
        int | None, typer.Option(help="Episodes to collect.", show_default="1000")
    ] = None,
    save_path: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to write: .h5; .npz loses the market (for other libraries).",
            show_default="the cache",
        ),
    ] = None,
    n_envs: Annotated[int | None, typer.Option(help="Portfolios in the batch.")] = None,
    behaviours: Annotated[
        str | None,
        typer.Option(metavar="RULE,...", help="Rules that trade, in equal shares; all if absent."),
    ] = None,
    behaviour: OwnRules = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Weights that were held, dates x assets; repeatable."),
    ] = None,
    only_own: Annotated[
        bool,
        typer.Option(
            "--only-own",
            help="Without the rules of --behaviours: your own and records alone.",
            show_default=False,
        ),
    ] = False,
    noise: Annotated[
        float | None, typer.Option(help="Standard deviation of the noise around each action.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Go on with the collection that was to write FILE."),
    ] = None,
) -> None:
    """Let known allocation rules trade the training split, and keep what they did."""
    names = None if behaviours is None else [name.strip() for name in behaviours.split(",")]
    given = {"episodes": episodes, "n_envs": n_envs, "behaviours": names, "noise": noise}
    own = Own(behaviour or [], record or [])
    if resume is not None:
        why = "--resume: a collection goes on with the settings that it had"
        refuse_flags(why, shared, {**given, "save_path": save_path, "only_own": only_own or None})
        collected = _resumed(resume, own)
    else:
        _refuse_idle(given, own, only_own)
        collected = _new(shared_settings(shared, None, collect=given), save_path, own, only_own)
    if shared.json:
        print_json(collected)
    else:
        from finflow_sb3.cli.results import show_collected

        show_collected(collected)


class Own(NamedTuple):
    """The user's own rules and records, as they were given."""

    behaviours: list[str]
    records: list[Path]


def _refuse_idle(given: dict[str, Any], own: Own, only_own: bool) -> None:
    """Refuse flags of the built-in rules where none is left, and of all rules likewise."""
    if not only_own or not any(own):
        return
    idle = ("behaviours",) if own.behaviours else ("behaviours", "episodes", "noise")
    named = [f"--{name}" for name in idle if given[name] is not None]
    if named:
        left = "rules of your own and records" if own.behaviours else "records"
        raise ConfigError(
            f"--only-own: {left} alone are left, on which {' and '.join(named)} would have no "
            f"effect; leave out {', '.join(named)}"
        )


def _new(settings: Settings, save_path: Path | None, own: Own, only_own: bool) -> Collected:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.pipeline import collect

    with watching() as watch, _stopping(save_path, own):
        return collect(
            settings,
            save_path,
            watch,
            behaviours=own.behaviours,
            records=own.records,
            only_own=only_own,
        )


def _resumed(dataset: Path, own: Own) -> Collected:
    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.cli.watching import watching
    from finflow_sb3.resuming import resume_collecting

    with watching() as watch, _stopping(dataset, own):
        return resume_collecting(dataset, watch, behaviours=own.behaviours, records=own.records)


@contextmanager
def _stopping(dataset: Path | None, own: Own) -> Iterator[None]:
    """Say how to go on with a collection that was stopped, and exit with 130."""
    from finflow_sb3.cli.watching import stopped
    from finflow_sb3.offline.collect import CollectionStopped

    try:
        yield
    except CollectionStopped:
        if dataset is not None:
            given = flags(behaviour=own.behaviours, record=own.records)
            stopped("stopped", f"collect{given} --resume", dataset)
        else:
            print("stopped; the same command goes on where it was", file=sys.stderr)
        raise typer.Exit(130) from None
