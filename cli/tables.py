"""Tables of figures in a terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

__all__ = ["figures_table"]


def figures_table(first: str, *others: str) -> Table:
    """An empty table of names and, to the right of them, figures."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", vertical="bottom")
    return table
