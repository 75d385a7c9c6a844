"""A decision in two lines of plain language."""

from __future__ import annotations

import numpy as np

from finflow_sb3.explain.decision import Explained
from finflow_sb3.explain.gradients import Attributions
from finflow_sb3.explain.what_if import Counterfactual

__all__ = ["answer_line", "percent", "points", "trade_line", "two_lines", "voices_line"]

# Changes of weight below it are nothing that one would speak of.
NOTHING = 5e-5
BLOCKS = {
    "market": "the market's state",
    "anchor_record": "the anchors' record",
    "drawdown": "the portfolio's drawdown",
}


def percent(weight: float, digits: int = 1) -> str:
    """A share, as 12.3 %."""
    return f"{100 * weight:.{digits}f}\u00a0%".replace("-", "−")


def points(change: float, digits: int = 2) -> str:
    """A change of weight in percentage points, as +0.12."""
    text = f"{100 * change:+.{digits}f}"
    return text.replace("-", "−")


def two_lines(explained: Explained) -> tuple[str, str]:
    """What is done and who was heard; what the day's features and the weights' risk say."""
    return (
        f"{trade_line(explained)} {voices_line(explained)}",
        f"{_features(explained)} {_risk(explained)}",
    )


def trade_line(explained: Explained) -> str:
    """What is bought and sold most."""
    after = explained.target if explained.traded is None else explained.traded
    change = after - explained.held
    risky = change[:-1]
    bought, sold = int(np.argmax(risky)), int(np.argmin(risky))
    parts = []
    for place, verb, sign in ((bought, "buys", 1.0), (sold, "sells", -1.0)):
        if sign * risky[place] > NOTHING:
            parts.append(
                f"{verb} {explained.assets[place]} ({percent(explained.held[place], 2)} → "
                f"{percent(after[place], 2)})"
            )
    if not parts:
        return f"{explained.date}: holds what it has."
    turnover = float(np.abs(risky).sum())
    ordered = "orders a trade that " if explained.traded is None else ""
    return (
        f"{explained.date}: {ordered}{' and '.join(parts)} most, turnover {percent(turnover, 2)}."
    )


def voices_line(explained: Explained) -> str:
    """Which anchors, or experts where there are none, were heard most."""
    gates, names = explained.gates, explained.anchors
    if gates is None:
        gates = explained.experts
        names = () if gates is None else explained.voices[0].experts.names  # type: ignore[union-attr]
    if gates is None:
        return "Its actions have no gates to listen to."
    order = np.argsort(-gates, kind="stable")[:2]
    first, second = (f"{names[i]} ({percent(gates[i], 0)})" for i in order)
    return f"Heard most: {first}, then {second}; evenly is {percent(1.0 / len(gates), 0)}."


def _features(explained: Explained) -> str:
    found = explained.features
    moved = 0.5 * float(np.abs(found.weights - found.baseline).sum())
    if moved < NOTHING:
        return "The day's features moved hardly anything away from an average day."
    blocks = {name: 0.5 * float(np.abs(p).sum()) for name, p in found.by_block().items()}
    block = max(blocks, key=lambda name: blocks[name])
    place = int(np.argmax(np.abs(found.weights - found.baseline)[:-1]))
    return (
        f"Against an average day its features move {percent(moved, 2)} of the portfolio, most of "
        f"all through {BLOCKS.get(block, f'features of {block}')}; "
        f"{explained.assets[place]} by {points(found.weights[place] - found.baseline[place])} "
        f"points{_largest(found, place)}."
    )


def _largest(found: Attributions, place: int) -> str:
    largest = found.largest(place, 1)
    return f" ({found.features[largest[0]].label})" if largest else ""


def _risk(explained: Explained) -> str:
    risk = explained.risk["target"]
    if risk.volatility == 0.0:
        return "The portfolio is without risk."
    place = int(np.argmax(risk.shares))
    return (
        f"{explained.assets[place]} carries most of the risk: {percent(risk.shares[place])} of a "
        f"volatility of {percent(risk.volatility)} with {percent(explained.target[place])} of "
        "the weight."
    )


def answer_line(found: Counterfactual) -> str:
    """What would have had to differ for another weight."""
    asset, goal, change = found.asked.asset, found.goal, found.change
    digits = 2 if round(100 * goal.mark, 2) == round(100 * goal.mark, 6) else 4
    mark, weight = percent(goal.mark, digits), percent(found.weight, digits)
    wanted = f"{asset} {goal.side} {mark}"
    if change.size == 0.0 and change.found:
        return f"The target of {wanted} is met as it is: {weight}."
    where = f" of {', '.join(found.asked.blocks)}" if found.asked.blocks else ""
    if not change.found:
        return (
            f"No change of features{where} within the range that they have had was found that "
            f"takes {wanted}: the target is {weight}, and the furthest one found "
            f"{percent(change.reached, digits)}."
        )
    largest = int(np.argmax(np.abs(change.delta)))
    moved = f"{change.delta[largest]:+.2f}".replace("-", "−")
    return (
        f"For a target of {wanted} (it is {weight}) features{where} would have to differ by "
        f"{change.size:.2f} training deviations in all at least, as far as the search found; most "
        f"of all {found.features[largest].label}, by {moved}."
    )
