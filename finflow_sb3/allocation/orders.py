"""Orders in whole lots that cash can pay for, and a ledger that is right to the cent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.allocation.holdings import CENT

__all__ = ["Orders", "cents", "place"]

Float = NDArray[np.float64]
CostOf = Callable[[Float], Float]
"""Money traded in each asset, shape [n] → what that costs, in money."""
HALVINGS = 60
NOTHING = Decimal(0)


@dataclass(frozen=True)
class Orders:
    """What to buy (positive) and sell (negative) of n assets.

    Attributes
    ----------
    shares : whole lots, but for what is sold to the last share
    amounts : their value in whole cents, at the given prices
    costs : of each, in whole cents
    cash : what is left, never negative
    """

    shares: tuple[Decimal, ...]
    amounts: tuple[Decimal, ...]
    costs: tuple[Decimal, ...]
    cash: Decimal


def cents(value: Decimal | float) -> Decimal:
    return Decimal(value).quantize(CENT, rounding=ROUND_HALF_UP)


def place(
    held: Sequence[Decimal],
    prices: Sequence[Decimal],
    lots: Sequence[Decimal],
    cash: Decimal,
    wanted: Float,
    cost_of: CostOf,
    min_order: Decimal = NOTHING,
) -> Orders:
    """Orders that bring holdings as near to the wanted values as lots and cash allow.

    Orders are rounded to the nearest lot. What is to be sold to nothing is, odd lots too. Sales
    come first; where they and cash do not pay for all purchases and costs, all purchases are made
    smaller by the same factor, the largest that cash can pay.

    Parameters
    ----------
    held, prices, lots : shares, money a share, and smallest order, of each asset
    cash : whole cents, not negative
    wanted : shape [n], value in money to hold of each asset after the trade
    cost_of : what trades cost, asset by asset
    min_order : orders of less money are left out, and so are sales that cost what they raise
    """
    moves = [
        Decimal(float(want)) / price - have
        for want, price, have in zip(wanted, prices, held, strict=True)
    ]
    sales = [
        _sale(move, have, lot, want <= 0.0)
        for move, have, lot, want in zip(moves, held, lots, wanted, strict=True)
    ]
    sales = _worth_it(sales, prices, cost_of, min_order)

    def at(factor: Decimal) -> Orders:
        shares = [
            -sale if move < 0 else _purchase(move * factor, price, lot, min_order)
            for sale, move, price, lot in zip(sales, moves, prices, lots, strict=True)
        ]
        return _booked(shares, prices, cash, cost_of)

    whole = at(Decimal(1))
    return whole if whole.cash >= 0 else _affordable(at)


def _affordable(at: Callable[[Decimal], Orders]) -> Orders:
    """The orders of the largest factor that leaves no debt."""
    low, high = Decimal(0), Decimal(1)
    best = at(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = at(middle)
        if found.cash >= 0:
            low, best = middle, found
        else:
            high = middle
    return best


def _sale(move: Decimal, held: Decimal, lot: Decimal, everything: bool) -> Decimal:
    """Shares to sell, positive."""
    if everything:
        return held
    rounded = _in_lots(max(-move, NOTHING), lot, ROUND_HALF_EVEN)
    return min(rounded, _in_lots(held, lot, ROUND_DOWN))


def _purchase(move: Decimal, price: Decimal, lot: Decimal, min_order: Decimal) -> Decimal:
    shares = _in_lots(move, lot, ROUND_HALF_EVEN)
    # What rounds to no money would be a present.
    return shares if cents(shares * price) >= max(min_order, CENT) else NOTHING


def _in_lots(shares: Decimal, lot: Decimal, rounding: str) -> Decimal:
    return (shares / lot).to_integral_value(rounding=rounding) * lot


def _worth_it(
    sales: list[Decimal], prices: Sequence[Decimal], cost_of: CostOf, min_order: Decimal
) -> list[Decimal]:
    amounts = [cents(sale * price) for sale, price in zip(sales, prices, strict=True)]
    costs = cost_of(np.array([float(amount) for amount in amounts]))
    return [
        sale if amount >= min_order and amount > cents(cost) else NOTHING
        for sale, amount, cost in zip(sales, amounts, costs.tolist(), strict=True)
    ]


def _booked(
    shares: list[Decimal], prices: Sequence[Decimal], cash: Decimal, cost_of: CostOf
) -> Orders:
    amounts = tuple(cents(count * price) for count, price in zip(shares, prices, strict=True))
    charged = cost_of(np.array([abs(float(amount)) for amount in amounts]))
    costs = tuple(cents(cost) for cost in charged.tolist())
    left = cash - sum(amounts, NOTHING) - sum(costs, NOTHING)
    return Orders(tuple(shares), amounts, costs, left)
