"""Keeps notices of imported libraries away from the user."""

from __future__ import annotations

import contextlib
import importlib
import io

__all__ = ["import_d3rlpy", "silence_gym_notice"]


def import_d3rlpy() -> None:
    """Import d3rlpy without what it prints to stdout, where results go, if Shimmy is installed."""
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("d3rlpy")


def silence_gym_notice() -> None:
    """Keep `gym`, which d3rlpy and Stable-Baselines3 import, from printing that it is old.

    To be called before they are imported. `gym` looks its notice up by version in the table of
    `gym_notices`; with an empty table it prints nothing. Other output is not touched.
    """
    try:
        notices = importlib.import_module("gym_notices.notices")
    except ModuleNotFoundError:
        return
    notices.notices.clear()
