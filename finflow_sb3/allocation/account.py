"""Holdings at the prices of the last day."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.allocation.holdings import Holdings, Number, money
from finflow_sb3.allocation.orders import cents
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.prices import PriceTable

__all__ = ["Account", "highest_value"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Account:
    """Holdings at the prices of the last day; all tuples are by asset."""

    assets: tuple[str, ...]
    shares: tuple[Decimal, ...]
    lots: tuple[Decimal, ...]
    prices: tuple[Decimal, ...]
    values: tuple[Decimal, ...]
    cash: Decimal

    @classmethod
    def of(cls, holdings: Holdings, prices: PriceTable, lot: Decimal) -> Account:
        shares = holdings.of(prices.assets)
        last = _quotes(prices, shares, holdings.source)
        values = tuple(cents(s * p) for s, p in zip(shares, last, strict=True))
        lots = holdings.lots_of(prices.assets, lot)
        account = cls(prices.assets, shares, lots, last, values, holdings.cash)
        if account.value <= 0:
            raise DataError(f"{holdings.source}: is worth nothing; give shares or cash")
        return account

    @property
    def value(self) -> Decimal:
        return sum(self.values, Decimal(0)) + self.cash

    @property
    def weights(self) -> Float:
        """Shape [n+1], cash last."""
        return np.array([float(each / self.value) for each in (*self.values, self.cash)])


def _quotes(prices: PriceTable, shares: tuple[Decimal, ...], source: str) -> tuple[Decimal, ...]:
    """What a share costs on the last day, as it was quoted.

    Raises
    ------
    DataError
        If an asset has no such price; one that is not listed any more only if it is held.
    """
    quoted = prices.close if prices.raw_close is None else prices.raw_close
    listed = np.ones(prices.n_assets, dtype=bool) if prices.listed is None else prices.listed[-1]
    out = []
    for i, asset in enumerate(prices.assets):
        if not listed[i]:
            if shares[i]:
                raise DataError(
                    f"{source}: {asset} is held and has no price on {prices.dates[-1]} in "
                    f"{prices.source}; add its price, or take its row out"
                )
            out.append(Decimal(repr(float(prices.close[-1, i]))))
            continue
        price = float(quoted[-1, i])
        if not (np.isfinite(price) and price > 0.0):
            raise DataError(
                f"{prices.source}: raw close of {asset} on {prices.dates[-1]} is missing; add it, "
                "or leave the column out where closes are as they were traded"
            )
        out.append(Decimal(repr(price)))
    return tuple(out)


def highest_value(peak: Number | None, value: Decimal) -> float:
    if peak is None:
        return float(value)
    highest = money(peak, "--peak")
    if highest < value:
        raise ConfigError(f"--peak: {highest:,} is less than the present value, {value:,}")
    return float(highest)
