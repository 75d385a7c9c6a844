"""Which settings there are, by section, and what a key that somebody wrote stands for."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, get_args

from finflow_sb3.config import OFFLINE_ALGORITHMS, Settings
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import one_line, remedy, shown
from finflow_sb3.zoo_values import clean, parse_yaml

__all__ = [
    "ALGORITHMS",
    "OTHER_VARIABLES",
    "PLAIN_ALGORITHMS",
    "SECTIONS",
    "Key",
    "PlainAlgorithm",
    "check_key",
    "find_keys",
    "from_text",
    "key_names",
    "unknown",
    "written_params",
    "written_variables",
]

SECTIONS: dict[str, Any] = {
    name: hint for name, hint in typing.get_type_hints(Settings).items() if name != "env"
}
PlainAlgorithm = Literal["sac", "td3", "ddpg", "ppo", "a2c", "tqc", "crossq"]
"""Algorithms of SB3 and sb3-contrib: their arguments are no part of `Settings`."""
PLAIN_ALGORITHMS: tuple[PlainAlgorithm, ...] = get_args(PlainAlgorithm)
ALGORITHMS = (*OFFLINE_ALGORITHMS, "cqsac", *PLAIN_ALGORITHMS)
OTHER_VARIABLES = ("FINFLOW_CACHE_DIR", "FINFLOW_DEBUG", "FINFLOW_ENV", "FINFLOW_PRESET")
"""Variables with our prefix that are not settings: places, and options of the command."""

_PREFIX = "FINFLOW_"
_OF_A_PHASE = ("collect", *OFFLINE_ALGORITHMS, "cqsac")
_SHARED = tuple(name for name in SECTIONS if name not in _OF_A_PHASE)

Key = tuple[str, str]
"""Section and name of a setting, as in ``("iql", "expectile")``."""


@cache
def key_names(section: str) -> tuple[str, ...]:
    """Names of the settings of a section, in their order."""
    return tuple(field.name for field in dataclasses.fields(SECTIONS[section]))


def unknown(what: str, name: str, known: Collection[str], where: str) -> ConfigError:
    """The error for a name that is not among `known`, with the nearest that is."""
    listed = None if len(known) <= 10 else "`finflow config show` lists all settings"
    return ConfigError(f"{where}: unknown {what} {shown(name)}; {remedy(name, known, listed)}")


def check_key(section: str, name: str, where: str) -> Key:
    """The key of a setting that was written under its section.

    Raises
    ------
    ConfigError
        If there is no such section or setting.
    """
    if section not in SECTIONS:
        raise unknown("section", section, list(SECTIONS), where)
    if name in key_names(section):
        return section, name
    owners = [other for other in SECTIONS if name in key_names(other)]
    if owners:
        raise ConfigError(
            f"{where}: unknown setting {name!r} of {section}; it belongs under {owners[0]!r}"
        )
    raise unknown(f"setting of {section}", name, key_names(section), where)


def find_keys(text: str, algo: str | None, where: str) -> tuple[Key, ...]:
    """The setting that ``section.name`` or a bare ``name`` stands for.

    A bare name that several sections have is the one of the command's algorithm. One that only
    algorithms of the offline phase have is that of each: whichever pretrains, it holds.

    Returns
    -------
    tuple
        Empty if the key is an argument of a plain SB3 algorithm and no part of `Settings`.

    Raises
    ------
    ConfigError
        If no section has it, or several and none is the algorithm's.
    """
    section, dot, name = text.partition(".")
    if dot:
        if algo in PLAIN_ALGORITHMS and section == algo:
            return ()
        return (check_key(section, name, where),)
    if algo in PLAIN_ALGORITHMS:
        shared = [s for s in _SHARED if text in key_names(s)]
        return ((shared[0], text),) if shared else ()
    owners = [s for s in SECTIONS if text in key_names(s)]
    if algo is not None and algo in owners:
        return ((algo, text),)
    if not owners:
        every = [name for s in SECTIONS for name in key_names(s)]
        if where.startswith(_PREFIX):
            every += [name.removeprefix(_PREFIX).lower() for name in OTHER_VARIABLES]
        raise unknown("setting", text, list(dict.fromkeys(every)), where)
    if len(owners) > 1 and not set(owners) <= set(OFFLINE_ALGORITHMS):
        candidates = " or ".join(f"{s}.{text}" for s in owners)
        raise ConfigError(f"{where}: {text!r} is ambiguous; write {candidates}")
    return tuple((owner, text) for owner in owners)


def from_text(key: Key | None, name: str, text: str, where: str) -> Any:
    """The value of a setting that came as text: a parameter, an environment variable.

    It is read as YAML, except where the setting is a text by itself: a folder named 2024 is not
    a number.
    """
    hint = None if key is None else typing.get_type_hints(SECTIONS[key[0]])[key[1]]
    if hint is str:
        return text
    if hint == str | None:
        return None if text in ("", "null", "~") else text
    if text.startswith("dict("):
        return clean(name, text, where)
    return clean(name, parse_yaml(text, where), where)


def written_variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Key, text and origin of every setting in the environment; an empty one is not set."""
    for variable in sorted(environ):
        if variable.startswith(_PREFIX) and variable not in OTHER_VARIABLES and environ[variable]:
            key = variable.removeprefix(_PREFIX).lower().replace("__", ".", 1)
            yield key, environ[variable], one_line(variable)


def written_params(params: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Key, text and origin of every "key:value".

    Raises
    ------
    ConfigError
        If one has no colon or no key.
    """
    for param in params:
        key, colon, text = param.partition(":")
        if not colon or not key.strip():
            raise ConfigError(f"--param {_short(param)}: is not key:value, as in cql_alpha:10")
        yield key.strip(), text.strip(), f"--param {_short(param)}"


def _short(text: str) -> str:
    return shown(text)[1:-1]
