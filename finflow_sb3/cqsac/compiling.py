"""When `torch.compile` pays, and what it is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

from finflow_sb3.errors import ConfigError

__all__ = ["MODES", "Parts", "compiled", "pays"]

MODES = ("off", "auto", "on")
# Warming up takes 20 to 60 s on a CPU and saves some milliseconds an update.
PAYS_AFTER = 20_000


class Parts(NamedTuple):
    """The two halves of an update, as callables; a compiled call costs a tenth of a millisecond
    of its own.
    """

    critic: Callable[..., Any]
    actor: Callable[..., Any]


def pays(mode: str, updates: int) -> bool:
    """Whether to compile for a run of so many updates.

    Raises
    ------
    ConfigError
        If `mode` is unknown, or `on` where there is no C++ compiler.
    """
    if mode not in MODES:
        raise ConfigError(f"compile: {mode!r} is not one of {', '.join(MODES)}")
    if mode == "off" or (mode == "auto" and updates < PAYS_AFTER):
        return False
    found = th.cuda.is_available() or any(map(shutil.which, ("g++", "clang++")))
    if mode == "on" and not found:
        raise ConfigError("compile: on needs a C++ compiler (g++); install one or set it to off")
    return bool(found)


def compiled(parts: Parts) -> Parts:
    """The same functions through `torch.compile`; each compiles when it is first called."""
    return Parts(*(th.compile(part, dynamic=False) for part in parts))
