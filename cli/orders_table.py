"""How an allocation is printed on stdout."""

from __future__ import annotations

import itertools
from decimal import Decimal

from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from finflow_sb3.allocation.result import Allocation, Position
from finflow_sb3.cli.console import out
from finflow_sb3.cli.tables import figures_table
from finflow_sb3.evaluation.report_numbers import number

__all__ = ["show_allocation"]

WIDEST = 10_000
HEADINGS = ("held", "price", "value", "now", "target", "after", "order", "amount", "cost")
NARROWER = ("after", "value", "now", "cost", "held", "target")
"""What a narrow terminal does without, in this order."""


def show_allocation(found: Allocation) -> None:
    """The table of positions, totals, the decision in two lines, and notes."""
    when = f"Close of {found.date}"
    if found.age:
        days = "business day" if found.age == 1 else "business days"
        when += f", {found.age} {days} before {found.as_of}"
    _line(f"{when}; prices from {found.prices}")
    _print_whole(found)
    share = float(found.costs / found.value)
    _line(
        f"Value {found.value:,.2f}; {len(found.orders)} orders, turnover "
        f"{number(found.turnover, 'fine')}, expected costs {found.costs:,.2f} "
        f"({100 * share:.3f}\u00a0%); cash after them {found.cash:,.2f}"
    )
    if not found.orders:
        _line("Nothing is far enough from the target for an order (--lot, --min-order, limits).")
    elif found.trade_rate < 1.0:
        rate = number(found.trade_rate, "percent")
        _line(f"Orders go {rate} of the way to the target; the rest is for the days to come.")
    if len(found.runs) > 1:
        apart = number(found.disagreement, "percent")
        _line(f"{len(found.runs)} runs place {apart} of the portfolio differently.")
    for sentence in (*found.lines, *found.notes):
        out.print(Text(sentence), width=min(out.width, 100))
    if found.folder is not None:
        _line(f"Written: {found.folder}")


def _print_whole(found: Allocation) -> None:
    """The table with all of its figures whole: columns are left out where a terminal is narrow."""
    hidden: tuple[str, ...] = ()
    for hidden in (NARROWER[:count] for count in range(len(NARROWER) + 1)):
        table = _table(found, hidden)
        table.width = Measurement.get(out, out.options.update(max_width=WIDEST), table).maximum
        if not out.is_terminal or table.width <= out.width:
            break
    out.print(table, crop=False)


def _table(found: Allocation, hidden: tuple[str, ...]) -> Table:
    shown = [heading not in hidden for heading in HEADINGS]
    table = figures_table("", *itertools.compress(HEADINGS, shown))
    for column in table.columns:
        column.no_wrap = True
    *assets, cash = found.positions
    for i, each in enumerate(assets):
        last = i == len(assets) - 1 or bool(each.order) != bool(assets[i + 1].order)
        row = itertools.compress(_cells(each), shown)
        table.add_row(Text(each.asset), *row, style=_style(each), end_section=last)
    row = itertools.compress(("", "", *_cells(cash)[2:6], "", "", ""), shown)
    table.add_row(cash.asset, *row)
    return table


def _cells(each: Position) -> tuple[str, ...]:
    order = _signed(f"{each.order:+,f}") if each.order else ""
    return (
        f"{each.held:,f}" if each.held else "",
        _price(each.price),
        f"{each.value:,.2f}" if each.value else "",
        number(each.weight, "percent"),
        number(each.target, "percent"),
        number(each.weight_after, "percent"),
        order,
        _signed(f"{each.amount:+,.2f}") if each.order else "",
        f"{each.cost:,.2f}" if each.order else "",
    )


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _price(price: Decimal) -> str:
    return f"{price:,.2f}" if price >= 1 else f"{float(price):.4g}"


def _style(each: Position) -> str:
    if not each.order:
        return "dim" if not each.held else ""
    return "green" if each.order > 0 else "red"


def _line(text: str) -> None:
    out.print(Text(text), soft_wrap=True)
