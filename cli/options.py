"""Options that every command takes, and the settings that come of them."""

from __future__ import annotations

import copy
import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finflow_sb3.cli.console import set_quiet

if TYPE_CHECKING:
    from finflow_sb3.config import Settings

__all__ = ["Shared", "only_shared", "shared_options", "shared_settings", "shared_sources"]


def _option(*names: str, help: str, **details: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Shared options", **details)


@dataclass(frozen=True)
class Shared:
    """Values of the shared options; None or empty where one was not given."""

    env: Annotated[
        str | None,
        _option(
            "--env",
            envvar="FINFLOW_ENV",
            help="Environment id: the top key of a settings file whose entries apply.",
            show_default="the one in --config, else finflow/US20-v0",
        ),
    ] = None
    prices: Annotated[
        str | None,
        _option("--prices", help="us20, a file (CSV, CSV.gz, Parquet) or yahoo:SYMBOL,..."),
    ] = None
    config: Annotated[
        list[Path] | None,
        _option("--config", "-c", metavar="FILE", help="YAML file; the last one wins."),
    ] = None
    param: Annotated[
        list[str] | None,
        _option(
            "--param",
            "-p",
            metavar="KEY:VALUE",
            help="One setting, KEY:VALUE or SECTION.KEY:VALUE, as cql_alpha:10; repeatable.",
        ),
    ] = None
    preset: Annotated[
        str | None,
        _option("--preset", envvar="FINFLOW_PRESET", help="volatile or stable."),
    ] = None
    seed: Annotated[int | None, _option("--seed", help="Seed of everything.")] = None
    device: Annotated[str | None, _option("--device", help="auto, cpu, cuda, cuda:N.")] = None
    log_dir: Annotated[
        Path | None, _option("--log-dir", help="Where runs are written.", show_default="logs")
    ] = None
    json: Annotated[
        bool, _option("--json", help="Print the result as JSON on stdout.", show_default=False)
    ] = False
    quiet: Annotated[
        bool, _option("--quiet", help="Print results and errors only.", show_default=False)
    ] = False


def only_shared(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `shared_options`, for a command that goes by a run's own settings.

    It shows the options of these names, ``--json`` and ``--quiet``. The others are parsed, for
    `finflow_sb3.cli.runs.refuse_flags` to say why they have no effect.
    """
    return functools.partial(shared_options, shown=(*names, "json", "quiet"))


def shared_options(
    function: Callable[..., None], shown: tuple[str, ...] | None = None
) -> Callable[..., None]:
    """Give a command the shared options; it gets them as its first argument, a `Shared`.

    ``@shared_options`` on ``def command(shared: Shared, epochs: Epochs = None) -> None`` makes
    a command with ``--epochs`` and all shared options.

    Parameters
    ----------
    shown : names of those that ``--help`` shows; all if None
    """
    hints = typing.get_type_hints(Shared, include_extras=True)
    if shown is not None:
        hints = {name: hint if name in shown else _hidden(hint) for name, hint in hints.items()}
    names = [field.name for field in fields(Shared)]

    @functools.wraps(function)
    def command(*args: Any, **values: Any) -> None:
        shared = Shared(**{name: values.pop(name) for name in names})
        set_quiet(shared.quiet)
        function(shared, *args, **values)

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Shared)
    ]
    keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    parameters = [*keyword, *added]
    # Typer reads both, and both would otherwise be those of the wrapped function.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _hidden(hint: Any) -> Any:
    """The type and option of `hint`, without a line in ``--help``."""
    kind, option = typing.get_args(hint)
    option = copy.copy(option)
    option.hidden = True
    return Annotated[kind, option]


def shared_settings(
    shared: Shared, algo: str | None, base: Settings | None = None, /, **sections: dict[str, Any]
) -> Settings:
    """Settings of a command from the shared options and its own flags.

    Parameters
    ----------
    shared : the shared options
    algo, base : as for `finflow_sb3.config_files.resolve`
    sections : the command's own flags by section, as ``iql={"epochs": epochs}``; a flag that is
        None was not given

    Raises
    ------
    ConfigError
        As `finflow_sb3.config_files.resolve` does.
    """
    from finflow_sb3.config_files import resolve

    return resolve(**shared_sources(shared, sections), algo=algo, base=base)


def shared_sources(shared: Shared, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The shared options and a command's own flags, as `resolve` takes them."""
    log_dir = None if shared.log_dir is None else str(shared.log_dir)
    run = {"seed": shared.seed, "device": shared.device, "log_dir": log_dir}
    flags = {
        **sections,
        "market": {"prices": shared.prices, **sections.get("market", {})},
        "run": {**run, **sections.get("run", {})},
    }
    return {
        "env": shared.env,
        "files": shared.config or [],
        "preset": shared.preset,
        "params": shared.param or [],
        "flags": {section: _given(values) for section, values in flags.items()},
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
