"""Turns raw tables, wide or long, into checked arrays of dates × assets."""

from __future__ import annotations

import datetime
import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.market.cells import check_order, parse_dates, parse_numbers
from finflow_sb3.market.readers import RawTable, plain

__all__ = ["Panel", "chosen_assets", "to_panel"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Days = NDArray[np.datetime64]

FIELDS = {
    "open": "open",
    "high": "high",
    "low": "low",
    "volume": "volume",
    "close": "close",
    "adjclose": "adjusted",
    "adjustedclose": "adjusted",
    "rawclose": "raw_close",
    "cashrate": "cash_rate",
}
LISTED = 30
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Panel:
    """Checked cells in the shape of a price table; NaN where the source has nothing.

    Attributes
    ----------
    name : the source
    dates : datetime64[D], shape [T], strictly increasing
    assets : n unique names
    values : arrays [T, n] by field: close, and what else is present
    cash_rate : shape [T], or None
    filled : closes per asset that were forward-filled before
    survivorship : True where the universe is known to have been chosen afterwards
    """

    name: str
    dates: Days
    assets: tuple[str, ...]
    values: dict[str, Float]
    cash_rate: Float | None = None
    filled: dict[str, int] = field(default_factory=dict)
    survivorship: bool = False

    def up_to(self, day: datetime.date) -> Panel:
        """What was known at the close of this day."""
        stop = int(np.searchsorted(self.dates, np.datetime64(day), side="right"))
        rate = None if self.cash_rate is None else self.cash_rate[:stop]
        values = {name: table[:stop] for name, table in self.values.items()}
        return replace(self, dates=self.dates[:stop], values=values, cash_rate=rate)


def to_panel(raw: RawTable, assets: Sequence[str] | None = None) -> Panel:
    """Parse and check every cell that is asked for.

    Parameters
    ----------
    raw : cells as they were read
    assets : names to keep, in this order; all when None. Others' cells are not judged.

    Raises
    ------
    DataError
        At the first date or number that cannot be used, with its column, row and remedy.
    """
    return _wide(raw, assets) if raw.symbol_column is None else _long(raw, assets)


def _wide(raw: RawTable, assets: Sequence[str] | None) -> Panel:
    names = {c: i for i, c in enumerate(raw.columns) if i != raw.date_column}
    cash = next((c for c in names if plain(c) == "cashrate"), None)
    _refuse_one_asset(raw.name, [c for c in names if c != cash])
    dates = parse_dates(raw)
    check_order(raw, dates)
    chosen = chosen_assets(raw.name, [c for c in names if c != cash], assets)
    close = np.full((len(dates), len(chosen)), np.nan)
    for j, asset in enumerate(chosen):
        close[:, j] = parse_numbers(raw, names[asset], dates, "close")
    rate = None
    if cash is not None:
        rate = parse_numbers(raw, names[cash], dates, "cash_rate")
        _check_every_day(raw.name, dates, rate)
    return Panel(raw.name, dates, chosen, {"close": close}, rate, raw.filled, raw.survivorship)


def _refuse_one_asset(name: str, columns: list[str]) -> None:
    """A file of one asset's open, high, low and close must not pass for four assets."""
    fields = {FIELDS[plain(c)] for c in columns if plain(c) in FIELDS}
    if len(fields) > 1 and fields & {"close", "adjusted"}:
        raise DataError(
            f"{name}: columns {', '.join(columns[:6])} look like one asset's prices; "
            "add a symbol column (long form), or name each column after its asset"
        )


def _long(raw: RawTable, assets: Sequence[str] | None) -> Panel:
    fields = _long_fields(raw)
    codes, symbols = _symbols(raw)
    chosen = chosen_assets(raw.name, symbols, assets)
    place = {asset: j for j, asset in enumerate(chosen)}
    code = np.array([place.get(s, -1) for s in symbols], dtype=np.int64)[codes]
    raw = replace(raw, cells=raw.cells.loc[code >= 0])
    code = code[code >= 0]
    days = parse_dates(raw)
    dates, row = np.unique(days, return_inverse=True)
    _check_pairs(raw, days, row, code, chosen)
    values: dict[str, Float] = {}
    for name, column in fields.items():
        table = np.full((len(dates), len(chosen)), np.nan)
        table[row, code] = parse_numbers(raw, column, days, name, lambda i: chosen[code[i]])
        if name == "close" or not np.isnan(table).all():
            values[name] = table
    rates = values.pop("cash_rate", None)
    rate = None if rates is None else _one_rate(raw.name, dates, rates)
    return Panel(raw.name, dates, chosen, values, rate, raw.filled, raw.survivorship)


def _long_fields(raw: RawTable) -> dict[str, int]:
    """Column of each field. Beside an adjusted close, the plain close is the raw one."""
    found: dict[str, int] = {}
    unused = []
    for i, column in enumerate(raw.columns):
        if i in (raw.date_column, raw.symbol_column):
            continue
        name = FIELDS.get(plain(column))
        if name is None:
            unused.append(column)
        elif name in found:
            raise DataError(
                f"{raw.name}: columns {raw.columns[found[name]]!r} and {column!r} both name "
                f"{name}; keep one"
            )
        else:
            found[name] = i
    if "adjusted" in found:
        if "close" in found and "raw_close" in found:
            raise DataError(
                f"{raw.name}: close, adjusted close and raw close together are ambiguous; "
                "keep the adjusted and the raw one"
            )
        if "close" in found:
            found["raw_close"] = found.pop("close")
        found["close"] = found.pop("adjusted")
    if "close" not in found:
        raise DataError(
            f"{raw.name}: long form without a close column (it has {', '.join(raw.columns)}); "
            "name one close or adj_close"
        )
    if unused:
        logger.warning("%s: columns not used: %s", raw.name, ", ".join(unused))
    return found


def _symbols(raw: RawTable) -> tuple[Int, list[str]]:
    """Code of each row, and the distinct symbols in order of appearance."""
    import pandas as pd

    assert raw.symbol_column is not None
    text = raw.cells[raw.symbol_column].astype(object).fillna("").astype(str).str.strip()
    codes, symbols = pd.factorize(text)
    if "" in symbols:
        at = raw.row(int((text == "").to_numpy().argmax()))
        column = raw.columns[raw.symbol_column]
        raise DataError(f"{raw.name}: column {column!r}, {at}: no symbol; name it or cut the row")
    return np.asarray(codes, dtype=np.int64), [str(s) for s in symbols]


def chosen_assets(
    name: str, available: Sequence[str], wanted: Sequence[str] | None
) -> tuple[str, ...]:
    """The wanted assets in the order asked for, or all.

    Raises
    ------
    DataError
        If one is unknown (with the nearest name) or asked for twice, or there are fewer than 2.
    """
    chosen = tuple(available if wanted is None else wanted)
    for asset in chosen:
        if asset not in available:
            near = difflib.get_close_matches(asset, available, 1, 0.6)
            hint = f"did you mean {near[0]!r}? " if near else ""
            more = f" and {len(available) - LISTED} more" if len(available) > LISTED else ""
            raise DataError(
                f"{name}: unknown asset {asset!r}; {hint}"
                f"it has {', '.join(available[:LISTED])}{more}"
            )
    if len(set(chosen)) != len(chosen):
        twice = next(a for i, a in enumerate(chosen) if a in chosen[:i])
        raise DataError(f"{name}: asset {twice!r} is asked for twice; name each asset once")
    if len(chosen) < 2:
        raise DataError(
            f"{name}: an allocation needs at least 2 assets, this has {len(chosen)}; add some"
        )
    return chosen


def _check_pairs(raw: RawTable, days: Days, row: Int, code: Int, assets: tuple[str, ...]) -> None:
    """Each (date, symbol) once, and the dates of each symbol in order."""
    by_symbol = np.lexsort((np.arange(len(row)), row, code))
    r, c = row[by_symbol], code[by_symbol]
    same = np.flatnonzero((np.diff(r) == 0) & (np.diff(c) == 0))
    if same.size:
        first, second = int(by_symbol[same[0]]), int(by_symbol[same[0] + 1])
        raise DataError(
            f"{raw.name}: {assets[code[second]]!r} on {days[second]} stands twice "
            f"({raw.row(first)} and {raw.row(second)}); keep one row"
        )
    in_file = np.argsort(code, kind="stable")
    back = np.flatnonzero((np.diff(row[in_file]) < 0) & (np.diff(code[in_file]) == 0))
    if back.size:
        before, after = int(in_file[back[0]]), int(in_file[back[0] + 1])
        raise DataError(
            f"{raw.name}: {assets[code[after]]!r} on {days[after]} ({raw.row(after)}) comes after "
            f"{days[before]}; sort the rows by date"
        )


def _one_rate(name: str, dates: Days, rates: Float) -> Float:
    """The cash rate of each day, shape [T], which the symbols of a day must agree on."""
    low = np.fmin.reduce(rates, axis=1)
    high = np.fmax.reduce(rates, axis=1)
    _check_every_day(name, dates, low)
    if np.any(low != high):
        day = dates[int(np.argmax(low != high))]
        raise DataError(f"{name}: cash_rate differs between symbols on {day}; give one rate a day")
    return np.asarray(low, dtype=np.float64)


def _check_every_day(name: str, dates: Days, rate: Float) -> None:
    if np.isnan(rate).any():
        day = dates[int(np.isnan(rate).argmax())]
        raise DataError(f"{name}: no cash_rate on {day}; give one for every day, or none at all")
