"""Explanations as plain values, for JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.explain.decision import Explained
from finflow_sb3.explain.gradients import Attributions
from finflow_sb3.explain.returns import LEVELS, Outlook
from finflow_sb3.explain.risk import Risk
from finflow_sb3.explain.voices import Voice
from finflow_sb3.explain.what_if import Counterfactual
from finflow_sb3.explain.words import two_lines

__all__ = ["as_document", "json_bytes"]

Float = NDArray[np.float64]
# Features of each weight that are listed; the rest is one number.
LISTED = 20


def as_document(explained: Explained) -> dict[str, Any]:
    """A decision card: names to values, all of them plain."""
    attribution = explained.attribution
    return {
        "date": explained.date,
        "policy": explained.policy,
        "combination": explained.combination or None,
        "summary": list(two_lines(explained)),
        "action_base": explained.base,
        "trade_rate": explained.trade_rate,
        "trust": explained.trust,
        "disagreement": explained.disagreement,
        "weights": _weights(explained),
        "voices": [_voice(explained, voice) for voice in explained.voices],
        "features": _features(explained.assets, explained.features),
        "risk": {k: _risk(explained.assets, risk) for k, risk in explained.risk.items()},
        "outlooks": [None if each is None else _outlook(each) for each in explained.outlooks],
        "counterfactual": _counterfactual(explained.counterfactual),
        "attribution": None if attribution is None else attribution.as_dict(),
        "left_out": list(explained.left_out),
    }


def json_bytes(content: dict[str, Any]) -> bytes:
    """The file's content; null where a figure is undefined."""
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _named(names: tuple[str, ...], values: Float) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def _weights(explained: Explained) -> dict[str, Any]:
    columns = {
        "held": explained.held,
        "reference": explained.reference,
        "target": explained.target,
        "average_day": explained.features.baseline,
    }
    if explained.traded is not None:
        columns["traded"] = explained.traded
    return {name: _named(explained.assets, column) for name, column in columns.items()}


def _voice(explained: Explained, voice: Voice) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": voice.name,
        "share": voice.share,
        "target": _named(explained.assets, voice.target),
    }
    if voice.anchors is not None:
        out["anchors"] = {
            name: {
                "gate": float(voice.anchors.gates[i]),
                "loudness": float(voice.anchors.loudness[i]),
                "weights": _named(explained.assets, voice.anchors.weights[i]),
            }
            for i, name in enumerate(voice.anchors.names)
        }
    if voice.experts is not None:
        out["experts"] = {
            name: {
                "gate": float(voice.experts.gates[i]),
                "loudness": float(voice.experts.loudness[i]),
                "tilts": _named(explained.assets, voice.experts.tilts[i]),
            }
            for i, name in enumerate(voice.experts.names)
        }
    return out


def _features(assets: tuple[str, ...], found: Attributions) -> dict[str, Any]:
    blocks = found.by_block()
    weights = {}
    for i, asset in enumerate(assets):
        listed = found.largest(i, LISTED)
        weights[asset] = {
            "average_day": float(found.baseline[i]),
            "target": float(found.weights[i]),
            "by_block": {name: float(part[i]) for name, part in blocks.items()},
            "largest": [
                {
                    "feature": found.features[j].label,
                    "block": found.features[j].block,
                    "deviations": float(found.values[j]),
                    "value": float(found.natural[j]),
                    "attribution": float(found.parts[i, j]),
                }
                for j in listed
            ],
            "others": float(found.parts[i].sum() - found.parts[i, listed].sum()),
        }
    return {"gap": found.gap, "steps": found.steps, "weights": weights}


def _risk(assets: tuple[str, ...], risk: Risk) -> dict[str, Any]:
    shares = _named(assets, risk.shares)
    return {"volatility": risk.volatility, "days": risk.days, "shares": shares}


def _outlook(found: Outlook) -> dict[str, Any]:
    return {
        name: {
            "mean": float(found.means[i]),
            "deviation": float(found.deviations[i]),
            "quantiles": {
                f"{level:g}": float(q) for level, q in zip(LEVELS, found.quantiles[i], strict=True)
            },
            "missed": float(found.missed[i]),
        }
        for i, name in enumerate(found.names)
    }


def _counterfactual(found: Counterfactual | None) -> dict[str, Any] | None:
    if found is None:
        return None
    delta = found.change.delta
    order = np.argsort(-np.abs(delta), kind="stable")
    return {
        "asset": found.asked.asset,
        "side": found.goal.side,
        "mark": found.goal.mark,
        "blocks": list(found.asked.blocks),
        "weight": found.weight,
        "found": found.change.found,
        "reached": found.change.reached,
        "size": found.change.size,
        "changes": [
            {
                "feature": found.features[j].label,
                "block": found.features[j].block,
                "from_deviations": float(found.before[j]),
                "to_deviations": float(found.after[j]),
                "from": float(found.before_natural[j]),
                "to": float(found.after_natural[j]),
            }
            for j in order.tolist()
            if delta[j] != 0.0
        ],
    }
