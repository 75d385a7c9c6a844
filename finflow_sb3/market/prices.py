"""The table of prices that everything else is computed from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.market.listing import hold_flat, holes

__all__ = ["PriceTable"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class PriceTable:
    """Daily prices of a universe, complete and checked.

    Row t is what is known at the close of ``dates[t]``.

    Attributes
    ----------
    dates : ndarray of datetime64[D], shape [T], strictly increasing
    assets : tuple of n unique names
    close : ndarray of float64, shape [T, n], adjusted closes, all positive
    open, high, low, volume, raw_close : ndarray of float64, shape [T, n], or None
        ``raw_close`` is the unadjusted close, for share counts.
    cash_rate : ndarray of float64, shape [T], simple daily rate earned from t-1 to t
    filled : ndarray of int64, shape [n], closes that were forward-filled
    listed : ndarray of bool, shape [T, n], True from each asset's first to its last price, or
        None where all are listed on all days. Where an asset is not, its closes are held flat,
        whatever was given there, so that its returns are zero.
    source : where the table came from, for messages and reports
    survivorship : True where the universe is known to have been chosen afterwards
    """

    dates: NDArray[np.datetime64]
    assets: tuple[str, ...]
    close: Float
    open: Float | None = None
    high: Float | None = None
    low: Float | None = None
    volume: Float | None = None
    raw_close: Float | None = None
    cash_rate: Float = field(default_factory=lambda: np.zeros(0))
    filled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    source: str = "array"
    survivorship: bool = False
    listed: Bool | None = None

    def __post_init__(self) -> None:
        dates = np.asarray(self.dates, dtype="datetime64[D]")
        close = np.ascontiguousarray(self.close, dtype=np.float64)
        if close.ndim != 2 or close.shape != (len(dates), len(self.assets)):
            raise DataError(
                f"{self.source}: close has shape {close.shape}, expected "
                f"({len(dates)} dates, {len(self.assets)} assets)"
            )
        object.__setattr__(self, "dates", dates)
        object.__setattr__(self, "assets", tuple(str(a) for a in self.assets))
        object.__setattr__(self, "close", close)
        self._take_listing()
        if self.cash_rate.size == 0:
            object.__setattr__(self, "cash_rate", np.zeros(len(dates)))
        if self.filled.size == 0:
            object.__setattr__(self, "filled", np.zeros(len(self.assets), dtype=np.int64))
        self._check()

    def _take_listing(self) -> None:
        """Keep `listed` where it says something, and closes that do not depend on the rest."""
        if self.listed is None:
            return
        listed = np.ascontiguousarray(self.listed, dtype=np.bool_)
        if listed.shape != self.close.shape:
            raise DataError(
                f"{self.source}: listed has shape {listed.shape}, expected {self.close.shape}"
            )
        broken = holes(listed)
        if len(broken):
            raise DataError(
                f"{self.source}: {self.assets[broken[0]]!r} is listed on two stretches of days; "
                "fill what lies between, or make it two assets"
            )
        whole = bool(listed.all())
        object.__setattr__(self, "listed", None if whole else listed)
        if not whole:
            object.__setattr__(self, "close", hold_flat(self.close, listed))

    def _check(self) -> None:
        if len(set(self.assets)) != len(self.assets):
            twice = sorted({a for a in self.assets if self.assets.count(a) > 1})
            raise DataError(f"{self.source}: asset {twice[0]!r} stands twice; rename or remove one")
        steps = np.diff(self.dates).astype(np.int64)
        if np.any(steps <= 0):
            row = int(np.argmax(steps <= 0)) + 1
            what = "stands twice" if steps[row - 1] == 0 else "is out of order"
            raise DataError(
                f"{self.source}: date {self.dates[row]} (row {row + 1}) {what}; "
                "sort the rows by date and keep one of each"
            )
        bad = ~(np.isfinite(self.close) & (self.close > 0))
        if np.any(bad):
            row, column = (int(i) for i in np.argwhere(bad)[0])
            raise DataError(
                f"{self.source}: close of {self.assets[column]!r} on {self.dates[row]} "
                f"(row {row + 1}) is {self.close[row, column]}; prices must be positive numbers"
            )

    @property
    def n_assets(self) -> int:
        return len(self.assets)

    def __len__(self) -> int:
        return len(self.dates)

    def returns(self) -> Float:
        """Simple daily returns, shape [T, n]; row 0 is zero, row t is from t-1 to t."""
        out = np.zeros_like(self.close)
        out[1:] = self.close[1:] / self.close[:-1] - 1.0
        return out

    def earning(self) -> Bool:
        """Where a return from t-1 to t exists, shape [T, n]: listed on both days."""
        out = np.ones(self.close.shape, dtype=np.bool_) if self.listed is None else self.listed
        out = out.copy()
        out[1:] &= out[:-1]
        out[:1] = False
        return out

    def listed_close(self) -> Float:
        """Closes [T, n], NaN where an asset is not listed."""
        return self.close if self.listed is None else np.where(self.listed, self.close, np.nan)

    def listing(self) -> tuple[Bool, ...]:
        """`listed` as parts of a cache key: none where all assets are listed on all days."""
        return () if self.listed is None else (self.listed,)

    def select(self, assets: tuple[str, ...] | list[str]) -> PriceTable:
        """The same table with these assets, in this order.

        Raises
        ------
        DataError
            If an asset is not in the table.
        """
        unknown = [a for a in assets if a not in self.assets]
        if unknown:
            raise DataError(
                f"{self.source}: unknown asset {unknown[0]!r}; it has {', '.join(self.assets)}"
            )
        index = [self.assets.index(a) for a in assets]
        return self._replace(columns=index, assets=tuple(assets))

    def rows(self, start: int, stop: int) -> PriceTable:
        """The table's rows start (included) to stop (left out)."""
        return self._replace(rows=slice(start, stop))

    def _replace(
        self,
        rows: slice = slice(None),
        columns: list[int] | None = None,
        assets: tuple[str, ...] | None = None,
    ) -> PriceTable:
        chosen: Any = slice(None) if columns is None else columns

        def cut(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else np.ascontiguousarray(array[rows][:, chosen])

        close = cut(self.close)
        assert close is not None
        return PriceTable(
            dates=self.dates[rows],
            assets=self.assets if assets is None else assets,
            close=close,
            open=cut(self.open),
            high=cut(self.high),
            low=cut(self.low),
            volume=cut(self.volume),
            raw_close=cut(self.raw_close),
            cash_rate=self.cash_rate[rows],
            filled=self.filled[chosen],
            source=self.source,
            survivorship=self.survivorship,
            listed=cut(self.listed),
        )
