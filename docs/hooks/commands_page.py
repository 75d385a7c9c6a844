"""The reference of the command, from the Typer app itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from finflow_sb3.cli.app import app

__all__ = ["SHARED", "command_names", "commands", "options_table", "shared_options_table"]

SHARED = "Shared options"
"""The panel of the options that nearly every command takes."""


def commands() -> str:
    """A section for every command, those of groups among them."""
    return "\n\n".join(_section(name, command) for name, command in _walk("finflow", _root()))


def command_names() -> list[str]:
    """Full names, as in ``finflow data info``."""
    return [name for name, _ in _walk("finflow", _root())]


def shared_options_table() -> str:
    """The options of `cli.options.Shared`, as a command that takes them all has them."""
    return options_table([p for p in _root().commands["train"].params if _is_shared(p)])


def _root() -> Any:
    return typer.main.get_command(app)


def _walk(name: str, group: Any) -> Iterator[tuple[str, Any]]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _walk(f"{name} {word}", command)
        elif not command.hidden:
            yield f"{name} {word}", command


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    own = [p for p in options if not _is_shared(p)]
    usage = " ".join([name, *map(_placeholder, arguments), "[OPTIONS]"])
    parts = [f"## {name}", _text(command.help), f"```text\n{usage}\n```"]
    if arguments or own:
        parts.append(options_table([*arguments, *own]))
    parts += _shared(list(filter(_is_shared, options)))
    return "\n\n".join(parts)


def _shared(options: list[Any]) -> list[str]:
    """Which of the shared options a command takes, in words."""
    if not options:
        return []
    shown = [f"`{p.opts[0]}`" for p in options if not p.hidden]
    if len(shown) == len(options):
        return ["And the [shared options](#shared-options)."]
    names = f"{', '.join(shown[:-1])} and {shown[-1]}"
    return [f"And {names} of the [shared options](#shared-options)."]


def options_table(params: list[Any]) -> str:
    """Arguments and options: name, what goes there, default, help."""
    lines = ["| name | value | default | what it does |", "|---|---|---|---|"]
    for param in params:
        cells = _names(param), _value(param), _default(param), _help(param)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_shared(param: Any) -> bool:
    return getattr(param, "rich_help_panel", None) == SHARED


def _placeholder(param: Any) -> str:
    name = (param.metavar or param.name).upper()
    name = f"{name}..." if param.nargs == -1 else name
    return name if param.required else f"[{name}]"


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{_placeholder(param)}`"
    return ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])


def _value(param: Any) -> str:
    """What is written after an option; nothing after a flag."""
    if param.param_type_name == "argument" or getattr(param, "is_flag", False):
        return ""
    described = param.type_descriptor
    choices = ", ".join(f"`{choice}`" for choice in described.choices or ())
    kind = choices or f"`{param.metavar or _kind(param.bare_type())}`"
    ends = [("from", param.min), ("to", param.max)]
    bounds = "".join(f" {word} {end}" for word, end in ends if end is not None)
    return kind + bounds + (", repeatable" if param.multiple else "")


def _kind(name: str) -> str:
    """A type as a terminal calls it."""
    names = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER"}
    inner = name.removeprefix("list[").removesuffix("]")
    return names.get(inner, inner.upper())


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return _text(param.show_default)
    value = param.default
    if param.required:
        return "must be given"
    if param.show_default is False or value is None or value is False:
        return ""
    return f"`{value.as_posix() if isinstance(value, Path) else value}`"


def _help(param: Any) -> str:
    variable = f" Also as `{param.envvar}`." if getattr(param, "envvar", None) else ""
    return _text(param.help) + variable


def _text(help: str | None) -> str:
    words = " ".join((help or "").split())
    return words.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
