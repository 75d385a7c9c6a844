"""When `torch.compile` pays, and what it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

from finflow_sb3.errors import ConfigError

__all__ = ["MODES", "Parts", "compiled", "pays", "require_mode"]

MODES = ("off", "auto", "on")
# Warming up takes 20 to 60 s on a CPU and saves some milliseconds an update.
PAYS_AFTER = 20_000


class Parts(NamedTuple):
    """The two halves of an update, as callables; a compiled call costs a tenth of a millisecond
    of its own.
    """

    critic: Callable[..., Any]
    actor: Callable[..., Any]


def require_mode(mode: str) -> None:
    """Raise a `ConfigError` if `mode` is unknown, or `on` where there is no C++ compiler."""
    if mode not in MODES:
        raise ConfigError(f"compile: {mode!r} is not one of {', '.join(MODES)}")
    if mode == "on" and not _compiler_found():
        raise ConfigError("compile: on needs a C++ compiler (g++); install one or set it to off")


def pays(mode: str, updates: int) -> bool:
    """Whether to compile for a run of so many updates.

    Raises
    ------
    ConfigError
        As `require_mode` does.
    """
    require_mode(mode)
    return mode == "on" or (mode == "auto" and updates >= PAYS_AFTER and _compiler_found())


def _compiler_found() -> bool:
    return th.cuda.is_available() or any(map(shutil.which, ("g++", "clang++")))


def compiled(parts: Parts) -> Parts:
    """The same functions through `torch.compile`; each compiles when it is first called."""
    return Parts(*(th.compile(part, dynamic=False) for part in parts))
