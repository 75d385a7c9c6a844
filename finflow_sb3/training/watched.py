"""What the monitor keeps: the course of a figure, the last rewards, and their plain forms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.checks import Action, Check, Level

__all__ = ["Course", "RewardWindow", "effective_number", "policy_width"]

Float = NDArray[np.float64]

# Rewards are in the market's daily deviations. Where all are alike, what differs by rounding is
# no outlier.
LEAST_DEVIATION = 1e-6


def effective_number(shares: Sequence[float]) -> float:
    """exp(H) of shares, scaled to one: n where n are alike, 1 where one has all; NaN where they
    are no shares.
    """
    total = sum(shares)
    if not (math.isfinite(total) and total > 0.0):
        return math.nan
    return math.exp(-sum(p / total * math.log(p / total) for p in shares if p > 0.0))


def policy_width(entropy: float, action_size: int) -> float:
    """exp(H/d)/2: share of (−1, 1) that a uniform policy of the same entropy covers in each of
    the action's d dimensions.
    """
    # What is infinite is found as such elsewhere; here it must not overflow.
    return math.exp(min(entropy / action_size, 700.0)) / 2.0


@dataclass
class Course:
    """One figure through the run.

    Attributes
    ----------
    last, worst : the last figure and the worst of all; None before there is one
    fresh : the worst since the last boundary, None where it was not measured since
    level : of the last boundary at which it was fresh
    warnings : events so far
    actions : the same by action
    acted : step of the last event, None before the first
    """

    check: Check
    last: float | None = None
    worst: float | None = None
    fresh: float | None = None
    level: Level = "ok"
    warnings: int = 0
    actions: dict[str, int] = field(default_factory=dict)
    acted: int | None = None

    def note(self, value: float) -> None:
        self.last = value
        self.fresh = self._worse(self.fresh, value)
        self.worst = self._worse(self.worst, value)

    def _worse(self, old: float | None, new: float) -> float:
        if old is None or self.check.badness(new) > self.check.badness(old):
            return new
        return old

    def act(self, action: Action, step: int) -> None:
        """Count an event."""
        self.warnings += 1
        self.actions[action] = self.actions.get(action, 0) + 1
        self.acted = step

    def keep_count(self, other: Course) -> None:
        """Take the events and the worst figure of `other`. Another event may follow at once: what
        comes back after a rollback is no lasting condition.
        """
        self.worst, self.warnings, self.actions = other.worst, other.warnings, other.actions
        self.acted = None

    def summary(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "last": self.last,
            "worst": self.worst,
            "warnings": self.warnings,
            "actions": dict(self.actions),
        }

    def state(self) -> dict[str, Any]:
        numbers = {name: _plain(getattr(self, name)) for name in ("last", "worst", "fresh")}
        return {**self.summary(), **numbers, "acted": self.acted}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in ("last", "worst", "fresh"):
            setattr(self, name, None if state[name] is None else float(state[name]))
        self.level, self.acted = state["level"], state["acted"]
        self.warnings, self.actions = int(state["warnings"]), dict(state["actions"])


def _plain(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity; `float` reads them back from text."""
    return value if value is None or math.isfinite(value) else str(value)


class RewardWindow:
    """The last rewards of all portfolios, in a ring.

    Parameters
    ----------
    size : how many are kept
    """

    def __init__(self, size: int):
        self.ring: Float = np.zeros(size)
        self.count = 0

    def furthest(self, rewards: Float) -> float | None:
        """The largest distance of `rewards` from the window's mean, in its deviations.

        None before the window is full, and where there are no rewards.
        """
        if self.count < len(self.ring) or not len(rewards):
            return None
        mean = self.ring.mean()
        apart = self.ring - mean
        deviation = math.sqrt(apart @ apart / len(apart))
        return float(np.abs(rewards - mean).max() / max(deviation, LEAST_DEVIATION))

    def add(self, rewards: Float) -> None:
        """Take these in for the oldest."""
        size = len(self.ring)
        rewards = rewards[-size:]
        start = self.count % size
        fits = min(len(rewards), size - start)
        self.ring[start : start + fits] = rewards[:fits]
        self.ring[: len(rewards) - fits] = rewards[fits:]
        self.count += len(rewards)

    def state(self) -> dict[str, Any]:
        return {"rewards": self.ring[: self.count].tolist(), "count": self.count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; of a window of another size what fits."""
        kept, count = np.asarray(state["rewards"], dtype=np.float64), int(state["count"])
        size = len(self.ring)
        if len(kept) == min(count, size) and (count <= size or len(kept) == size):
            self.ring[: len(kept)], self.count = kept, count
            return
        self.count = 0
        self.add(np.roll(kept, -(count % len(kept))))
