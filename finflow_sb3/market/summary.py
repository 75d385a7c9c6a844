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
    survivorship_note: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: per-asset tuples become mappings from asset, nan becomes None."""
        plain = asdict(self)
        plain["assets"] = list(self.assets)
        for name in ("filled", "annual_return", "annual_volatility", "max_drawdown"):
            values = [None if math.isnan(v) else v for v in getattr(self, name)]
            plain[name] = dict(zip(self.assets, values, strict=True))
        return plain


def summarise(prices: PriceTable) -> PriceSummary:
    """Summarise a price table of at least two rows. All figures are before costs."""
    gaps = np.diff(prices.dates).astype(np.int64)
    widest = int(gaps.argmax())
    returns = prices.close[1:] / prices.close[:-1] - 1.0
    drawdown = 1.0 - prices.close / np.maximum.accumulate(prices.close, axis=0)
    one_return = len(returns) == 1
    spread = np.full(prices.n_assets, np.nan) if one_return else returns.std(axis=0, ddof=1)
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
            _annualised(first, last, len(returns))
            for first, last in zip(prices.close[0], prices.close[-1], strict=True)
        ),
        annual_volatility=_floats(spread * np.sqrt(TRADING_DAYS)),
        max_drawdown=_floats(drawdown.max(axis=0)),
        survivorship_note=SURVIVORSHIP_NOTE if prices.survivorship else None,
    )


def _annualised(first: float, last: float, days: int) -> float:
    try:
        return math.expm1(math.log(last / first) * TRADING_DAYS / days)
    except OverflowError:
        return math.nan


def _floats(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
