"""The report's page: its frame and style, and small pieces of HTML made from plain values.

Every function escapes what it is given; what it returns is HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from finflow_sb3.evaluation.charts import Chart

__all__ = [
    "FOOT",
    "HEAD",
    "PAGE",
    "Row",
    "Section",
    "contents",
    "definitions",
    "measures_table",
    "notes_list",
    "pairs_table",
    "paragraph",
    "picture",
    "place",
    "plain_table",
    "sections_html",
    "settings_block",
    "split_bar",
    "subtitle",
    "tile",
]

STYLE = files("finflow_sb3.evaluation").joinpath("page.css").read_text(encoding="utf-8")


def _head(scripts: str) -> str:
    """The head of a page that may load nothing, and run the `scripts` that are named alone."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'{scripts}">
<title>$title</title>
<style>
{STYLE}</style>
"""


HEAD = (
    _head("")
    + """</head>
<body>
<main>
"""
)
FOOT = """</main>
</body>
</html>
"""

PAGE = Template(
    _head("; script-src $scripts")
    + """<noscript><style>.chart { display: none; }</style></noscript>
</head>
<body>
<main class="sheet">
<header>
<p class="over">Backtest report · net of costs</p>
<h1>$title</h1>
<p class="muted">$subtitle</p>
</header>
<nav class="contents" aria-label="Contents"><ul>$contents</ul></nav>
<noscript><p class="warn"><b>The charts of this page need JavaScript.</b> Its tables do not, and
pictures of the main charts lie beside it: equity.png, drawdown.png, weights.png.</p></noscript>
$sections
<footer class="muted">$footer</footer>
</main>
<script>$library</script>
<script type="application/json" id="charts">$data</script>
<script>$drawing</script>
</body>
</html>
"""
)


@dataclass(frozen=True)
class Section:
    """A part of the page; one without `content` is left out, of the contents too."""

    id: str
    title: str
    content: str


def sections_html(sections: Sequence[Section]) -> str:
    """The sections, each under its heading."""
    return "\n".join(
        f'<section id="{s.id}"><h2>{escape(s.title)}</h2>\n{s.content}</section>'
        for s in sections
        if s.content
    )


def contents(sections: Sequence[Section]) -> str:
    """A link to each section."""
    return "".join(
        f'<li><a href="#{s.id}">{escape(s.title)}</a></li>' for s in sections if s.content
    )


def place(chart: Chart) -> str:
    """Where a chart will be drawn, with its words."""
    title = escape(chart.title)
    size = f"--wide: {chart.height}px; --narrow: {chart.height_narrow}px"
    return (
        f'<figure class="chart"><h3>{title}</h3><div class="plot" id="chart-{chart.id}" '
        f'style="{size}" role="img" aria-label="{title}"></div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def subtitle(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, muted: bool = True) -> str:
    """A sentence or two."""
    return f'<p class="muted">{escape(text)}</p>' if muted else f"<p>{escape(text)}</p>"


@dataclass(frozen=True)
class Row:
    """A line of the measures' table: a name, formatted cells, and whether it is the policy's."""

    name: str
    cells: tuple[str, ...]
    policy: bool = False


def tile(name: str, value: str, beside: str, interval: str = "") -> str:
    """One key figure with its interval, if it has one, and what it is compared with."""
    lines = [("name", name), ("value", value), ("interval", interval), ("beside", beside)]
    content = "".join(f'<div class="{kind}">{escape(text)}</div>' for kind, text in lines if text)
    return f'<div class="tile">{content}</div>'


def measures_table(
    columns: Sequence[str],
    groups: Mapping[str, Sequence[Row]],
    first: str = "Portfolio",
    narrow: bool = False,
) -> str:
    """A table of `groups` (heading → rows) under one line of column names, `first` over the
    rows' own; a `narrow` one is no wider than it needs to be. A heading that is empty has no line.
    """
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    bodies = []
    for heading, rows in groups.items():
        title = (
            f'<tr class="group"><th scope="rowgroup">{escape(heading)}</th>'
            f'<td colspan="{len(columns)}"></td></tr>'
            if heading
            else ""
        )
        bodies.append(f"<tbody>{title}{''.join(_table_row(row) for row in rows)}</tbody>")
    return (
        f'<div class="scroll"><table class="measures{" narrow" if narrow else ""}">'
        f'<thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>{"".join(bodies)}'
        "</table></div>"
    )


def plain_table(columns: Sequence[str], rows: Sequence[Row], first: str) -> str:
    """A narrow table of `rows`; empty where there are none."""
    return measures_table(columns, {"": rows}, first, narrow=True) if rows else ""


def _table_row(row: Row) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in row.cells)
    kind = ' class="policy"' if row.policy else ""
    return f'<tr{kind}><th scope="row">{escape(row.name)}</th>{cells}</tr>'


def picture(wide: bytes, narrow: bytes, caption: str) -> str:
    """A figure that carries its own PNGs, one for a page and one for a telephone."""
    return (
        f'<figure><picture><source media="(max-width: 600px)" srcset="{_data(narrow)}">'
        f'<img src="{_data(wide)}" alt="{escape(caption)}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def split_bar(splits: Sequence[tuple[str, str, str, float]]) -> str:
    """The splits (name, first day, last day, share of all days) as a bar in proportion."""
    parts = [
        f'<div class="{escape(name)}" style="flex: {max(share, 0.16):.3f} 1 0">'
        f"<b>{escape(name.capitalize())}</b><span>{escape(first)}</span> "
        f"<span>to {escape(last)}</span></div>"
        for name, first, last, share in splits
    ]
    return f'<div class="bar">{"".join(parts)}</div>'


def pairs_table(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values, one pair a line."""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_shown(value))}</td></tr>'
        for name, value in pairs
    )
    return f'<table class="pairs">{rows}</table>'


def settings_block(settings: Mapping[str, Any]) -> str:
    """Settings by section, as a configuration file has them."""
    single = {k: v for k, v in settings.items() if not isinstance(v, Mapping)}
    sections = [f"<section>{pairs_table(single.items())}</section>"] if single else []
    sections += [
        f"<section><h3>{escape(str(name))}</h3>{pairs_table(values.items())}</section>"
        for name, values in settings.items()
        if isinstance(values, Mapping) and values
    ]
    return f'<div class="columns">{"".join(sections)}</div>'


def definitions(meanings: Mapping[str, str]) -> str:
    """The measures and what each one is."""
    return pairs_table(meanings.items())


def notes_list(notes: Sequence[str]) -> str:
    """Remarks, one a point; nothing if there are none."""
    if not notes:
        return ""
    return f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(v) for v in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) or "none"
    return str(value)
