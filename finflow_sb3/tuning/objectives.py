"""What trials are judged by: measures of a net curve on the validation split, all to be raised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown

__all__ = ["MEASURES", "OBJECTIVES", "Objective", "known_objectives", "scores"]

Objective = Literal["sharpe", "sortino", "calmar", "cvar", "return"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
MEASURES: dict[str, str] = {
    "sharpe": "sharpe",
    "sortino": "sortino",
    "calmar": "calmar",
    # The mean of the worst 5 % of days: negative, and better the greater it is.
    "cvar": "cvar_95",
    "return": "annual_return",
}


def known_objectives(names: Sequence[str]) -> tuple[str, ...]:
    """The names, if they are objectives.

    Raises
    ------
    ConfigError
        If one is not, or is there twice, or none is given.
    """
    for name in names:
        if name not in MEASURES:
            raise ConfigError(
                f"--objective: {shown(name)} is not known; {remedy(name, list(MEASURES))}"
            )
    if not names or len(set(names)) < len(names):
        raise ConfigError("--objective: give each objective once, at least one")
    return tuple(names)


def scores(measures: dict[str, float], objectives: Sequence[str]) -> tuple[float, ...] | None:
    """The objectives' values; None where one is no finite number."""
    found = tuple(float(measures[MEASURES[name]]) for name in objectives)
    return found if all(map(math.isfinite, found)) else None
