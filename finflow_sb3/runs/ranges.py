"""Which figures of training are normal, and which are a warning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["RANGES", "Level", "Range", "level", "policy_width"]

Level = Literal["normal", "unusual", "warning"]


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high` are normal, those below `floor` or above `ceiling` a warning,
    and those between unusual.
    """

    low: float
    high: float
    floor: float
    ceiling: float


RANGES = {
    "q_mean": Range(-10.0, 10.0, -100.0, 100.0),
    "policy_width": Range(0.1, math.inf, 0.01, math.inf),
    "actor_loss": Range(-math.inf, 10.0, -math.inf, 50.0),
    "critic_loss": Range(0.0, 5.0, 0.0, 20.0),
    "validation_sharpe": Range(0.0, math.inf, -0.5, math.inf),
}


def level(name: str, value: float | None) -> Level | None:
    """How a figure stands to its range; None where it has none.

    A figure that is known but not finite is a warning: what is logged as null was no number.
    """
    known = RANGES.get(name)
    if known is None:
        return None
    if value is None or not math.isfinite(value):
        return "warning"
    if value < known.floor or value > known.ceiling:
        return "warning"
    return "normal" if known.low <= value <= known.high else "unusual"


def policy_width(entropy: float, dimensions: int) -> float:
    """Half the width of the box that is as uncertain as the policy, in each of `dimensions`.

    Actions lie in (-1, 1): a uniform one has an entropy of log 2 a dimension, and width 1.
    """
    return math.exp(entropy / dimensions) / 2.0
