"""A decision in two lines: who is listened to, and what moves most, and why."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.allocation.decision import Decided
from finflow_sb3.evaluation.report_numbers import number

__all__ = ["two_lines"]

Float = NDArray[np.float64]
SMALLEST = 5e-5
"""Of a move, to be worth a word."""


def two_lines(
    decided: Decided, moves: Float, assets: tuple[str, ...], anchors: tuple[str, ...]
) -> tuple[str, str]:
    """Whom the gate listens to most, and the largest purchase and sale with their reasons.

    Parameters
    ----------
    moves : shape [n], orders in units of the portfolio's value
    anchors : K names
    """
    return _listens(decided, assets, anchors), _moves(decided, moves, assets, anchors)


def _listens(decided: Decided, assets: tuple[str, ...], anchors: tuple[str, ...]) -> str:
    most = np.argsort(-decided.target[:-1], kind="stable")[:2]
    wants = " and ".join(f"{assets[i]} {_percent(decided.target[i])}" for i in most)
    if decided.gates is None:
        return f"Wants most of {wants}."
    heard = np.argsort(-decided.gates, kind="stable")[:2]
    names = " and ".join(f"{anchors[k]} ({_percent(decided.gates[k])})" for k in heard)
    return f"Listens most to {names}; wants most of {wants}."


def _moves(
    decided: Decided, moves: Float, assets: tuple[str, ...], anchors: tuple[str, ...]
) -> str:
    parts = []
    for i, verb in ((int(np.argmax(moves)), "buys"), (int(np.argmin(moves)), "sells")):
        if moves[i] >= SMALLEST if verb == "buys" else moves[i] <= -SMALLEST:
            why = _reason(decided, i, verb == "buys", anchors)
            parts.append(f"{verb} {number(abs(moves[i]), 'fine')} {assets[i]}, {why}")
    return f"Moves most: {'; '.join(parts)}." if parts else "Moves nothing."


def _reason(decided: Decided, i: int, bought: bool, anchors: tuple[str, ...]) -> str:
    """What pulls most in the direction of the trade: one anchor, or the tilt on their mixture."""
    held, target = decided.held[i], decided.target[i]
    if decided.gates is None or (target > held) != bought:
        return f"of which it wants {_percent(target)} and has {_percent(held)}"
    pulls = decided.gates * (decided.anchors[:, i] - held)
    tilt = target - decided.gates @ decided.anchors[:, i]
    sign = 1.0 if bought else -1.0
    k = int(np.argmax(sign * pulls))
    if sign * tilt > sign * pulls[k]:
        return f"because its tilt {'adds' if bought else 'takes'} {_percent(abs(tilt))}"
    anchor = _percent(decided.anchors[k, i])
    return f"because {anchors[k]} holds {anchor}, against {_percent(held)} here"


def _percent(share: float) -> str:
    return number(share, "percent")
