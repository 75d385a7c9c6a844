"""How an allocation is printed on stdout."""

from __future__ import annotations

from decimal import Decimal

from rich.table import Table
from rich.text import Text

from finflow_sb3.allocation.result import Allocation, Position
from finflow_sb3.cli.console import out
from finflow_sb3.cli.tables import figures_table
from finflow_sb3.evaluation.report_numbers import number

__all__ = ["show_allocation"]

HEADINGS = ("held", "price", "value", "now", "target", "after", "order", "amount", "cost")


def show_allocation(found: Allocation) -> None:
    """The table of positions, totals, the decision in two lines, and notes."""
    when = f"Close of {found.date}"
    if found.age:
        days = "business day" if found.age == 1 else "business days"
        when += f", {found.age} {days} before {found.as_of}"
    _line(f"{when}; prices from {found.prices}")
    out.print(_table(found))
    share = float(found.costs / found.value)
    _line(
        f"Value {found.value:,.2f}; {len(found.orders)} orders, turnover "
        f"{number(found.turnover, 'fine')}, expected costs {found.costs:,.2f} "
        f"({100 * share:.3f}\u00a0%); cash after them {found.cash:,.2f}"
    )
    if found.trade_rate < 1.0:
        rate = number(found.trade_rate, "percent")
        _line(f"Orders go {rate} of the way to the target; the rest is for the days to come.")
    if len(found.runs) > 1:
        apart = number(found.disagreement, "percent")
        _line(f"{len(found.runs)} runs place {apart} of the portfolio differently.")
    for sentence in (*found.lines, *found.notes):
        out.print(Text(sentence), width=min(out.width, 100))
    if found.folder is not None:
        _line(f"Written: {found.folder}")


def _table(found: Allocation) -> Table:
    table = figures_table("", *HEADINGS)
    *assets, cash = found.positions
    for i, each in enumerate(assets):
        last = i == len(assets) - 1 or bool(each.order) != bool(assets[i + 1].order)
        table.add_row(each.asset, *_cells(each), style=_style(each), end_section=last)
    table.add_row(cash.asset, "", "", *_cells(cash)[2:6], "", "", "")
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
