"""Which features moved each weight: integrated gradients (Sundararajan, Taly & Yan 2017).

The attribution of feature d to target weight w_i, at the observation x and from the baseline x', is

    φ_{i,d} = (x_d − x'_d) · ∫₀¹ ∂w_i(x' + α(x − x'))/∂x_d dα,     Σ_d φ_{i,d} = w_i(x) − w_i(x').

The baseline is an average day of the training split for the same portfolio: scaled features of
assets and market and the anchors' record at 0, which is their training mean, and the drawdown at
0. Anchors' and held weights, moments and a pending order are those of the day, in x as in x', and
in the target map; nothing is attributed to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from torch import Tensor

from finflow_sb3.envs.observations import Scaler
from finflow_sb3.errors import DataError
from finflow_sb3.market.layout import ObservationLayout

__all__ = [
    "TOLERANCE",
    "Attributions",
    "Feature",
    "attribute_features",
    "baseline_of",
    "feature_names",
    "integrated_gradients",
    "varied",
]

Float = NDArray[np.float64]
Map = Callable[[Tensor], Tensor]
TOLERANCE = 1e-4
"""Largest |Σ_d φ_{i,d} − (w_i(x) − w_i(x'))|: a basis point of the portfolio."""
FIRST_STEPS, MOST_STEPS = 32, 2048
# Rows that go through the networks at a time.
ROWS = 4096


@dataclass(frozen=True)
class Feature:
    """One number of the observation that varies between a day and its baseline.

    Attributes
    ----------
    block : a group of features, "market", "anchor_record" or "scalars"
    subject : the asset or anchor that it is of; empty where it is of all
    name : as the layout has it
    """

    block: str
    subject: str
    name: str

    @property
    def label(self) -> str:
        """As a reader knows it from others."""
        if self.block == "anchor_record":
            return f"anchor {self.subject}: {self.name}"
        return f"{self.subject} {self.name}" if self.subject else self.name


@dataclass(frozen=True)
class Attributions:
    """Integrated gradients of all target weights on one day.

    Attributes
    ----------
    features : V that vary
    values : shape [V], as the networks see them, in training deviations from the training mean
    natural : shape [V], in their own units, as far as they are not clipped
    parts : φ, shape [n+1, V]
    weights, baseline : w(x) and w(x'), shape [n+1]
    gap : largest |Σ φ − (w(x) − w(x'))| of all weights
    steps : of the integral
    """

    features: tuple[Feature, ...]
    values: Float
    natural: Float
    parts: Float
    weights: Float
    baseline: Float
    gap: float
    steps: int

    def by_block(self) -> dict[str, Float]:
        """What each block of features did to each weight, shape [n+1]."""
        blocks = np.array([feature.block for feature in self.features])
        return {
            name: np.asarray(self.parts[:, blocks == name].sum(axis=1))
            for name in dict.fromkeys(blocks.tolist())
        }

    def largest(self, place: int, count: int) -> list[int]:
        """The features that moved weight `place` most, by size."""
        order = np.argsort(-np.abs(self.parts[place]), kind="stable")
        return [int(i) for i in order[:count] if self.parts[place, i] != 0.0]


def varied(layout: ObservationLayout, blocks: tuple[str, ...] | None = None) -> NDArray[np.intp]:
    """Places in the observation that vary: those of `blocks`, or of all that can."""
    cut, wanted = layout.slices, blocks or varying_blocks(layout)
    places = [np.arange(cut[name].start, cut[name].stop) for name in wanted if name != "scalars"]
    if "scalars" in wanted:
        places.append(np.array([cut["scalars"].start + layout.scalars.index("drawdown")]))
    return np.sort(np.concatenate(places))


def varying_blocks(layout: ObservationLayout) -> tuple[str, ...]:
    return (*(name for name, _ in layout.groups), "market", "anchor_record", "scalars")


def feature_names(layout: ObservationLayout) -> tuple[Feature, ...]:
    """What `varied` has, by name."""
    found = [
        Feature(group, asset, name)
        for group, names in layout.groups
        for asset in layout.assets
        for name in names
    ]
    found += [Feature("market", "", name) for name in layout.market]
    found += [
        Feature("anchor_record", anchor, name)
        for anchor in layout.anchors
        for name in layout.record
    ]
    return (*found, Feature("scalars", "", "drawdown"))


def baseline_of(layout: ObservationLayout, observation: Float) -> Float:
    """x': the observation with all that varies at 0."""
    out = np.array(observation, dtype=np.float64)
    out[varied(layout)] = 0.0
    return out


def attribute_features(
    target: Map,
    layout: ObservationLayout,
    scaler: Scaler,
    observation: Float,
    tolerance: float = TOLERANCE,
) -> Attributions:
    """Integrated gradients of every target weight.

    Parameters
    ----------
    target : observations float64 [B, D] → weights [B, n+1]
    observation : shape [D]

    Raises
    ------
    DataError
        As `integrated_gradients` does.
    """
    places, features = varied(layout), feature_names(layout)
    x, start = np.array(observation, dtype=np.float64), baseline_of(layout, observation)
    parts, ends, gap, steps = integrated_gradients(target, x, start, tolerance)
    values = x[places]
    return Attributions(
        features=features,
        values=values,
        natural=in_own_units(features, values, layout, scaler),
        parts=parts[:, places],
        weights=ends[0],
        baseline=ends[1],
        gap=gap,
        steps=steps,
    )


def integrated_gradients(
    target: Map, x: Float, start: Float, tolerance: float = TOLERANCE
) -> tuple[Float, Float, float, int]:
    """φ from `start` to `x` for all outputs of `target`, with as many steps as completeness asks.

    Returns
    -------
    φ [m, D], the outputs at `x` and at `start` [2, m], the largest gap, and the steps

    Raises
    ------
    DataError
        If the attributions do not add up to within `tolerance` at the most steps either.
    """
    ends = torch.from_numpy(np.stack([x, start]))
    with torch.no_grad():
        outputs = target(ends).numpy()
    if not np.isfinite(outputs).all():
        raise DataError(
            "explain: the policy's weights are not finite here; look for diverged training"
        )
    count, steps, gap = outputs.shape[1], FIRST_STEPS, np.inf
    method = IntegratedGradients(target)
    while steps <= MOST_STEPS:
        found = method.attribute(
            ends[:1].expand(count, -1),
            baselines=ends[1:].expand(count, -1),
            target=torch.arange(count),
            n_steps=steps,
            method="riemann_middle",
            internal_batch_size=max(ROWS, count),
        )
        parts: Float = found.detach().numpy().astype(np.float64)
        gap = float(np.abs(parts.sum(axis=1) - (outputs[0] - outputs[1])).max())
        if gap <= tolerance:
            return parts, np.asarray(outputs), gap, steps
        steps *= 2
    raise DataError(
        f"explain: integrated gradients miss the change of a weight by {gap:.1e} at {MOST_STEPS} "
        f"steps, over the tolerance {tolerance:g}; the policy jumps between this day and its "
        "baseline"
    )


def in_own_units(
    features: tuple[Feature, ...], values: Float, layout: ObservationLayout, scaler: Scaler
) -> Float:
    """Scaled values [V] in the units that the features were computed in."""
    names = {**dict(layout.groups), "market": layout.market, "anchor_record": layout.record}
    out = np.array(values, dtype=np.float64)
    for i, feature in enumerate(features):
        if feature.block in names:
            j = names[feature.block].index(feature.name)
            out[i] = out[i] * scaler.deviations[feature.block][j] + scaler.means[feature.block][j]
    return out
