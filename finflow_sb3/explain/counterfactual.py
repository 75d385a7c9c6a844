"""What would have had to differ: the smallest change of features that moves a weight past a mark.

Minimise ‖δ‖₂ subject to w_i(x + δ) = θ and −5 ≤ x + δ ≤ 5, where features are scaled by their
training deviations and have never been past ±5. Found by the iteration of Hasofer & Lind (1974)
and Rackwitz & Fiessler (1978), which reliability engineering uses for the same problem: the weight
is replaced by its tangent, the smallest δ on the tangent's line is the next one, and steps are
shortened until the merit ‖δ‖²/2 + c·|w_i − θ| falls (Zhang & Der Kiureghian 1995). From several
starts; the least δ is moved past the mark and verified by the policy itself.

Features move as numbers. Prices that have just these may not exist: a return of 21 days does not
move without one of 63. Anchors and portfolio stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finflow_sb3.envs.observations import CLIP

__all__ = ["Change", "Goal", "smallest_change"]

Float = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]
STARTS, ROUNDS = 4, 60
# How near the mark the iteration ends, and how far past it the answer goes.
CLOSE, PAST = 1e-6, 1e-7


@dataclass(frozen=True)
class Goal:
    """A weight past a mark: of the asset in place `place`, on this side of `mark`."""

    place: int
    side: Literal["above", "below"]
    mark: float

    def met(self, weight: float) -> bool:
        """Whether a weight is past the mark."""
        return weight > self.mark if self.side == "above" else weight < self.mark

    @property
    def sign(self) -> float:
        return 1.0 if self.side == "above" else -1.0


@dataclass(frozen=True)
class Change:
    """What a search found.

    Attributes
    ----------
    delta : shape [V], of the features that may move; zero where the goal is met as it is
    reached : the weight with that change, or the furthest that was found
    found : whether it is past the mark
    """

    delta: Float
    reached: float
    found: bool

    @property
    def size(self) -> float:
        """‖δ‖₂, in training deviations."""
        return float(np.linalg.norm(self.delta))


def smallest_change(
    target: Map, observation: Float, places: NDArray[np.intp], goal: Goal, seed: int = 0
) -> Change:
    """Search for the least change of `observation[places]` that meets the goal.

    Parameters
    ----------
    target : observations float64 [B, D] → weights [B, n+1]
    observation : shape [D]
    places : which of its entries may move
    seed : of the starts after the first, which is the observation itself
    """
    problem = _Problem(target, np.asarray(observation, dtype=np.float64), places, goal)
    zero = np.zeros(len(places))
    here = problem.weight(zero)
    if goal.met(here):
        return Change(zero, here, True)
    rng = np.random.default_rng(seed)
    found: list[Float] = []
    furthest = (zero, here)
    for start in range(STARTS):
        first = zero if start == 0 else problem.inside(rng.normal(0.0, 0.5, len(places)))
        delta = problem.solve(first)
        past = problem.push_past(delta)
        if past is not None:
            found.append(past)
            continue
        furthest = max(
            furthest, (delta, problem.weight(delta)), key=lambda each: goal.sign * each[1]
        )
    if not found:
        delta, reached = problem.climb(furthest[0])
        past = problem.push_past(delta)
        if past is None:
            return Change(delta, reached, False)
        found.append(past)
    best = min(found, key=lambda delta: float(np.linalg.norm(delta)))
    return Change(best, problem.weight(best), True)


class _Problem:
    """One goal at one observation."""

    def __init__(self, target: Map, x: Float, places: NDArray[np.intp], goal: Goal):
        self.target, self.x, self.places, self.goal = target, x, places, goal
        self.low = np.minimum(-CLIP - x[places], 0.0)
        self.high = np.maximum(CLIP - x[places], 0.0)

    def inside(self, delta: Float) -> Float:
        return np.clip(delta, self.low, self.high)

    def weight(self, delta: Float) -> float:
        with torch.no_grad():
            return float(self._weights(torch.from_numpy(self._moved(delta)))[0])

    def slope(self, delta: Float) -> tuple[float, Float]:
        """The weight at δ and its gradient."""
        moved = torch.from_numpy(self._moved(delta)).requires_grad_()
        weight = self._weights(moved)[0]
        (gradient,) = torch.autograd.grad(weight, moved)
        return float(weight.detach()), np.asarray(gradient.numpy()[0, self.places], np.float64)

    def _moved(self, delta: Float) -> Float:
        moved = self.x[None].copy()
        moved[0, self.places] += delta
        return moved

    def _weights(self, moved: Tensor) -> Tensor:
        return self.target(moved)[:, self.goal.place]

    def solve(self, delta: Float) -> Float:
        """The iteration from one start, to its fixed point or its last round."""
        penalty = 0.0
        for _ in range(ROUNDS):
            weight, gradient = self.slope(delta)
            steep = float(np.linalg.norm(gradient))
            if steep == 0.0:
                break
            wanted = self._on_tangent(delta, weight, gradient)
            step = wanted - delta
            done = np.linalg.norm(step) < 1e-4 * max(1.0, float(np.linalg.norm(delta)))
            if done and abs(weight - self.goal.mark) < CLOSE:
                break
            penalty = max(penalty, 2.0 * float(np.linalg.norm(wanted)) / steep)
            delta = self._shortened(delta, step, penalty)
        return delta

    def _on_tangent(self, delta: Float, weight: float, gradient: Float) -> Float:
        """The least δ in the box at which the tangent has the mark; the best corner if none.

        It is clip(λ·∇) with the λ that fits, because the least δ is along the gradient wherever
        the box does not bind; the tangent's value grows with λ.
        """
        missing = self.goal.mark - weight + float(gradient @ delta)
        along = np.sign(missing) * gradient

        def gained(scale: float) -> float:
            return float(np.abs(gradient @ self.inside(scale * along)))

        low, high = 0.0, abs(missing) / float(gradient @ gradient)
        while gained(high) < abs(missing) and high < 1e12:
            low, high = high, 2.0 * high + 1e-12
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if gained(middle) < abs(missing) else (low, middle)
        return self.inside(high * along)

    def _shortened(self, delta: Float, step: Float, penalty: float) -> Float:
        def merit(at: Float) -> float:
            return 0.5 * float(at @ at) + penalty * abs(self.weight(at) - self.goal.mark)

        now, share = merit(delta), 1.0
        for _ in range(12):
            after = self.inside(delta + share * step)
            if merit(after) < now:
                return after
            share *= 0.5
        return self.inside(delta + share * step)

    def push_past(self, delta: Float) -> Float | None:
        """δ moved just past the mark, by bisection on the way from no change; None out of reach."""
        if not self.goal.met(self.weight(delta)):
            beyond = self.inside(1.02 * delta)
            if not self.goal.met(self.weight(beyond)):
                return None
            delta = beyond
        low, high = 0.0, 1.0
        while high - low > PAST:
            middle = 0.5 * (low + high)
            low, high = (
                (low, middle)
                if self.goal.met(self.weight(middle * delta))
                else (
                    middle,
                    high,
                )
            )
        return np.asarray(high * delta)

    def climb(self, delta: Float) -> tuple[Float, float]:
        """As far as corners of the box take the weight: Frank & Wolfe's (1956) steps."""
        best, reached = delta, self.weight(delta)
        for k in range(ROUNDS):
            _, gradient = self.slope(delta)
            corner = np.where(self.goal.sign * gradient > 0.0, self.high, self.low)
            delta = delta + 2.0 / (k + 2.0) * (np.where(gradient == 0.0, delta, corner) - delta)
            weight = self.weight(delta)
            if self.goal.sign * (weight - reached) > 0.0:
                best, reached = delta, weight
        return best, reached
