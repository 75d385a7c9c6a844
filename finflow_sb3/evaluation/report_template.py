"""The report's page: its frame and style, and small pieces of HTML made from plain values.

Every function escapes what it is given; what it returns is HTML.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import Any

__all__ = [
    "FOOT",
    "HEAD",
    "PAGE",
    "Row",
    "definitions",
    "measures_table",
    "notes_list",
    "pairs_table",
    "picture",
    "settings_block",
    "split_bar",
    "tile",
]

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #22303c; --muted: #5d6a75; --paper: #fff;
  --ground: #f5f6f7; --line: #dfe4e8; --accent: #0b4f8a; --tint: #eaf2f9; --warn: #fdf5e3;
  --warnline: #d9a227; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ea; --muted: #9aa7b2;
  --paper: #1b232b; --ground: #12181e; --line: #323d47; --accent: #7db8ea; --tint: #1f3345;
  --warn: #33290f; --warnline: #b98a1e; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1300px; margin: 0 auto; padding: 40px 48px 56px; background: var(--paper); }
header { border-bottom: 3px solid var(--accent); padding-bottom: 18px; }
.over { color: var(--accent); font-size: .8rem; font-weight: 600; letter-spacing: .08em;
  text-transform: uppercase; margin: 0; }
h1 { font-size: 2rem; line-height: 1.2; margin: .2em 0 .25em; font-weight: 650; }
h2 { font-size: 1.15rem; margin: 2.4em 0 .7em; padding-bottom: .3em;
  border-bottom: 1px solid var(--line); font-weight: 650; }
p { margin: .4em 0; } .muted, figcaption { color: var(--muted); font-size: .9rem; }
.verdict { margin: 26px 0 18px; } .verdict strong { display: block; font-size: 1.35rem; }
.verdict p { max-width: 52em; }
.warn { background: var(--warn); border-left: 4px solid var(--warnline); padding: 10px 16px;
  margin: 18px 0; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 12px; margin: 22px 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; }
.tile .name { color: var(--muted); font-size: .82rem; }
.tile .value { font-size: 1.55rem; font-weight: 600; line-height: 1.35;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile .beside { color: var(--muted); font-size: .82rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
.measures { font-size: .79rem; width: 100%; }
.measures th, .measures td { text-align: right; padding: 6px 4px 6px 6px; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
.measures thead th { color: var(--muted); font-weight: 600; white-space: normal;
  vertical-align: bottom; line-height: 1.25; }
.measures th:first-child { text-align: left; position: sticky; left: 0; font-weight: 500;
  background: var(--paper); }
.measures .group th { color: var(--accent); font-weight: 600; padding-top: 18px; }
.measures .policy th:first-child, .measures .policy td { background: var(--tint);
  font-weight: 650; }
.pairs td, .pairs th { text-align: left; vertical-align: top; padding: 3px 22px 3px 0;
  font-weight: 400; }
.pairs td { overflow-wrap: anywhere; }
.pairs th { color: var(--muted); white-space: nowrap; }
figure { margin: 22px 0 30px; }
figure img { display: block; width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; padding: 8px; }
figcaption { margin-top: 6px; }
.bar { display: flex; gap: 3px; margin: 10px 0 14px; }
.bar div { min-width: 0; padding: 9px 10px; font-size: .84rem; background: var(--tint);
  border-top: 3px solid var(--line); }
.bar span { white-space: nowrap; }
.bar .test { border-top-color: var(--accent); }
.bar b { display: block; }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 6px;
  padding: 12px 14px; overflow-x: auto; font-size: .86rem; white-space: pre-wrap;
  overflow-wrap: anywhere; }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); }
.columns { columns: 3 300px; column-gap: 32px; margin-top: 10px; }
.columns section { break-inside: avoid; margin-bottom: 14px; }
.columns h3 { font-size: .92rem; margin: 0 0 .2em; }
footer { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 12px; }
@media (prefers-color-scheme: dark) { figure img { filter: brightness(.9); } }
@media (max-width: 900px) { .tiles { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 600px) { main { padding: 22px 16px 36px; } h1 { font-size: 1.5rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .measures th:first-child { max-width: 8.5em; white-space: normal;
    border-right: 1px solid var(--line); }
  figure { margin: 18px 0 24px; } figure img { padding: 2px; }
  .bar { flex-direction: column; } .pairs th { white-space: normal; } }
@media print { body, main { background: #fff; padding: 0; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
"""
FOOT = """</main>
</body>
</html>
"""

PAGE = Template(
    HEAD
    + """<header>
<p class="over">Backtest report · net of costs</p>
<h1>$title</h1>
<p class="muted">$subtitle</p>
</header>
<div class="verdict"><strong>$headline</strong><p>$verdict</p></div>
$warning
<div class="tiles">
$tiles
</div>
<h2>Measures on the test split</h2>
<p class="muted">$table_note</p>
$table
<details><summary>What the columns mean</summary>$definitions</details>
<h2>Pictures</h2>
<p class="muted">On the test split, after costs, at lag 0.</p>
$pictures
$pretraining
<h2>Periods</h2>
$splits
<h2>Market and run</h2>
$facts
$notes
<h2>Settings</h2>
<details><summary>All settings of this run</summary>$settings</details>
<h2>How to reproduce</h2>
<pre>$command</pre>
<footer class="muted">$footer</footer>
"""
    + FOOT
)


@dataclass(frozen=True)
class Row:
    """A line of the measures' table: a name, formatted cells, and whether it is the policy's."""

    name: str
    cells: tuple[str, ...]
    policy: bool = False


def tile(name: str, value: str, beside: str) -> str:
    """One key figure with what it is compared with."""
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div><div class="beside">{escape(beside)}</div></div>'
    )


def measures_table(
    columns: Sequence[str], groups: Mapping[str, Sequence[Row]], first: str = "Portfolio"
) -> str:
    """A table of `groups` (heading → rows) under one line of column names, `first` over the
    rows' own.
    """
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    bodies = []
    for heading, rows in groups.items():
        title = (
            f'<tr class="group"><th scope="rowgroup">{escape(heading)}</th>'
            f'<td colspan="{len(columns)}"></td></tr>'
        )
        bodies.append(f"<tbody>{title}{''.join(_table_row(row) for row in rows)}</tbody>")
    return (
        '<div class="scroll"><table class="measures">'
        f'<thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>{"".join(bodies)}'
        "</table></div>"
    )


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
