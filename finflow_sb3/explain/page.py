"""The decision card as a page that needs no other file, no script and no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from string import Template

import numpy as np

from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report_template import (
    FOOT,
    HEAD,
    Section,
    notes_list,
    paragraph,
    sections_html,
    subtitle,
    tile,
)
from finflow_sb3.explain.decision import Explained
from finflow_sb3.explain.page_parts import attribution, features, outlooks, voices, weights
from finflow_sb3.explain.pieces import Line, bar, meter_table
from finflow_sb3.explain.what_if import Counterfactual
from finflow_sb3.explain.words import answer_line, percent, trade_line, two_lines, voices_line

__all__ = ["CARD", "card_page", "framed"]

# Features of a counterfactual that the page lists.
CHANGES = 12
CARD = Template(
    HEAD
    + """<header>
<p class="over">$over</p>
<h1>$title</h1>
<p class="muted">$subtitle</p>
</header>
$sections
<footer class="muted">$footer</footer>
"""
    + FOOT
)


def framed(over: str, title: str, below: str, sections: Sequence[Section], footer: str) -> str:
    """A page of these sections."""
    return CARD.substitute(
        over=escape(over),
        title=escape(title),
        subtitle=escape(below),
        sections=sections_html(sections),
        footer=escape(footer),
    )


def card_page(explained: Explained, run: str, source: str) -> str:
    """The whole page. The same decision gives the same text.

    Parameters
    ----------
    run, source : names of the run and of its prices
    """
    sections = [
        Section("summary", "In short", _summary(explained)),
        Section("weights", "Weights and risk", weights(explained)),
        Section("voices", "Who was heard", voices(explained)),
        Section("features", "What moved the weights", features(explained)),
        Section("what-if", "What would have had to differ", _what_if(explained.counterfactual)),
        Section("outlook", "What the critic expects", outlooks(explained)),
        Section("return", "What came of it", attribution(explained)),
        Section("left-out", "What is not here", notes_list(explained.left_out)),
    ]
    return framed(
        f"Decision card · {explained.date}",
        f"{label(explained.policy)} on {source}",
        f"{run} · decided at the close of {explained.date}",
        sections,
        "All figures are in the JSON file beside this page. An explanation says how a policy came "
        "to a decision; it does not say that the decision is a good one.",
    )


def _summary(explained: Explained) -> str:
    _, second = two_lines(explained)
    return (
        f'<div class="verdict"><strong>{escape(trade_line(explained))}</strong>'
        f"<p>{escape(voices_line(explained))} {escape(second)}</p></div>"
        f'<div class="tiles">{"".join(_tiles(explained))}</div>'
    )


def _tiles(explained: Explained) -> list[str]:
    wanted = float(np.abs(explained.target - explained.held)[:-1].sum())
    risk = explained.risk
    tiles = [
        tile(
            "Turnover that is wanted",
            percent(wanted),
            f"of which {percent(explained.trade_rate, 0)} a day is traded",
        ),
        tile(
            "Volatility of the target",
            percent(risk["target"].volatility),
            f"held {percent(risk['held'].volatility)}, from {risk['target'].days} days",
        ),
        tile(
            "In cash",
            percent(explained.target[-1]),
            f"held {percent(explained.held[-1])}",
        ),
    ]
    if explained.combination:
        tiles.append(
            tile(
                "Disagreement of the members",
                percent(explained.disagreement),
                f"combined by {explained.combination}; {percent(explained.trust, 0)} trusted",
            )
        )
    elif explained.attribution is not None:
        made = explained.attribution
        tiles.append(
            tile(f"Net return of {made.days} days", percent(made.total), f"since {made.first}")
        )
    return tiles


def _what_if(found: Counterfactual | None) -> str:
    if found is None:
        return ""
    said = paragraph(answer_line(found), muted=False)
    if found.change.size == 0.0 or not found.change.found:
        return said
    held = "Anchors and portfolio stay as they are; the policy itself was asked with the change."
    return said + paragraph(held) + _changes(found)


def _changes(found: Counterfactual) -> str:
    delta = found.change.delta
    order = np.argsort(-np.abs(delta), kind="stable")[:CHANGES]
    low, high = min(0.0, float(delta.min())), max(0.0, float(delta.max()))
    lines = [
        Line(
            found.features[j].label,
            (
                f"{found.before[j]:.2f}".replace("-", "−"),
                f"{found.after[j]:.2f}".replace("-", "−"),
                f"{found.before_natural[j]:.4g}".replace("-", "−"),
                f"{found.after_natural[j]:.4g}".replace("-", "−"),
            ),
            bar(float(delta[j]), low, high),
        )
        for j in order.tolist()
        if delta[j] != 0.0
    ]
    columns = ("From, in deviations", "to", "From, in its units", "to")
    rest = int(np.count_nonzero(delta)) - len(lines)
    more = paragraph(f"{rest:,} more features change by less.") if rest > 0 else ""
    return subtitle("Features") + meter_table("Feature", columns, lines, "Change") + more
