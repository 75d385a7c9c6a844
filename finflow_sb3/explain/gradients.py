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
DRAWDOWN = "drawdown"
TOLERANCE = 1e-4
"""Largest |Σ_d φ_{i,d} − (w_i(x) − w_i(x'))|: a basis point of the portfolio."""
# Stretches of the way at first and at most, steps on each, and the shortest one.
STRETCHES, MOST_STRETCHES, STEPS, SHORTEST = 16, 2000, 4, 1e-7
LOOSER, NOISE = 4.0, 2e-6
# Rows that go through the networks at a time.
ROWS = 1024


@dataclass(frozen=True)
class Feature:
    """One number of the observation that varies between a day and its baseline.

    Attributes
    ----------
    block : a group of features, "market", "anchor_record" or "drawdown"
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
    places = [np.arange(cut[name].start, cut[name].stop) for name in wanted if name != DRAWDOWN]
    if DRAWDOWN in wanted:
        places.append(np.array([cut["scalars"].start + layout.scalars.index(DRAWDOWN)]))
    return np.sort(np.concatenate(places))


def varying_blocks(layout: ObservationLayout) -> tuple[str, ...]:
    return (*(name for name, _ in layout.groups), "market", "anchor_record", DRAWDOWN)


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
    return (*found, Feature(DRAWDOWN, "", DRAWDOWN))


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

    The way is cut into stretches, each with a Gauss-Legendre rule. On each the gap between the sum
    of its attributions and the change of the output is known, and where it is too large the
    stretch is halved: networks with corners need many steps at those and few elsewhere. Gaps may
    cancel in part: without regard to sign they add up to `LOOSER` times the tolerance at most,
    apart from those that single precision leaves.

    Returns
    -------
    φ [m, D], the outputs at `x` and at `start` [2, m], the largest |Σ φ − change of the output|,
    and the number of steps in all

    Raises
    ------
    DataError
        If outputs are not finite, or the gaps do not come below `tolerance`.
    """
    way = _Way(target, x, start)
    if not np.isfinite(way.outputs(np.array([0.0, 1.0]))).all():
        raise DataError(
            "explain: the policy's weights are not finite here; look for diverged training"
        )
    parts = gaps = np.zeros((0, 0))
    kept = np.zeros((0, 2))
    new = np.stack([np.arange(STRETCHES), np.arange(1, STRETCHES + 1)], axis=1) / STRETCHES
    steps = 0
    while True:
        more, missed = way.attribute(new)
        steps += STEPS * len(new)
        parts = np.concatenate([parts, more]) if len(kept) else more
        gaps = np.concatenate([gaps, missed]) if len(kept) else missed
        kept = np.concatenate([kept, new])
        gap, each = float(np.abs(gaps.sum(axis=0)).max()), np.abs(gaps).max(axis=1)
        rough = each[each > NOISE].sum()
        if gap <= tolerance and rough <= LOOSER * tolerance:
            ends = way.outputs(np.array([1.0, 0.0]))
            return np.asarray(parts.sum(axis=0)), ends, gap, steps
        coarse = each > max(0.5 * tolerance / len(each), NOISE)
        if len(kept) > MOST_STRETCHES or not coarse.any() or np.ptp(kept[each.argmax()]) < SHORTEST:
            raise DataError(
                f"explain: integrated gradients miss the change of a weight by {gap:.1e} in "
                f"{steps:,} steps (tolerance {tolerance:g}); the policy jumps between this day and "
                "its baseline"
            )
        low, high = kept[coarse].T
        middle = 0.5 * (low + high)
        new = np.concatenate([np.stack([low, middle], 1), np.stack([middle, high], 1)])
        parts, gaps, kept = parts[~coarse], gaps[~coarse], kept[~coarse]


class _Way:
    """The straight line from a baseline to an observation."""

    def __init__(self, target: Map, x: Float, start: Float):
        self.target, self.start, self.step = target, start, x - start
        self.method = IntegratedGradients(target)

    def at(self, shares: Float) -> Tensor:
        """Points [len(shares), D] of the way."""
        return torch.from_numpy(self.start + shares[:, None] * self.step)

    def outputs(self, shares: Float) -> Float:
        with torch.no_grad():
            return np.asarray(self.target(self.at(shares)).numpy(), dtype=np.float64)

    def attribute(self, stretches: Float) -> tuple[Float, Float]:
        """φ of every output on each stretch [S, m, D], and its gap there [S, m]."""
        low, high = stretches.T
        change = self.outputs(high) - self.outputs(low)
        count, m = change.shape
        # Of so many stretches at a time that networks see about `ROWS` observations.
        some = max(1, ROWS // m)
        parts = np.concatenate(
            [self._parts(stretches[i : i + some], m) for i in range(0, count, some)]
        )
        return parts, np.asarray(parts.sum(axis=2) - change)

    def _parts(self, stretches: Float, m: int) -> Float:
        """φ of the m outputs on each of a few stretches, shape [S, m, D]."""
        low, high = stretches.T
        found = self.method.attribute(
            self.at(high).repeat_interleave(m, dim=0),
            baselines=self.at(low).repeat_interleave(m, dim=0),
            target=torch.arange(m).repeat(len(stretches)),
            n_steps=STEPS,
            method="gausslegendre",
            internal_batch_size=max(ROWS, len(stretches) * m),
        )
        parts: Float = found.detach().numpy().astype(np.float64)
        return parts.reshape(len(stretches), m, -1)


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
