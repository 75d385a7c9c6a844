"""What a user should know about a universe before trusting a result on it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finflow_sb3.market.prices import PriceTable

__all__ = ["SURVIVORSHIP_NOTE", "PriceSummary", "summarise"]

TRADING_DAYS = 252
SURVIVORSHIP_NOTE = (
    "These companies were chosen afterwards, among survivors: absolute returns flatter every "
    "strategy. Compare with equal weight of the same companies."
)


@dataclass(frozen=True)
class PriceSummary:
    """Facts about a price table; every tuple of numbers has one entry per asset, in order.

    Attributes
    ----------
    source : where the prices came from
    assets : n names
    first_date, last_date : ISO dates
    rows : trading days
    longest_gap_days : largest number of calendar days between two rows
    longest_gap_from, longest_gap_to : ISO dates of these rows
    filled : closes that were forward-filled
    annual_return : geometric, of the whole period, at 252 rows a year (0.1 is 10 %); nan where
        it is too large for a float, as an annualised day can be
    annual_volatility : sample standard deviation of simple daily returns times sqrt(252); nan
        for a single return
    max_drawdown : largest fall from an earlier peak, as a fraction from 0 to 1
    first_listed, last_listed : ISO dates of the first and the last price, which returns and
        risks are of; None where there is no price
    survivorship_note : what the choice of companies does to returns, or None
    """

    source: str
    assets: tuple[str, ...]
    first_date: str
    last_date: str
    rows: int
    longest_gap_days: int
    longest_gap_from: str
    longest_gap_to: str
    filled: tuple[int, ...]
    annual_return: tuple[float, ...]
    annual_volatility: tuple[float, ...]
    max_drawdown: tuple[float, ...]
    first_listed: tuple[str | None, ...]
    last_listed: tuple[str | None, ...]
    survivorship_note: str | None

    @property
    def complete(self) -> bool:
        """Whether all assets have prices from the first to the last day."""
        firsts, lasts = set(self.first_listed), set(self.last_listed)
        return firsts == {self.first_date} and lasts == {self.last_date}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: per-asset tuples become mappings from asset, nan becomes None."""
        plain = asdict(self)
        plain["assets"] = list(self.assets)
        for name in ("filled", "annual_return", "annual_volatility", "max_drawdown"):
            values = [None if math.isnan(v) else v for v in getattr(self, name)]
            plain[name] = dict(zip(self.assets, values, strict=True))
        for name in ("first_listed", "last_listed"):
            plain[name] = dict(zip(self.assets, getattr(self, name), strict=True))
        return plain


def summarise(prices: PriceTable) -> PriceSummary:
    """Summarise a price table of at least two rows. All figures are before costs."""
    gaps = np.diff(prices.dates).astype(np.int64)
    widest = int(gaps.argmax())
    returns, earning = prices.returns()[1:], prices.earning()[1:]
    drawdown = 1.0 - prices.close / np.maximum.accumulate(prices.close, axis=0)
    spread = [
        of_asset[there].std(ddof=1) if there.sum() > 1 else math.nan
        for of_asset, there in zip(returns.T, earning.T, strict=True)
    ]
    first, last = _listed_dates(prices)
    return PriceSummary(
        source=prices.source,
        assets=prices.assets,
        first_date=str(prices.dates[0]),
        last_date=str(prices.dates[-1]),
        rows=len(prices),
        longest_gap_days=int(gaps[widest]),
        longest_gap_from=str(prices.dates[widest]),
        longest_gap_to=str(prices.dates[widest + 1]),
        filled=tuple(int(c) for c in prices.filled),
        annual_return=tuple(
            _annualised(bought, sold, int(days))
            for bought, sold, days in zip(
                prices.close[0], prices.close[-1], earning.sum(axis=0), strict=True
            )
        ),
        annual_volatility=_floats(np.array(spread) * np.sqrt(TRADING_DAYS)),
        max_drawdown=_floats(drawdown.max(axis=0)),
        first_listed=first,
        last_listed=last,
        survivorship_note=SURVIVORSHIP_NOTE if prices.survivorship else None,
    )


def _listed_dates(prices: PriceTable) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
    """First and last day of every asset."""
    listed = prices.listed
    if listed is None:
        listed = np.ones(prices.close.shape, dtype=np.bool_)
    days = [prices.dates[column] for column in listed.T]
    return (
        tuple(str(of[0]) if len(of) else None for of in days),
        tuple(str(of[-1]) if len(of) else None for of in days),
    )


def _annualised(first: float, last: float, days: int) -> float:
    if days == 0:
        return math.nan
    try:
        return math.expm1(math.log(last / first) * TRADING_DAYS / days)
    except OverflowError:
        return math.nan


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
