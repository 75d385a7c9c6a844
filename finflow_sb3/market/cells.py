"""Parses the cells of a raw table: days and numbers, each error with its column and row."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.market.readers import MISSING, RawTable, split_day

__all__ = ["check_order", "parse_dates", "parse_numbers"]

Float = NDArray[np.float64]
Days = NDArray[np.datetime64]


def parse_dates(raw: RawTable) -> Days:
    """Days of the rows, shape [rows]. The local day counts where a time zone is given.

    Raises
    ------
    DataError
        At the first cell that is not a date, with its row.
    """
    import pandas as pd

    cells = raw.cells[raw.date_column]
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        cells = cells.dt.tz_localize(None)
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        days = cells.to_numpy().astype("datetime64[D]")
    else:
        # Long tables repeat few days often: each distinct text is parsed once.
        codes, texts = pd.factorize(cells.fillna("").astype(str))
        days = np.array([_day(text) for text in texts], dtype="datetime64[D]")[codes]
    bad = np.isnat(days)
    if bad.any():
        i = int(bad.argmax())
        text = "" if pd.isna(cells.iloc[i]) else str(cells.iloc[i])
        raise DataError(
            f"{raw.name}: column {raw.columns[raw.date_column]!r}, {raw.row(i)}: "
            f"{text!r} is not a date; write it as YYYY-MM-DD"
        )
    return np.asarray(days)


def _day(text: str) -> dt.date | None:
    parts = split_day(text)
    if parts is None:
        return None
    try:
        return dt.date(*parts)
    except ValueError:
        return None


def check_order(raw: RawTable, dates: Days) -> None:
    """Refuse days that stand twice or out of order, naming the rows.

    Raises
    ------
    DataError
        At the first such day.
    """
    order = np.argsort(dates, kind="stable")
    same = np.flatnonzero(np.diff(dates[order]).astype(np.int64) == 0)
    if same.size:
        first, second = int(order[same[0]]), int(order[same[0] + 1])
        raise DataError(
            f"{raw.name}: date {dates[second]} stands twice ({raw.row(first)} and "
            f"{raw.row(second)}); keep one row a day"
        )
    back = np.flatnonzero(np.diff(dates).astype(np.int64) < 0)
    if back.size:
        i = int(back[0]) + 1
        raise DataError(
            f"{raw.name}: date {dates[i]} ({raw.row(i)}) comes after {dates[i - 1]}; "
            "sort the rows by date"
        )


def parse_numbers(
    raw: RawTable,
    column: int,
    days: Days,
    kind: str,
    symbol: Callable[[int], str] | None = None,
) -> Float:
    """The column as float64, shape [rows], NaN where a cell is empty.

    Parameters
    ----------
    raw : cells as they were read
    column : position of the column
    days : shape [rows], for messages
    kind : ``volume`` and ``weight`` may be zero, ``cash_rate`` may be negative, any other is a
        price
    symbol : asset of a row, for messages in long form

    Raises
    ------
    DataError
        At the first cell that is text, infinite or out of range.
    """
    cells = raw.cells[column]
    values, text = _to_float(cells)
    otherwise = "" if kind == "weight" else ", or leave it empty if the day had no trade"

    def refuse(bad: NDArray[np.bool_], what: Callable[[int], str]) -> None:
        if bad.any():
            i = int(bad.argmax())
            of = "" if symbol is None else f" of {symbol(i)!r}"
            raise DataError(
                f"{raw.name}: column {raw.columns[column]!r}{of}, {raw.row(i)} ({days[i]}): "
                f"{what(i)}; correct the cell{otherwise}"
            )

    refuse(text, lambda i: f"{str(cells.iloc[i])!r} is not a number")
    refuse(np.isinf(values), lambda i: f"{values[i]} is not a finite number")
    if kind in ("volume", "weight"):
        refuse(values < 0, lambda i: f"{kind} {values[i]} is negative")
    elif kind != "cash_rate":
        refuse(values <= 0, lambda i: f"price {values[i]} is not positive")
    return values


def _to_float(cells: Any) -> tuple[Float, NDArray[np.bool_]]:
    """Numbers of a series, and where there is text instead of one."""
    import pandas as pd

    kind = cells.dtype
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_datetime64_any_dtype(kind):
        return np.full(len(cells), np.nan), cells.notna().to_numpy(dtype=bool)
    if pd.api.types.is_numeric_dtype(kind):
        values = np.asarray(cells.to_numpy(dtype=np.float64, na_value=np.nan))
        return values, np.zeros(len(cells), dtype=bool)
    numbers = pd.to_numeric(cells, errors="coerce")
    values = np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))
    empty = cells.fillna("").astype(str).str.strip().str.lower().isin(MISSING)
    return values, np.isnan(values) & ~empty.to_numpy(dtype=bool)
