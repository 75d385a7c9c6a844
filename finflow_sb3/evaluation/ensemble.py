"""Several policies that decide together: by their mean, their median, or weighted by a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import shown

__all__ = ["COMBINATIONS", "Combination", "Decision", "Ensemble", "require_combination"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Act = Callable[[NDArray[np.float32]], NDArray[Any]]
Combination = Literal["mean", "median", "validation"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)


def require_combination(
    combination: object, shrinkage: object, names: tuple[str, str] = ("--combine", "--shrink")
) -> None:
    """Refuse what `Ensemble` cannot combine by.

    Parameters
    ----------
    names : of the two, in messages

    Raises
    ------
    ConfigError
    """
    if combination not in COMBINATIONS:
        raise ConfigError(
            f"{names[0]}: {shown(combination)} is not one of {', '.join(COMBINATIONS)}"
        )
    number = isinstance(shrinkage, Real) and not isinstance(shrinkage, bool)
    if not (number and 0.0 <= cast(float, shrinkage) < float("inf")):
        raise ConfigError(f"{names[1]}: {shown(shrinkage)} is not a number from 0 on")


@dataclass(frozen=True)
class Decision:
    """What an ensemble wants of a batch of B portfolios.

    Attributes
    ----------
    target : shape [B, n+1], what is traded towards
    members : shape [M, B, n+1], what each member wants by itself
    disagreement : shape [B], mean over members of half the sum of absolute differences between
        their weights and the combined ones: the part of the portfolio that they place elsewhere
    trust : shape [B], share of the way from the held weights to the combined ones that `target`
        goes; 1 without shrinkage
    idle : shape [B], True where nothing is to be traded
    """

    target: Float
    members: Float
    disagreement: Float
    trust: Float
    idle: Bool


@dataclass(frozen=True)
class Ensemble:
    """Policies of one market and one environment whose target weights are combined.

    Parameters
    ----------
    acts : M policies, each from observations float32 [B, layout.size] to actions [B, A]
    combination : `mean` of the weights, `median` of each asset's weights (scaled to one again),
        or `validation`: the mean weighted by the positive part of each member's `scores`
    scores : M validation Sharpe ratios, which `validation` needs
    shrinkage : λ ≥ 0. Where the members' disagreement is d and the combined target is at distance
        D from what is held (both half the sum of absolute differences), the part
        max(0, 1 − λ·d/D) of the way is wanted: trades that are smaller than what the members
        differ by are left out

    Raises
    ------
    ConfigError
        If there is no member, or `validation` lacks a score.
    """

    acts: tuple[Act, ...]
    combination: Combination = "mean"
    scores: tuple[float, ...] = ()
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        if not self.acts:
            raise ConfigError("ensemble: has no member; give at least one run")
        require_combination(self.combination, self.shrinkage)
        if self.combination == "validation" and len(self.scores) != len(self.acts):
            raise ConfigError(
                "--combine validation: not every run has a validation Sharpe; use mean or median"
            )

    @property
    def weights(self) -> Float:
        """How much each member counts in a mean, shape [M]; equal where no score is positive."""
        count = len(self.acts)
        if self.combination != "validation":
            return np.full(count, 1.0 / count)
        worth = np.maximum(np.array(self.scores), 0.0)
        even = np.full(count, 1.0 / count)
        return np.asarray(worth / worth.sum()) if worth.sum() > 0.0 else even

    def actions(self, observations: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Each member's actions [B, A]."""
        return [act(observations) for act in self.acts]

    def decide(self, batch: PortfolioBatch, actions: list[NDArray[Any]]) -> Decision:
        """Combine the members' actions in the batch's present state; sets the batch's gates.

        Parameters
        ----------
        actions : of `actions`, each [B, A]
        """
        wanted, gates = [], []
        for each in actions:
            wanted.append(batch.target(each))
            gates.append(batch.gates.copy())
        members = np.stack(wanted)
        batch.gates = np.einsum("m,mbk->bk", self.weights, np.stack(gates))
        combined = self._combined(members)
        apart = 0.5 * np.abs(members - combined).sum(axis=2).mean(axis=0)
        trust = self._trust(batch.held, combined, apart)
        target = batch.held + trust[:, None] * (combined - batch.held)
        # With full trust nothing is to be lost in rounding.
        target = np.where(trust[:, None] == 1.0, combined, target)
        target = batch.tradable_part(target)
        idle = np.all(target == batch.held, axis=1)
        return Decision(target, members, apart, trust, idle)

    def _combined(self, members: Float) -> Float:
        if self.combination != "median":
            return np.asarray(np.einsum("m,mbn->bn", self.weights, members))
        middle = np.median(members, axis=0)
        return np.asarray(middle / middle.sum(axis=1, keepdims=True))

    def _trust(self, held: Float, combined: Float, apart: Float) -> Float:
        if self.shrinkage == 0.0:
            return np.ones(len(held))
        distance = 0.5 * np.abs(combined - held).sum(axis=1)
        # Where nothing would be traded anyway nothing has to be left out.
        ratio = np.divide(apart, distance, out=np.zeros_like(apart), where=distance > 0.0)
        return np.asarray(np.maximum(0.0, 1.0 - self.shrinkage * ratio))
