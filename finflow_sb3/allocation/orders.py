"""Orders in whole lots that cash can pay for, and a ledger that is right to the cent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.allocation.holdings import CENT

__all__ = ["Ledger", "Orders", "cents", "place"]

Float = NDArray[np.float64]
CostOf = Callable[[Float], Float]
"""Money traded in each asset, shape [n] → what that costs, in money."""
Shares = tuple[Decimal, ...]
HALVINGS = 60
NOTHING = Decimal(0)
NOISE = 1e-9
"""Part of an account's value: what a step of less moves is rounding of the arithmetic."""


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

    shares: Shares
    amounts: Shares
    costs: Shares
    cash: Decimal


@dataclass(frozen=True)
class Ledger:
    """What n assets trade at.

    Attributes
    ----------
    prices, lots : money a share, and smallest order, of each asset
    cash : whole cents before any order, not negative
    cost_of : what trades cost, asset by asset
    min_order : orders of less money are left out, and so are those that cost what they move
    """

    prices: Shares
    lots: Shares
    cash: Decimal
    cost_of: CostOf
    min_order: Decimal = NOTHING

    def book(self, shares: Sequence[Decimal]) -> Orders:
        """These orders with their money; cash is negative where they cannot be paid for."""
        amounts = tuple(cents(n * price) for n, price in zip(shares, self.prices, strict=True))
        costs = self._costs(amounts)
        left = self.cash - sum(amounts, NOTHING) - sum(costs, NOTHING)
        return Orders(tuple(shares), amounts, costs, left)

    def worth_it(self, shares: Sequence[Decimal]) -> Shares:
        """Shares [n] to buy or to sell, all positive, without the orders that are not worth it."""
        amounts = tuple(cents(n * price) for n, price in zip(shares, self.prices, strict=True))
        return tuple(
            count if amount >= self.min_order and amount > cost else NOTHING
            for count, amount, cost in zip(shares, amounts, self._costs(amounts), strict=True)
        )

    def _costs(self, amounts: Shares) -> Shares:
        charged = self.cost_of(np.array([abs(float(amount)) for amount in amounts]))
        return tuple(cents(cost) for cost in charged.tolist())


def cents(value: Decimal | float) -> Decimal:
    return Decimal(value).quantize(CENT, rounding=ROUND_HALF_UP)


def place(held: Shares, ledger: Ledger, wanted: Float, aim: Float | None = None) -> Orders:
    """Orders that bring holdings as near to the wanted values as lots and cash allow.

    Orders are rounded to the nearest lot; but one lot is traded where that is none although the
    aim is a lot or more away, as small steps would be rounded away day after day. What is to be
    sold to nothing is, odd lots too. Sales come first; where they and cash do not pay for all
    purchases and costs, all purchases are made smaller by the same factor, and what that leaves
    goes into whole lots, the largest shortfall first.

    Parameters
    ----------
    held : shares of each asset
    wanted : shape [n], value in money to hold of each asset after the trade
    aim : shape [n], value to hold in the end, towards which `wanted` is a step; `wanted` itself
        if not given
    """
    aim = wanted if aim is None else aim
    moves = _moves(held, ledger, wanted, aim)
    leave = zip(wanted <= 0.0, aim <= 0.0, strict=True)
    sold = [_sale(*each) for each in zip(moves, held, ledger.lots, leave, strict=True)]
    sales = ledger.worth_it(sold)

    def bought(factor: Decimal) -> Shares:
        counts = [
            _in_lots(max(move, NOTHING) * factor, lot, ROUND_HALF_EVEN)
            for move, lot in zip(moves, ledger.lots, strict=True)
        ]
        return ledger.worth_it(counts)

    def booked(purchases: Shares) -> Orders:
        return ledger.book([buy - sale for buy, sale in zip(purchases, sales, strict=True)])

    whole = bought(Decimal(1))
    if booked(whole).cash >= 0:
        return booked(whole)
    return booked(_topped_up(_affordable(bought, booked), whole, ledger, booked))


def _moves(held: Shares, ledger: Ledger, wanted: Float, aim: Float) -> Shares:
    """Shares to trade, negative of sales, before they are rounded to lots."""
    rows = list(zip(ledger.prices, held, strict=True))
    today = [Decimal(float(want)) / p - have for want, (p, have) in zip(wanted, rows, strict=True)]
    way = [Decimal(float(end)) / p - have for end, (p, have) in zip(aim, rows, strict=True)]
    noise = Decimal(NOISE) * sum((p * have for p, have in rows), ledger.cash)
    moves = []
    for step, rest, price, lot in zip(today, way, ledger.prices, ledger.lots, strict=True):
        lost = abs(step) * price > noise and not _in_lots(abs(step), lot, ROUND_HALF_EVEN)
        far = step * rest > 0 and abs(rest) >= lot
        moves.append(lot.copy_sign(step) if lost and far else step)
    return tuple(moves)


def _sale(move: Decimal, held: Decimal, lot: Decimal, leave: tuple[bool, bool]) -> Decimal:
    """Shares to sell, positive; `leave`: whether nothing is wanted today, and in the end."""
    if move >= 0:
        return NOTHING
    lots = min(_in_lots(-move, lot, ROUND_HALF_EVEN), _in_lots(held, lot, ROUND_DOWN))
    today, at_last = leave
    return held if today or (at_last and held - lots < lot) else lots


def _in_lots(shares: Decimal, lot: Decimal, rounding: str) -> Decimal:
    return (shares / lot).to_integral_value(rounding=rounding) * lot


def _affordable(bought: Callable[[Decimal], Shares], booked: Callable[[Shares], Orders]) -> Shares:
    """The purchases of the largest factor that leaves no debt."""
    low, high = NOTHING, Decimal(1)
    best = bought(low)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = bought(middle)
        if booked(found).cash >= 0:
            low, best = middle, found
        else:
            high = middle
    return best


def _topped_up(
    bought: Shares, whole: Shares, ledger: Ledger, booked: Callable[[Shares], Orders]
) -> Shares:
    """Purchases with what is missing of them as far as cash pays for it, asset by asset."""
    short = [(w - b) * p for w, b, p in zip(whole, bought, ledger.prices, strict=True)]
    for i in sorted(range(len(short)), key=lambda i: -short[i]):

        def more(count: int, i: int = i, before: Shares = bought) -> Shares:
            total = before[i] + count * ledger.lots[i]
            return ledger.worth_it((*before[:i], total, *before[i + 1 :]))

        def paid_for(count: int, more: Callable[[int], Shares] = more) -> bool:
            return booked(more(count)).cash >= 0

        missing = int((whole[i] - bought[i]) / ledger.lots[i])
        bought = more(_most(missing, paid_for))
    return bought


def _most(limit: int, fine: Callable[[int], bool]) -> int:
    """The largest count up to the limit that is fine, by bisection; 0 where none is."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fine(middle) else (low, middle - 1)
    return low
