"""A question about another weight, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError
from finflow_sb3.explain.counterfactual import Change, Goal, ranges, smallest_change
from finflow_sb3.explain.gradients import Feature, feature_names, in_own_units, varied
from finflow_sb3.explain.mapping import TargetMap
from finflow_sb3.explain.state import CASH
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.messages import remedy, shown

__all__ = ["Counterfactual", "WhatIf", "answer"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class WhatIf:
    """A question: what would have had to differ for another weight of `asset`?

    Attributes
    ----------
    above, below : the mark, one of the two
    blocks : features that may differ (groups, "market", "anchor_record"); all of them if empty
    """

    asset: str
    above: float | None = None
    below: float | None = None
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.above is None) == (self.below is None):
            raise ConfigError("--asset: needs a mark for its weight; give --above or --below")
        if not 0.0 <= self.mark <= 1.0:
            raise ConfigError(f"--asset: its mark {self.mark:g} is no weight from 0 to 1")

    @property
    def mark(self) -> float:
        return float(self.below if self.above is None else self.above)  # type: ignore[arg-type]

    def goal(self, layout: ObservationLayout) -> Goal:
        """The same in places.

        Raises
        ------
        ConfigError
            If there is no such asset.
        """
        names = (*layout.assets, CASH)
        if self.asset not in names:
            raise ConfigError(
                f"--asset: {shown(self.asset)} is no asset; {remedy(self.asset, names)}"
            )
        side = "below" if self.above is None else "above"
        return Goal(names.index(self.asset), side, self.mark)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Counterfactual:
    """The answer to a `WhatIf`.

    Attributes
    ----------
    features : V that could differ
    before, after : their values as networks see them, shape [V]
    before_natural, after_natural : the same in their own units
    weight : without any change
    """

    asked: WhatIf
    goal: Goal
    change: Change
    features: tuple[Feature, ...]
    before: Float
    after: Float
    before_natural: Float
    after_natural: Float
    weight: float


def answer(
    what_if: WhatIf, mapped: TargetMap, market: ObservedMarket, row: int, observation: Float
) -> Counterfactual:
    """Search for the change that a question asks for.

    Parameters
    ----------
    row : of the decision
    observation : shape [D]

    Raises
    ------
    ConfigError
        If the question names what there is not.
    """
    layout = market.layout
    goal = what_if.goal(layout)
    known = (*(name for name, _ in layout.groups), "market", "anchor_record")
    for block in what_if.blocks:
        if block not in known:
            raise ConfigError(
                f"--features: {shown(block)} is no group of features; {remedy(block, known)}"
            )
    blocks = tuple(dict.fromkeys(what_if.blocks)) or known
    places = varied(layout, blocks)
    features = tuple(f for f in feature_names(layout) if f.block in blocks)
    low, high = ranges(market, row, places, features)
    change = smallest_change(mapped, observation, places, goal, low, high)
    with torch.no_grad():
        weight = float(mapped(torch.from_numpy(observation[None]))[0, goal.place])
    before = observation[places]
    after = before + change.delta
    return Counterfactual(
        asked=what_if,
        goal=goal,
        change=change,
        features=features,
        before=before,
        after=after,
        before_natural=in_own_units(features, before, layout, market.scaler),
        after_natural=in_own_units(features, after, layout, market.scaler),
        weight=weight,
    )
