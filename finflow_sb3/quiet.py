"""Keeps one notice of an imported library away from the user."""

from __future__ import annotations

import importlib

__all__ = ["silence_gym_notice"]


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
