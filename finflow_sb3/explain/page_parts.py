"""The sections of a decision card, each from what is known of the decision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report_template import paragraph, subtitle
from finflow_sb3.explain.attribution import Attribution
from finflow_sb3.explain.decision import Explained
from finflow_sb3.explain.pieces import Line, bar, heat_table, interval, meter_table
from finflow_sb3.explain.returns import Outlook
from finflow_sb3.explain.voices import Voice
from finflow_sb3.explain.words import percent, points

__all__ = ["attributed", "attribution", "features", "outlooks", "voices", "weights"]

Float = NDArray[np.float64]
# Assets that tables list, and those whose single features are listed, with how many of these.
LISTED, CLOSELY, FEATURES = 30, 3, 8


def weights(explained: Explained) -> str:
    """Every asset's weights from what is held to what is traded, and its share of the risk."""
    change = explained.target - explained.held
    places = _most(np.abs(change) + explained.target, LISTED)
    low, high = min(0.0, float(change.min())), max(0.0, float(change.max()))
    traded = explained.traded is not None
    lines = []
    for i in places:
        cells = [percent(explained.held[i], 2), percent(explained.target[i], 2)]
        if explained.traded is not None:
            cells.append(percent(explained.traded[i], 2))
        cells += [
            percent(explained.reference[i], 2),
            percent(explained.risk["target"].shares[i]),
        ]
        lines.append(Line(explained.assets[i], tuple(cells), bar(float(change[i]), low, high)))
    columns = (
        "Held",
        "Target",
        *(("After the trade",) if traded else ()),
        "Anchors' average" if explained.base == "anchors" else "Zero action",
        "Share of risk",
    )
    when = (
        "The trade goes part of the way to the target, as trade_rate, limits and listings let it."
        if traded
        else "The order waits for the next close."
    )
    risk = (
        "Risk: what each weight contributes to the target's volatility, by the trailing days' "
        "covariance."
    )
    table = meter_table("Asset", columns, lines, "Target less held")
    return paragraph(f"{when} {risk}") + table + _rest(len(explained.assets), len(places))


def voices(explained: Explained) -> str:
    """Anchors and experts of each member: gates, loudness and what they pushed."""
    told = (
        "A gate is how much a voice is listened to. Its loudness is the part of the portfolio "
        "that would lie elsewhere without it: the anchor out of the mixture, or the expert's "
        "tilts out of the sum of tilts."
    )
    parts = [_voice(explained, voice, i) for i, voice in enumerate(explained.voices, start=1)]
    return paragraph(told) + "".join(parts) if any(parts) else ""


def _voice(explained: Explained, voice: Voice, number: int) -> str:
    out = ""
    if voice.anchors is not None:
        most = float(voice.anchors.gates.max())
        held = [int(np.argmax(row)) for row in voice.anchors.weights]
        lines = [
            Line(
                name,
                (
                    percent(gate),
                    percent(loud, 2),
                    f"{explained.assets[held[i]]} {percent(voice.anchors.weights[i, held[i]])}",
                ),
                bar(float(gate), 0.0, most),
            )
            for i, (name, gate, loud) in enumerate(
                zip(voice.anchors.names, voice.anchors.gates, voice.anchors.loudness, strict=True)
            )
        ]
        columns = ("Gate", "Loudness", "Its largest weight")
        out += subtitle("Anchors") + meter_table("Anchor", columns, lines, "Gate")
    if voice.experts is not None:
        most = float(voice.experts.gates.max())
        lines = [
            Line(
                name,
                (
                    percent(gate),
                    percent(voice.experts.loudness[i], 3),
                    _pushed(explained, voice.experts.tilts[i]),
                ),
                bar(float(gate), 0.0, most),
            )
            for i, (name, gate) in enumerate(
                zip(voice.experts.names, voice.experts.gates, strict=True)
            )
        ]
        columns = ("Gate", "Loudness", "Tilts most up and down")
        out += subtitle("Experts") + meter_table("Expert", columns, lines, "Gate")
    if out and len(explained.voices) > 1:
        counts = f" (counts {percent(voice.share, 0)})" if explained.combination != "median" else ""
        out = subtitle(f"Member {number}: {label(voice.name)}{counts}") + out
    return out


def _pushed(explained: Explained, tilts: Float) -> str:
    up, down = int(np.argmax(tilts)), int(np.argmin(tilts))
    return f"{explained.assets[up]} up, {explained.assets[down]} down"


def features(explained: Explained) -> str:
    """Integrated gradients: by block for every asset, by feature for those that moved most."""
    found = explained.features
    moved = found.weights - found.baseline
    blocks = found.by_block()
    places = _most(np.abs(moved), LISTED)
    columns = ("Average day", *(name.replace("_", " ") for name in blocks), "Target")
    rows, texts = [], []
    for i in places:
        values = np.array([part[i] for part in blocks.values()])
        rows.append((explained.assets[i], np.concatenate([[0.0], values, [0.0]])))
        texts += [
            percent(found.baseline[i], 2),
            *(points(v) for v in values),
            percent(found.weights[i], 2),
        ]
    told = (
        "Integrated gradients, in percentage points of weight. An average day has all features "
        "at their training mean, for the same portfolio and anchors; from it to the target the "
        f"columns add up, to within {100 * found.gap:.4f} points ({found.steps} steps)."
    )
    out = paragraph(told) + heat_table("Asset", columns, rows, texts)
    out += _rest(len(explained.assets), len(places))
    for i in places[:CLOSELY]:
        out += _closely(explained, i)
    return out


def _closely(explained: Explained, place: int) -> str:
    found = explained.features
    listed = found.largest(place, FEATURES)
    if not listed:
        return ""
    parts = found.parts[place, listed]
    low, high = min(0.0, float(parts.min())), max(0.0, float(parts.max()))
    lines = [
        Line(
            found.features[j].label,
            (
                f"{found.natural[j]:.4g}".replace("-", "−"),
                f"{found.values[j]:+.2f}".replace("-", "−"),
                points(found.parts[place, j], 3),
            ),
            bar(float(found.parts[place, j]), low, high),
        )
        for j in listed
    ]
    columns = ("Value", "in deviations", "Points")
    return subtitle(explained.assets[place]) + meter_table("Feature", columns, lines, "Points")


def outlooks(explained: Explained) -> str:
    """Each member's critic on the decision and its alternatives."""
    known = [each for each in explained.outlooks if each is not None]
    if not known:
        return ""
    told = (
        "Quantiles of the discounted sum of rewards from here on, pooled over the critic's "
        "networks: the box holds the middle half, the tails reach from 5 % to 95 %, the tick is "
        "the mean. Rewards are what training was paid for, not money. Where no action reaches a "
        "portfolio the nearest action was judged, and the part that it misses is given."
    )
    out = paragraph(told)
    for number, found in enumerate(explained.outlooks, start=1):
        if found is not None:
            out += _outlook(explained, found, number)
    return out


def _outlook(explained: Explained, found: Outlook, number: int) -> str:
    low, high = float(found.quantiles.min()), float(found.quantiles.max())
    lines = [
        Line(
            name,
            (
                f"{found.means[i]:.4f}".replace("-", "−"),
                f"{found.quantiles[i, 0]:.3f}".replace("-", "−"),
                f"{found.quantiles[i, 4]:.3f}".replace("-", "−"),
                "–" if found.missed[i] < 5e-4 else percent(found.missed[i]),
            ),
            interval(found.quantiles[i], float(found.means[i]), low, high),
            bold=i == 0,
        )
        for i, name in enumerate(found.names)
    ]
    title = ""
    if len(explained.voices) > 1:
        title = subtitle(f"Member {number}: {label(explained.voices[number - 1].name)}")
    columns = ("Mean", "5 %", "95 %", "Missed")
    return title + meter_table("Decision", columns, lines, "Distribution")


def attribution(explained: Explained) -> str:
    """Where the return up to this day came from."""
    return "" if explained.attribution is None else attributed(explained.attribution)


def attributed(made: Attribution) -> str:
    """Where a return came from: stages, anchors, assets."""
    told = (
        f"Net return of the backtest from {made.first} to {made.last} ({made.days} days), in "
        "percentage points of the value at its start. Parts add up to "
        f"{points(made.total, 3)} exactly."
    )
    return paragraph(told) + _stages(made) + _assets(made)


def _stages(made: Attribution) -> str:
    pairs = [*zip(made.stages, made.parts.sum(axis=1).tolist(), strict=True), ("costs", made.costs)]
    values = [value for _, value in pairs]
    low, high = min(0.0, *values, made.total), max(0.0, *values, made.total)
    lines = [Line(name, (points(value, 3),), bar(value, low, high)) for name, value in pairs]
    lines.append(Line("net return", (points(made.total, 3),), bar(made.total, low, high), True))
    out = meter_table("Stage", ("Points",), lines, "Points")
    if len(made.anchors):
        gates = [float(g) for g in made.gates]
        low, high = min(0.0, *gates), max(0.0, *gates)
        lines = [
            Line(name, (points(gate, 3),), bar(gate, low, high))
            for name, gate in zip(made.anchors, gates, strict=True)
        ]
        out += subtitle("The gates, anchor by anchor")
        out += meter_table("Anchor", ("Points",), lines, "More or less than evenly")
    return out


def _assets(made: Attribution) -> str:
    totals = made.parts.sum(axis=0)
    places = _most(np.abs(totals), LISTED)
    rows = [(made.assets[i], np.append(made.parts[:, i], totals[i])) for i in places]
    texts = [points(value) for _, values in rows for value in values]
    columns = (*made.stages, "Together")
    table = heat_table("Asset", columns, rows, texts)
    return subtitle("By asset, before costs") + table + _rest(len(made.assets), len(places))


def _most(values: Float, count: int) -> list[int]:
    order = np.argsort(-values, kind="stable")[:count]
    return [int(i) for i in order]


def _rest(all_of_them: int, shown: int) -> str:
    left = all_of_them - shown
    return paragraph(f"{left:,} more are in the JSON file.") if left > 0 else ""
