"""Pieces of the pages: tables with bars, drawn by the style sheet alone.

Every function escapes the text that it is given; what it returns is HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["Line", "bar", "heat_table", "interval", "meter_table"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A row of a table: its name, formatted cells, HTML of its bar, and whether it stands out."""

    name: str
    cells: tuple[str, ...]
    track: str = ""
    bold: bool = False


def bar(value: float, low: float, high: float) -> str:
    """A bar from zero to `value` on a scale from `low` ≤ 0 to `high` ≥ 0."""
    width = high - low
    if width <= 0.0:
        return ""
    zero = -low / width
    left, right = sorted((zero, (value - low) / width))
    kind = ' class="down"' if value < 0.0 else ""
    return (
        f'<div><i{kind} style="left: {100 * left:.2f}%; width: {100 * (right - left):.2f}%"></i>'
        f'<i class="zero" style="left: {100 * zero:.2f}%"></i></div>'
    )


def interval(quantiles: Float, mean: float, low: float, high: float) -> str:
    """Five quantiles as a box with tails, and the mean as a tick, on a scale from low to high."""
    width = high - low
    if width <= 0.0:
        return ""
    at = [100 * float((q - low) / width) for q in quantiles]
    tick = 100 * (mean - low) / width
    zero = f'<i class="zero" style="left: {-100 * low / width:.2f}%"></i>' if low < 0 < high else ""
    return (
        f'<div>{zero}<i class="tails" style="left: {at[0]:.2f}%; width: {at[4] - at[0]:.2f}%"></i>'
        f'<i class="middle" style="left: {at[1]:.2f}%; width: {at[3] - at[1]:.2f}%"></i>'
        f'<i class="tick" style="left: {tick:.2f}%"></i></div>'
    )


def meter_table(first: str, columns: Sequence[str], lines: Sequence[Line], track: str = "") -> str:
    """A table whose last column, `track`, has bars; none where it is empty."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    if track:
        head += f'<th scope="col" class="track">{escape(track)}</th>'
    body = "".join(_row(line, bool(track)) for line in lines)
    return (
        '<div class="scroll"><table class="measures meters"><thead><tr>'
        f'<th scope="col">{escape(first)}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _row(line: Line, track: bool) -> str:
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in line.cells)
    if track:
        cells += f'<td class="track">{line.track}</td>'
    kind = ' class="policy"' if line.bold else ""
    return f'<tr{kind}><th scope="row">{escape(line.name)}</th>{cells}</tr>'


def heat_table(
    first: str, columns: Sequence[str], rows: Sequence[tuple[str, Float]], texts: Sequence[str]
) -> str:
    """Numbers as a table of tinted cells, gains and losses apart.

    Parameters
    ----------
    rows : names and values, as many as `columns`
    texts : the values as they are written, row by row
    """
    largest = max((float(np.abs(values).max()) for _, values in rows if len(values)), default=0.0)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    written, body = iter(texts), []
    for name, values in rows:
        cells = "".join(_tinted(float(v), largest, next(written)) for v in values)
        body.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="heat named"><thead><tr>'
        f'<th scope="col">{escape(first)}</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _tinted(value: float, largest: float, text: str) -> str:
    share = abs(value) / largest if largest > 0.0 else 0.0
    colour = "--gain" if value >= 0.0 else "--loss"
    return f'<td style="background: rgba(var({colour}), {0.55 * share:.2f})">{escape(text)}</td>'
