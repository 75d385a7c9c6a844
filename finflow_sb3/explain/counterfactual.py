"""What would have had to differ: the smallest change of features that moves a weight past a mark.

Minimise ½‖δ‖² subject to w_i(x + δ) = θ and l ≤ x + δ ≤ u, where features are scaled by their
training deviations and l to u is the range that each has had so far (of any asset). By the method
of multipliers (Hestenes 1969; Powell 1969): L-BFGS-B minimises ½‖δ‖² + λ·c + ½ρ·c² with
c = w_i(x + δ) − θ, and λ moves by ρ·c, until c is nothing. From several starts, and for a θ a
hair's breadth past the mark.

Features move as numbers. Prices that have just these may not exist: a return of 21 days does not
move without one of 63. Anchors and portfolio stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.explain.gradients import Feature

__all__ = ["Change", "Goal", "ranges", "smallest_change"]

Float = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]
STARTS, ROUNDS, STEPS = 3, 10, 40
# How near the mark the search ends, in weight; how near on its way the answer is to the first.
CLOSE, PAST = 1e-6, 1e-7
# L-BFGS-B takes functions that change by less than 2e-9 for flat; weights of 1e-3 are not.
SCALE = 1e-3


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


def ranges(
    market: ObservedMarket, row: int, places: NDArray[np.intp], features: tuple[Feature, ...]
) -> tuple[Float, Float]:
    """The least and the largest value of each feature up to `row`, [V] each, any asset's or
    anchor's counting for all.
    """
    seen = market.rows[market.splits.train.start : row + 1][:, places].astype(np.float64)
    low, high = seen.min(axis=0), seen.max(axis=0)
    names = np.array([f"{feature.block} {feature.name}" for feature in features])
    for name in np.unique(names):
        same = names == name
        low[same], high[same] = low[same].min(), high[same].max()
    return low, high


def smallest_change(
    target: Map,
    observation: Float,
    places: NDArray[np.intp],
    goal: Goal,
    low: Float,
    high: Float,
    seed: int = 0,
) -> Change:
    """Search for the least change of `observation[places]` that meets the goal.

    Parameters
    ----------
    target : observations float64 [B, D] → weights [B, n+1]
    observation : shape [D]
    places : V of its entries, which may move
    low, high : how far they may, shape [V]
    seed : of the starts after the first, which is the observation itself
    """
    x = np.asarray(observation, dtype=np.float64)
    problem = _Problem(target, x, places, goal, low, high)
    zero = np.zeros(len(places))
    here = problem.weight(zero)
    if goal.met(here):
        return Change(zero, here, True)
    rng = np.random.default_rng(seed)
    starts = [zero, *(problem.inside(rng.normal(0.0, 0.5, len(places))) for _ in range(STARTS - 1))]
    climbed = problem.furthest(starts)
    if not goal.met(problem.weight(climbed)):
        return Change(climbed, problem.weight(climbed), False)
    found = [problem.first_past(climbed)]
    for delta in map(problem.solve, starts):
        if goal.met(problem.weight(delta)):
            found.append(problem.first_past(delta))
    best = min(found, key=lambda delta: float(np.linalg.norm(delta)))
    return Change(best, problem.weight(best), True)


class _Problem:
    """One goal at one observation."""

    def __init__(
        self,
        target: Map,
        x: Float,
        places: NDArray[np.intp],
        goal: Goal,
        low: Float,
        high: Float,
    ):
        self.target, self.x, self.places, self.goal = target, x, places, goal
        # What is at it to within what the search leaves is past the goal's own.
        self.mark = goal.mark + 2.0 * goal.sign * CLOSE
        self.low = np.minimum(low - x[places], 0.0)
        self.high = np.maximum(high - x[places], 0.0)

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
        """The method of multipliers from one start, until the weight is at the mark."""
        _, gradient = self.slope(delta)
        # So steep a penalty is as strong as ‖δ‖² where the weight answers to features as here.
        penalty = 10.0 / max(float(gradient @ gradient), 1e-12)
        multiplier, missed = 0.0, np.inf
        for _ in range(ROUNDS):
            delta = self._minimum(partial(self._cost, multiplier, penalty), delta)
            before, missed = missed, self.weight(delta) - self.mark
            if abs(missed) < CLOSE:
                break
            multiplier += penalty * missed
            if abs(missed) > 0.25 * abs(before):
                penalty *= 4.0
        return delta

    def _cost(self, multiplier: float, penalty: float, delta: Float) -> tuple[float, Float]:
        weight, gradient = self.slope(delta)
        missed = weight - self.mark
        cost = 0.5 * float(delta @ delta) + multiplier * missed + 0.5 * penalty * missed**2
        return cost, delta + (multiplier + penalty * missed) * gradient

    def _minimum(self, cost: Callable[[Float], tuple[float, Float]], delta: Float) -> Float:
        bounds = list(zip(self.low, self.high, strict=True))
        options = {"maxiter": STEPS}
        found = minimize(cost, delta, jac=True, bounds=bounds, method="L-BFGS-B", options=options)
        return self.inside(np.asarray(found.x, dtype=np.float64))

    def first_past(self, delta: Float) -> Float:
        """The first on the way to δ, which is past the mark, that is so too."""
        low, high = 0.0, 1.0
        while high - low > PAST:
            middle = 0.5 * (low + high)
            met = self.goal.met(self.weight(middle * delta))
            low, high = (low, middle) if met else (middle, high)
        return np.asarray(high * delta)

    def furthest(self, starts: Sequence[Float]) -> Float:
        """As far as the weight goes towards the mark's side; the first climb past it will do."""

        def cost(at: Float) -> tuple[float, Float]:
            weight, gradient = self.slope(at)
            return -self.goal.sign * weight / SCALE, -self.goal.sign * gradient / SCALE

        best, reached = starts[0], -np.inf
        for start in starts:
            delta = self._minimum(cost, start)
            weight = self.weight(delta)
            if self.goal.sign * weight > reached:
                best, reached = delta, self.goal.sign * weight
            if self.goal.met(weight):
                break
        return best
