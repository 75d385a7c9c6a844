"""The page of learning curves: the picture, a table of the runs, and what happened in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from finflow_sb3.evaluation.report_template import (
    FOOT,
    HEAD,
    Row,
    measures_table,
    pairs_table,
    picture,
)

__all__ = ["learning_page"]

PAGE = Template(
    HEAD
    + """<header>
<p class="over">Learning curves</p>
<h1>$title</h1>
<p class="muted">$subtitle</p>
</header>
<h2>Last and best figures</h2>
$table
<h2>Course</h2>
$pictures
$events
<footer class="muted">Validation figures are net of costs, on days that training does not see.
Those of training are means over the episodes that ended last, of portfolios that explore.</footer>
"""
    + FOOT
)


def learning_page(
    title: str,
    subtitle: str,
    columns: Sequence[str],
    groups: Mapping[str, Sequence[Row]],
    pictures: Sequence[tuple[bytes, bytes]],
    caption: str,
    events: Sequence[tuple[str, str]],
) -> str:
    """The whole page, which needs no other file.

    Parameters
    ----------
    columns, groups : the table, as for `measures_table`
    pictures : each for a page and for a telephone
    events : where and when, and what happened
    """
    happened = f"<h2>Events</h2>{pairs_table(events)}" if events else ""
    return PAGE.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        table=measures_table(columns, groups, first="Run"),
        pictures="\n".join(picture(*pngs, caption) for pngs in pictures),
        events=happened,
    )
