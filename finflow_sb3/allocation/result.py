"""What an allocation comes to, as a table that adds up and as files."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from finflow_sb3.allocation.holdings import CASH
from finflow_sb3.errors import ConfigError
from finflow_sb3.files import whole_folder

__all__ = ["Allocation", "Position", "cash_position", "require_free", "write_allocation"]

ORDERS, WHOLE = "orders.csv", "allocation.json"


@dataclass(frozen=True)
class Position:
    """One asset; or cash, whose price is 1 and whose order is what the others' bring or take.

    Attributes
    ----------
    held, order, after : shares before, to buy (positive) or sell, and after
    price : money a share, the last raw close
    value : of what is held, in whole cents
    weight, target : shares of the portfolio's value: before, and where the policies want to be
    amount : value of the order in whole cents, with its sign
    cost : of the order, in whole cents
    value_after : value + amount, and of cash less all costs
    weight_after : value_after over the value after costs
    """

    asset: str
    held: Decimal
    price: Decimal
    value: Decimal
    weight: float
    target: float
    order: Decimal
    amount: Decimal
    cost: Decimal
    after: Decimal
    value_after: Decimal
    weight_after: float


@dataclass(frozen=True)
class Allocation:
    """Orders for one day. Values after the trade and costs add up to the value before it.

    Attributes
    ----------
    runs : that decided
    prices : where the prices come from
    date : of the decision, the last day of the prices
    as_of, age : the day that it is for, and business days between the two
    price_kind : "raw close", or "close" where the prices have no raw one
    value, costs, cash : money: before the trade, of all orders, and what is left after it
    turnover : traded value over the value before
    trade_rate : part of the way to the target that is traded today
    drawdown : that the policies were shown
    disagreement : part of the portfolio that the runs place differently; 0 of one run
    gates : how much each anchor is listened to; empty for other action bases
    positions : sales, purchases, the rest; cash last
    lines : the decision in two sentences
    notes : what else has to be known, one sentence each
    folder : where it was written, if it was
    """

    runs: tuple[Path, ...]
    prices: str
    date: str
    as_of: str
    age: int
    price_kind: str
    value: Decimal
    costs: Decimal
    cash: Decimal
    turnover: float
    trade_rate: float
    drawdown: float
    disagreement: float
    gates: dict[str, float]
    positions: tuple[Position, ...]
    lines: tuple[str, str]
    notes: tuple[str, ...]
    folder: Path | None = None

    @property
    def orders(self) -> tuple[Position, ...]:
        """Positions that are traded, cash left out."""
        return tuple(each for each in self.positions[:-1] if each.order)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: money and shares as numbers, paths as text."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Position):
        return {k.name: _plain(getattr(value, k.name)) for k in dataclasses.fields(value)}
    return value


def require_free(folder: Path) -> None:
    """Refuse to replace a folder that holds anything else than an allocation.

    Raises
    ------
    ConfigError
        Naming what is in it.
    """
    if folder.resolve() == Path.cwd():
        raise ConfigError(f"{folder}: is where this runs; give --out a folder of its own")
    if folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.name not in (ORDERS, WHOLE))
        if others:
            raise ConfigError(f"{folder}: holds {others[0]} too; give --out a folder of its own")
    elif folder.exists():
        raise ConfigError(f"{folder}: is a file; give --out a folder")


def write_allocation(allocation: Allocation, folder: Path) -> Allocation:
    """`orders.csv` and `allocation.json` in a folder that is replaced as a whole."""
    require_free(folder)
    written = dataclasses.replace(allocation, folder=folder)
    # A link is followed, and stays: else the folder that it points to would be lost sight of.
    with whole_folder(folder.resolve()) as new:
        (new / ORDERS).write_text(_csv(written), "utf-8")
        text = json.dumps(written.as_dict(), indent=2, allow_nan=False)
        (new / WHOLE).write_text(text + "\n", "utf-8")
    return written


def _csv(allocation: Allocation) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Position)]
    writer.writerow(["symbol", *names[1:]])
    for each in allocation.positions:
        writer.writerow([_cell(getattr(each, name)) for name in names])
    return text.getvalue()


def _cell(value: str | Decimal | float) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"{value:f}" if isinstance(value, Decimal) else value


def cash_position(
    before: Decimal, after: Decimal, costs: Decimal, value: Decimal, target: float
) -> Position:
    """The row of cash: its order is what trades bring or take, and all costs are paid from it.

    They are in the rows of the orders, so that the columns add up: values before to nothing but
    values after and costs, amounts to zero.
    """
    one = Decimal(1)
    moved = after - before + costs
    total = float(value - costs)
    return Position(
        asset=CASH,
        held=before,
        price=one,
        value=before,
        weight=float(before / value),
        target=target,
        order=moved,
        amount=moved,
        cost=Decimal("0.00"),
        after=after,
        value_after=after,
        weight_after=float(after) / total if total else 0.0,
    )
