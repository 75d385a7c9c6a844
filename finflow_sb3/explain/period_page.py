"""The page of a period: what mattered, and what it came to."""

from __future__ import annotations

from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report_template import Section, paragraph, subtitle
from finflow_sb3.explain.attribution import Attribution
from finflow_sb3.explain.importance import Heard, Importance
from finflow_sb3.explain.page import framed
from finflow_sb3.explain.page_parts import attributed
from finflow_sb3.explain.pieces import Line, bar, meter_table
from finflow_sb3.explain.words import percent

__all__ = ["period_page"]

FEATURES = 25


def period_page(policy: str, found: Importance, made: Attribution, run: str, source: str) -> str:
    """The whole page.

    Parameters
    ----------
    policy : its name
    run, source : names of the run and of its prices
    """
    sections = [
        Section("features", "Which features matter", _features(found)),
        Section("voices", "Who was heard", _voices(found)),
        Section("return", "What came of it", attributed(made)),
    ]
    return framed(
        f"Explained · {made.first} to {made.last}",
        f"{label(policy)} on {source}",
        f"{run} · {made.days:,} days, {found.days:,} of them explained",
        sections,
        "All figures are in the JSON file beside this page. What moves a policy need not be what "
        "makes it earn.",
    )


def _features(found: Importance) -> str:
    told = (
        "The part of the portfolio that features move away from an average day, by integrated "
        f"gradients, as a mean over days; all of them together {percent(found.moved, 2)}. What "
        "features of one group move in opposite directions cancels within it. Complete to within "
        f"{100 * found.gap:.4f} percentage points."
    )
    return (
        paragraph(told)
        + subtitle("By group")
        + _sizes("Group", found.blocks)
        + subtitle("By feature, all assets or anchors together")
        + _sizes("Feature", dict(list(found.features.items())[:FEATURES]))
    )


def _sizes(first: str, values: dict[str, float]) -> str:
    most = max(values.values(), default=0.0)
    lines = [
        Line(
            name.replace("_", " ") if first == "Group" else name, (percent(v, 3),), bar(v, 0, most)
        )
        for name, v in values.items()
    ]
    return meter_table(first, ("Moves",), lines, "Share of the portfolio")


def _voices(found: Importance) -> str:
    told = (
        "Mean gates, and mean loudness: the part of the portfolio that would lie elsewhere "
        "without the anchor in the mixture, or without the expert's tilts."
    )
    tables = [
        subtitle(title) + _heard(title[:-1], voices)
        for title, voices in (("Anchors", found.anchors), ("Experts", found.experts))
        if voices
    ]
    return paragraph(told) + "".join(tables) if tables else ""


def _heard(first: str, voices: dict[str, Heard]) -> str:
    most = max(heard.loudness for heard in voices.values())
    lines = [
        Line(
            name,
            (percent(heard.gate), percent(heard.loudness, 3)),
            bar(heard.loudness, 0.0, most),
        )
        for name, heard in voices.items()
    ]
    return meter_table(first, ("Mean gate", "Loudness"), lines, "Loudness")
