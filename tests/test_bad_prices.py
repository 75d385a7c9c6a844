"""Prices that are refused, in which words, and the short gaps that are filled instead."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finflow_sb3.errors import ConfigError, FinflowError
from finflow_sb3.market.sources import load_prices

WIDE = "date,AAA,BBB\n2020-01-02,10,100.5\n2020-01-03,11,\n2020-01-06,12.25,101\n"
LONG = "date,symbol,close\n" + "".join(
    f"2020-01-0{day},{asset},1\n" for day in (2, 3) for asset in ("AAA", "BBB")
)


def write(folder: Path, text: str, name: str = "prices.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def fails(source: Any, **arguments: Any) -> str:
    with pytest.raises(FinflowError) as caught:
        load_prices(source, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


WIDE_FAULTS = {
    "text": ("date,A,B\n2020-01-02,1,2\n2020-01-03,1,abc\n", ["'B'", "line 3", "'abc'"]),
    "thousands": ('date,A,B\n2020-01-02,"1,200",2\n', ["'A'", "line 2", "'1,200'"]),
    "zero": ("date,A,B\n2020-01-02,1,2\n2020-01-03,0,2\n", ["'A'", "line 3", "0.0", "positive"]),
    "negative": ("date,A,B\n2020-01-02,1,-2.5\n", ["'B'", "line 2", "-2.5"]),
    "infinite": ("date,A,B\n2020-01-02,1,inf\n", ["'B'", "line 2", "finite"]),
    "boolean": ("date,A,B\n2020-01-02,1,True\n2020-01-03,1,True\n", ["'B'", "'True'"]),
    "after a blank line": ("date,A,B\n2020-01-02,1,2\n\n2020-01-03,0,2\n", ["line 4"]),
    "twice": (
        "date,A,B\n2020-01-02,1,2\n2020-01-03,1,2\n2020-01-02,1,2\n",
        ["2020-01-02", "line 2", "line 4", "keep one"],
    ),
    "unsorted": (
        "date,A,B\n2020-01-03,1,2\n2020-01-02,1,2\n",
        ["2020-01-02", "line 3", "2020-01-03", "sort"],
    ),
    "bad date": ("date,A,B\n2020-01-02,1,2\n03/01/2020,1,2\n", ["line 3", "'03/01/2020'"]),
    "no such day": ("date,A,B\n2020-02-30,1,2\n", ["line 2", "'2020-02-30'", "YYYY-MM-DD"]),
    "no date": ("date,A,B\n2020-01-02,1,2\n,1,2\n", ["line 3", "''", "not a date"]),
    "no date column": ("A,B,C\n1,2,3\n4,5,6\n", ["no date column", "'A'"]),
    "no header": ("2020-01-02,1,2\n2020-01-03,1,2\n", ["line 1", "header"]),
    "blank header": ("\ndate,A,B\n2020-01-02,1,2\n", ["line 1"]),
    "duplicated column": ("date,A,B,A\n2020-01-02,1,2,3\n", ["'A'", "columns 2 and 4"]),
    "unnamed column": ("date,A,,B\n2020-01-02,1,2,3\n", ["column 3", "no name"]),
    "two date columns": ("date,time,A,B\n2020-01-02,1,2,3\n", ["'date'", "'time'"]),
    "semicolons": ("date;A;B\n2020-01-02;1;2\n", ["line 1", "commas"]),
    "long row": ("date,A,B\n2020-01-02,1,2\n2020-01-03,1,2,3\n", ["line 3", "more cells"]),
    "much too long row": ("date,A,B\n2020-01-02,1,2\n2020-01-03,1,2,3,4\n", ["line 3"]),
    "one asset": ("date,A\n2020-01-02,1\n2020-01-03,1\n", ["at least 2", "has 1"]),
    "one row": ("date,A,B\n2020-01-02,1,2\n", ["at least 2 days"]),
    "header only": ("date,A,B\n", ["no rows"]),
    "one asset's file": (
        "Date,Open,High,Low,Close,Volume\n2020-01-02,1,2,1,2,3\n",
        ["one asset", "symbol column"],
    ),
    "no prices": ("date,A,B\n2020-01-02,1,\n2020-01-03,1,\n", ["'B'", "no prices at all"]),
    "late start": (
        "date,A,B\n2020-01-02,1,\n2020-01-03,1,2\n2020-01-06,1,2\n",
        ["'B'", "starts inside", "2020-01-03 to 2020-01-06", "cut the dates"],
    ),
    "early end": (
        "date,A,B\n2020-01-02,1,2\n2020-01-03,1,2\n2020-01-06,,2\n",
        ["'A'", "ends inside", "2020-01-02 to 2020-01-03", "cut the dates"],
    ),
    "truncated row": (
        "date,A,B\n2020-01-02,1,2\n2020-01-03,1,2\n2020-01-06,1",
        ["'B'", "ends inside", "2020-01-03"],
    ),
    "nothing in common": (
        "date,A,B\n2020-01-02,1,\n2020-01-03,,2\n",
        ["'A'", "no dates are common", "1 more"],
    ),
}
LONG_FAULTS = {
    "twice": (
        "date,symbol,close\n2020-01-02,A,1\n2020-01-02,B,1\n2020-01-02,A,1\n",
        ["'A'", "2020-01-02", "line 2", "line 4"],
    ),
    "unsorted": (
        "date,symbol,close\n2020-01-03,A,1\n2020-01-03,B,1\n2020-01-02,A,1\n2020-01-02,B,1\n",
        ["'A'", "line 4", "2020-01-02", "sort"],
    ),
    "text": (
        "date,symbol,close\n2020-01-02,A,1\n2020-01-02,B,oops\n",
        ["'close' of 'B'", "line 3", "2020-01-02", "'oops'"],
    ),
    "zero raw price": (
        "date,symbol,close,raw_close\n2020-01-02,A,1,1\n2020-01-02,B,1,0\n",
        ["'raw_close' of 'B'", "line 3"],
    ),
    "negative volume": (
        "date,symbol,close,volume\n2020-01-02,A,1,-1\n2020-01-02,B,1,0\n",
        ["'volume' of 'A'", "line 2", "negative"],
    ),
    "no symbol": ("date,symbol,close\n2020-01-02,A,1\n2020-01-02,,1\n", ["'symbol'", "line 3"]),
    "no close": ("date,symbol,open\n2020-01-02,A,1\n", ["close column"]),
    "two closes": (
        "date,symbol,adj close,adj_close\n2020-01-02,A,1,1\n",
        ["'adj close'", "'adj_close'", "keep one"],
    ),
    "three closes": (
        "date,symbol,close,adj_close,raw_close\n2020-01-02,A,1,1,1\n",
        ["ambiguous"],
    ),
    "two symbols": ("date,symbol,Ticker,close\n2020-01-02,A,A,1\n", ["'symbol'", "'Ticker'"]),
    "cash differs": (
        "date,symbol,close,cash_rate\n2020-01-02,A,1,0\n2020-01-02,B,1,0.001\n",
        ["cash_rate", "2020-01-02", "differs"],
    ),
    "cash missing": (
        "date,symbol,close,cash_rate\n2020-01-02,A,1,0\n2020-01-02,B,1,0\n"
        "2020-01-03,A,1,\n2020-01-03,B,1,\n",
        ["no cash_rate on 2020-01-03"],
    ),
}
FAULTS = [
    pytest.param(text, said, id=f"{form} {name}")
    for form, faults in (("wide", WIDE_FAULTS), ("long", LONG_FAULTS))
    for name, (text, said) in faults.items()
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_refused_files(tmp_path: Path, text: str, said: list[str]) -> None:
    path = write(tmp_path, text)
    message = fails(path)
    assert message.startswith(f"{path}: ")
    for words in said:
        assert words in message, message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.csv", None, "no such file"),
        ("empty.csv", b"", "empty"),
        ("damaged.csv.gz", gzip.compress(WIDE.encode(), mtime=0)[:40], "cannot be read"),
        ("text.csv.gz", WIDE.encode(), "cannot be read"),
        ("text.parquet", WIDE.encode(), "cannot be read"),
        ("latin.csv", "date,\xc9,B\n2020-01-02,1,2\n".encode("latin-1"), "UTF-8"),
        ("prices.xlsx", b"PK", ".csv, .csv.gz, .parquet"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    message = fails(path)
    assert message.startswith(f"{path}: ")
    assert said in message


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "folder" in fails(tmp_path)


def test_other_objects_are_refused() -> None:
    assert fails(np.ones((3, 2))).startswith("ndarray is no source of prices")


def test_rows_of_a_frame_are_counted_from_one() -> None:
    frame = pd.DataFrame({"date": ["2020-01-02", "2020-01-03"], "A": [1.0, 2.0], "B": [1, "x"]})
    message = fails(frame)
    assert "'B', row 2" in message
    assert "'x'" in message


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame(), "no rows"),
        (pd.DataFrame({"A": [1.0], "B": [2.0]}), "no date column"),
        (pd.DataFrame([["2020-01-02", 1, 2]], columns=["date", "A", "A"]), "'A' stands twice"),
        (
            pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("Close", "A")] * 2)),
            "2 levels",
        ),
    ],
)
def test_refused_frames(frame: pd.DataFrame, said: str) -> None:
    assert said in fails(frame)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("us2O", "did you mean 'us20'"),
        ("US20", "did you mean 'us20'"),
        ("yaho:AAPL,MSFT", "did you mean 'yahoo'"),
        ("zzz", "us20, a .csv, .csv.gz, .parquet file, or yahoo:"),
        ("zzz.csv", "no such file"),
        ("folder/zzz", "no such file"),
        ("yahoo:", "name each symbol once"),
        ("yahoo:AAPL,AAPL", "name each symbol once"),
        ("yahoo:AAPL", "at least 2"),
    ],
)
def test_unknown_sources(source: str, said: str) -> None:
    assert said in fails(source)


@pytest.mark.parametrize(
    ("assets", "said"),
    [
        (["AAA", "BBC"], "unknown asset 'BBC'; did you mean 'BBB'? it has AAA, BBB"),
        (["AAA", "AAA"], "'AAA' is asked for twice"),
        (["AAA"], "at least 2"),
    ],
)
@pytest.mark.parametrize("text", [WIDE, LONG])
def test_unknown_assets(tmp_path: Path, text: str, assets: list[str], said: str) -> None:
    path = write(tmp_path, text)
    assert said in fails(path, assets=assets)
    assert said in fails(load_prices(path), assets=assets)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ([0.0, 0.0], "shape (2,)"),
        (0.03, "0.03 a year is 0.03 / 252 a day"),
        (float("nan"), "no daily rate"),
    ],
)
def test_refused_cash_rates(tmp_path: Path, rate: Any, said: str) -> None:
    assert said in fails(write(tmp_path, WIDE), cash_rate=rate)


def test_max_gap_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_gap: -1"):
        load_prices(write(tmp_path, WIDE), max_gap=-1)


# Gaps


def gappy(length: int) -> str:
    """B has no price on `length` rows from 2020-01-03 on."""
    rows = ["date,A,B", "2020-01-02,1,7"]
    rows += [f"2020-01-{day:02d},1," for day in range(3, 3 + length)]
    return "\n".join([*rows, f"2020-01-{3 + length:02d},1,8"])


@pytest.mark.parametrize(("length", "max_gap"), [(1, 1), (5, 5), (3, 60)])
def test_short_gaps_take_the_last_close(tmp_path: Path, length: int, max_gap: int) -> None:
    table = load_prices(write(tmp_path, gappy(length)), max_gap=max_gap)
    assert table.close[:, 1].tolist() == [7.0] * (1 + length) + [8.0]
    assert table.filled.tolist() == [0, length]


@pytest.mark.parametrize(("length", "max_gap"), [(1, 0), (6, 5), (9, 2)])
def test_long_gaps_are_refused(tmp_path: Path, length: int, max_gap: int) -> None:
    message = fails(write(tmp_path, gappy(length)), max_gap=max_gap)
    last = f"2020-01-{2 + length:02d}"
    assert f"'B' has no price on {length} rows in a row, 2020-01-03 to {last}" in message
    assert f"max_gap is {max_gap}" in message


def test_a_row_without_prices_is_a_gap(tmp_path: Path) -> None:
    text = "date,A,B\n2020-01-02,1,2\n2020-01-03,,\n2020-01-06,3,4\n"
    table = load_prices(write(tmp_path, text))
    np.testing.assert_array_equal(table.close, [[1, 2], [1, 2], [3, 4]])
    assert table.filled.tolist() == [1, 1]


@given(st.data())
def test_filling_looks_only_back(data: st.DataObject) -> None:
    """Row t is the same whatever comes after it, and equals a plain loop over the column."""
    rows = data.draw(st.integers(3, 12))
    cells = data.draw(st.lists(st.none() | st.integers(1, 9), min_size=rows - 2, max_size=rows - 2))
    column = [1, *cells, 5]
    days = pd.bdate_range("2020-01-01", periods=rows)
    frame = pd.DataFrame({"A": 1.0, "B": pd.array(column, dtype="Float64")}, index=days)
    table = load_prices(frame, max_gap=60)
    expected: list[float] = []
    for cell in column:
        expected.append(expected[-1] if cell is None else float(cell))
    assert table.close[:, 1].tolist() == expected
    assert table.filled.tolist() == [0, column.count(None)]
    cut = data.draw(st.integers(2, rows))
    if column[cut - 1] is not None:
        early = load_prices(frame.iloc[:cut], max_gap=60)
        np.testing.assert_array_equal(early.close, table.close[:cut])
