"""What matters over a period: mean sizes of attributions and mean loudness of voices.

The importance of a block of features is ½·Σ_i |Σ_{d in the block} φ_{i,d}|, the part of the
portfolio that the block moves on a day away from an average day (see `gradients`), as a mean over
days.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.explain.gradients import Attributions, attribute_features
from finflow_sb3.explain.mapping import TargetMap
from finflow_sb3.explain.state import Asked
from finflow_sb3.explain.voices import AnchorVoices, ExpertVoices, hear

__all__ = ["Heard", "Importance", "Sample"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """A voice over a period: its mean gate and its mean loudness."""

    gate: float
    loudness: float


@dataclass(frozen=True)
class Importance:
    """Means over sampled days, in shares of the portfolio.

    Attributes
    ----------
    days : sampled
    moved : what all features together move, ½·Σ_i |w_i(x) − w_i(x')|
    blocks : by block of features
    features : by feature, all assets' or anchors' together
    anchors, experts : by name; empty where a policy has none
    gap : the largest of completeness
    """

    days: int
    moved: float
    blocks: dict[str, float]
    features: dict[str, float]
    anchors: dict[str, Heard]
    experts: dict[str, Heard]
    gap: float


@dataclass
class Sample:
    """Collects explanations of single days."""

    policies: Policies
    _sums: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {k: defaultdict(list) for k in ("moved", "blocks", "features")}
    )
    _voices: dict[str, dict[str, list[tuple[float, float]]]] = field(
        default_factory=lambda: {k: defaultdict(list) for k in ("anchors", "experts")}
    )
    _gap: float = 0.0

    def take(self, batch: PortfolioBatch, asked: Asked) -> None:
        """Explain the batch's present state."""
        layout, scaler = batch.market.layout, batch.market.scaler
        observation = batch.observations()[0].astype(np.float64)
        mapped = TargetMap(self.policies, batch)
        found = attribute_features(mapped, layout, scaler, observation)
        self._gap = max(self._gap, found.gap)
        self._sums["moved"]["all"].append(_half(found.weights - found.baseline))
        for name, part in found.by_block().items():
            self._sums["blocks"][name].append(_half(part))
        for name, part in _by_feature(found).items():
            self._sums["features"][name].append(_half(part))
        voices = hear(self.policies, batch, asked.members, asked.gates, asked.shares)
        shares = [voice.share for voice in voices]
        self._hear("anchors", shares, [voice.anchors for voice in voices])
        self._hear("experts", shares, [voice.experts for voice in voices])

    def _hear(
        self,
        kind: str,
        shares: list[float],
        voices: list[AnchorVoices | None] | list[ExpertVoices | None],
    ) -> None:
        known = [voice for voice in voices if voice is not None]
        if len(known) < len(voices):
            return
        for i, name in enumerate(known[0].names):
            gate = sum(s * v.gates[i] for s, v in zip(shares, known, strict=True))
            loud = sum(s * v.loudness[i] for s, v in zip(shares, known, strict=True))
            self._voices[kind][name].append((float(gate), float(loud)))

    def importance(self) -> Importance:
        """Means of all days that were taken."""
        means = {
            kind: {name: float(np.mean(values)) for name, values in found.items()}
            for kind, found in self._sums.items()
        }
        return Importance(
            days=len(self._sums["moved"]["all"]),
            moved=means["moved"]["all"],
            blocks=_falling(means["blocks"]),
            features=_falling(means["features"]),
            anchors=_heard(self._voices["anchors"].items()),
            experts=_heard(self._voices["experts"].items()),
            gap=self._gap,
        )


def _half(changes: Float) -> float:
    return 0.5 * float(np.abs(changes).sum())


def _by_feature(found: Attributions) -> dict[str, Float]:
    """φ [n+1] of each feature, over its assets or anchors."""
    out: dict[str, Float] = {}
    for j, feature in enumerate(found.features):
        name = feature.name
        if feature.block == "anchor_record":
            name = f"anchors' {name}"
        out[name] = out.get(name, 0.0) + found.parts[:, j]
    return out


def _falling(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda pair: -pair[1]))


def _heard(voices: Iterable[tuple[str, list[tuple[float, float]]]]) -> dict[str, Heard]:
    return {name: Heard(*(float(x) for x in np.mean(figures, axis=0))) for name, figures in voices}
