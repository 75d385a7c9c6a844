"""Prices from every source, and the way back to a file."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finflow_sb3.errors import DataError
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import list_sources, load_prices, write_prices

WIDE = """date,AAA,BBB
2020-01-02,10,100.5
2020-01-03,11,
2020-01-06,12.25,101
"""
LONG = """Date,Ticker,Open,Close,Adj Close,Volume
2020-01-02,AAA,9,10,5,1000
2020-01-02,BBB,19,20,10,2000
2020-01-03,AAA,10,11,5.5,0
2020-01-03,BBB,20,21,10.5,
"""


def write(folder: Path, text: str, name: str = "prices.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def equal_tables(a: PriceTable, b: PriceTable, leave_out: tuple[str, ...] = ()) -> None:
    for item in fields(PriceTable):
        if item.name not in leave_out:
            x, y = getattr(a, item.name), getattr(b, item.name)
            assert (x is None) == (y is None), item.name
            if isinstance(x, np.ndarray):
                np.testing.assert_array_equal(x, y, err_msg=item.name)
            else:
                assert x == y, item.name


# What is read


def test_wide_csv_by_hand(tmp_path: Path) -> None:
    table = load_prices(write(tmp_path, WIDE))
    assert table.assets == ("AAA", "BBB")
    assert [str(d) for d in table.dates] == ["2020-01-02", "2020-01-03", "2020-01-06"]
    np.testing.assert_array_equal(table.close, [[10, 100.5], [11, 100.5], [12.25, 101]])
    assert table.filled.tolist() == [0, 1]
    assert table.source == str(tmp_path / "prices.csv")
    assert not table.survivorship
    assert not table.cash_rate.any()


def test_long_csv_by_hand(tmp_path: Path) -> None:
    table = load_prices(str(write(tmp_path, LONG)))
    assert table.assets == ("AAA", "BBB")
    np.testing.assert_array_equal(table.close, [[5, 10], [5.5, 10.5]])
    assert table.raw_close is not None
    np.testing.assert_array_equal(table.raw_close, [[10, 20], [11, 21]])
    assert table.open is not None
    np.testing.assert_array_equal(table.open, [[9, 19], [10, 20]])
    assert table.volume is not None
    np.testing.assert_array_equal(table.volume, [[1000, 2000], [0, np.nan]])
    assert table.high is None


@pytest.mark.parametrize(
    ("header", "close", "raw"),
    [
        ("DATE,Symbol,close", 2.0, None),
        ("day,ASSET,adj_close", 2.0, None),
        ("Trade Date,ticker,Adjusted Close", 2.0, None),
        ("timestamp,ticker,AdjClose,CLOSE", 2.0, 3.0),
        ("date,symbol,close,raw_close", 2.0, 3.0),
        ("date,symbol,Raw Close,adj close", 3.0, 2.0),
    ],
)
def test_names_of_long_columns(
    tmp_path: Path, header: str, close: float, raw: float | None
) -> None:
    cells = ",2,3" if header.count(",") == 3 else ",2"
    rows = [f"2020-01-0{day},{asset}{cells}" for day in (2, 3) for asset in "AB"]
    table = load_prices(write(tmp_path, "\n".join([header, *rows])))
    assert np.all(table.close == close)
    assert (table.raw_close is None) if raw is None else np.all(table.raw_close == raw)


@pytest.mark.parametrize(
    "dates",
    [
        ("2020-01-09", "2020-01-10"),
        ("2020/1/9", "2020/1/10"),
        ("20200109", "20200110"),
        # A Tokyo midnight is the day before in UTC: the local day counts.
        ("2020-01-09 00:00:00+09:00", "2020-01-10T00:00:00+09:00"),
    ],
)
def test_forms_of_dates(tmp_path: Path, dates: tuple[str, str]) -> None:
    text = f"date,A,B\n{dates[0]},1,2\n{dates[1]},1,2\n"
    table = load_prices(write(tmp_path, text))
    assert [str(d) for d in table.dates] == ["2020-01-09", "2020-01-10"]


@pytest.mark.parametrize("name", ["p.csv", "p.CSV", "p.csv.gz", "p.parquet"])
def test_kinds_of_files_agree(tmp_path: Path, name: str) -> None:
    wide = load_prices(write(tmp_path, WIDE, "reference.csv"))
    path = tmp_path / name
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(WIDE.encode()))
    elif name.endswith("parquet"):
        pd.read_csv(tmp_path / "reference.csv").to_parquet(path)
    else:
        write(tmp_path, WIDE, name)
    equal_tables(load_prices(path), wide, leave_out=("source",))


@pytest.mark.parametrize("tz", [None, "Asia/Tokyo"])
def test_data_frames(tz: str | None) -> None:
    index = pd.DatetimeIndex(["2020-01-02", "2020-01-03"], tz=tz)
    wide = pd.DataFrame({"A": [1.0, 2.0], "B": [3, 4]}, index=index)
    named = wide.rename_axis("Date")
    column = named.reset_index()
    filtered = pd.concat([column, column.tail(1)]).iloc[:2].set_axis([7, 9])
    long = column.melt("Date", var_name="symbol", value_name="close")
    tables = [load_prices(f) for f in (wide, named, column, filtered, long)]
    tables.append(load_prices(long.set_index(["Date", "symbol"])))
    for table in tables:
        np.testing.assert_array_equal(table.close, [[1, 3], [2, 4]])
        assert str(table.dates[0]) == "2020-01-02"


def test_symbols_stay_text(tmp_path: Path) -> None:
    rows = [f"2020-01-0{d},{s},1" for d in (2, 3) for s in ("NA", "005930", "TRUE")]
    table = load_prices(write(tmp_path, "\n".join(["date,symbol,close", *rows])))
    assert table.assets == ("NA", "005930", "TRUE")


def test_byte_order_mark_blank_lines_and_spaces(tmp_path: Path) -> None:
    text = "\ufeffdate, A, B\n2020-01-02, 1, 2\n\n2020-01-03, 3, NaN\n2020-01-06, 3, 5\n,,\n\n"
    table = load_prices(write(tmp_path, text))
    np.testing.assert_array_equal(table.close, [[1, 2], [3, 2], [3, 5]])


def test_numbers_are_read_exactly(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).uniform(1e-3, 1e3, (50, 2))
    days = pd.bdate_range("2020-01-01", periods=50).strftime("%Y-%m-%d")
    rows = [f"{d},{a!r},{b!r}" for d, (a, b) in zip(days, numbers.tolist(), strict=True)]
    table = load_prices(write(tmp_path, "\n".join(["date,A,B", *rows])))
    np.testing.assert_array_equal(table.close, numbers)


def test_embedded_market() -> None:
    table = load_prices("us20")
    assert table.close.shape == (8313, 20)
    assert (str(table.dates[0]), str(table.dates[-1])) == ("1990-01-02", "2022-12-28")
    assert table.close[0, :3].tolist() == [0.264, 4.125, 4.599]
    assert table.assets[-1] == "XOM"
    assert table.close[-1, -1] == 106.627
    assert table.survivorship
    assert table.filled.sum() == 0
    assert table.source == "us20"


def test_choice_and_order_of_assets(tmp_path: Path) -> None:
    # CCC is broken, and asked for by nobody.
    text = "date,AAA,BBB,CCC\n2020-01-02,1,2,x\n2020-01-03,1,2,0\n"
    table = load_prices(write(tmp_path, text), assets=["BBB", "AAA"])
    assert table.assets == ("BBB", "AAA")
    np.testing.assert_array_equal(table.close, [[2, 1], [2, 1]])
    again = load_prices(table, assets=("AAA", "BBB"))
    np.testing.assert_array_equal(again.close, [[1, 2], [1, 2]])


def test_choice_in_long_form(tmp_path: Path) -> None:
    text = "date,symbol,close\n" + "".join(
        f"2020-01-0{d},{s},{p}\n" for d in (2, 3) for s, p in (("A", 1), ("B", 2), ("C", 0))
    )
    table = load_prices(write(tmp_path, text), assets=["B", "A"])
    np.testing.assert_array_equal(table.close, [[2, 1], [2, 1]])


@pytest.mark.parametrize("rate", [0.0001, [0.0001] * 3, np.full(3, 0.0001)])
def test_cash_rate(tmp_path: Path, rate: Any) -> None:
    path = write(tmp_path, WIDE)
    np.testing.assert_array_equal(load_prices(path, cash_rate=rate).cash_rate, [0.0001] * 3)


def test_cash_rate_of_the_source(tmp_path: Path) -> None:
    text = "date,A,cash_rate,B\n2020-01-02,1,0.0001,2\n2020-01-03,1,-0.0002,2\n"
    table = load_prices(write(tmp_path, text))
    assert table.assets == ("A", "B")
    assert table.cash_rate.tolist() == [0.0001, -0.0002]
    assert load_prices(table, cash_rate=0.0).cash_rate.tolist() == [0.0, 0.0]


def test_unused_columns_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "date,symbol,close,Sector\n" + "".join(
        f"2020-01-0{d},{s},1,tech\n" for d in (2, 3) for s in "AB"
    )
    load_prices(write(tmp_path, text))
    assert "columns not used: Sector" in caplog.text


# The way back


def full_table() -> PriceTable:
    rng = np.random.default_rng(1)
    shape = (6, 3)
    volume = rng.integers(0, 1000, shape).astype(float)
    volume[2, 1] = np.nan
    return PriceTable(
        dates=np.arange("2020-01-06", "2020-01-12", dtype="datetime64[D]"),
        assets=("ZZZ", "NA", "005930"),
        close=rng.uniform(1, 100, shape),
        open=rng.uniform(1, 100, shape),
        high=rng.uniform(1, 100, shape),
        low=rng.uniform(1, 100, shape),
        volume=volume,
        raw_close=rng.uniform(1, 100, shape),
        cash_rate=rng.uniform(-1e-4, 1e-4, 6),
        filled=np.array([0, 2, 1]),
        survivorship=True,
    )


@pytest.mark.parametrize("case", ["full", "closes only", "us20"])
def test_round_trip(tmp_path: Path, case: str) -> None:
    if case == "full":
        table = full_table()
    elif case == "closes only":
        table = load_prices(write(tmp_path, WIDE))
    else:
        table = load_prices("us20").rows(0, 300)
    path = write_prices(table, tmp_path / "new" / "p.parquet")
    back = load_prices(path)
    equal_tables(back, table, leave_out=("source",))
    assert back.source == str(path)
    assert os.listdir(path.parent) == ["p.parquet"]


def test_counts_of_filled_closes_follow_their_assets(tmp_path: Path) -> None:
    path = write_prices(full_table(), tmp_path / "p.parquet")
    assert load_prices(path, assets=["005930", "NA"]).filled.tolist() == [1, 2]


def test_written_form_is_plain(tmp_path: Path) -> None:
    frame = pd.read_parquet(
        write_prices(load_prices(write(tmp_path, WIDE)), tmp_path / "p.parquet")
    )
    assert list(frame.columns) == ["date", "symbol", "close"]
    assert frame["symbol"].tolist() == ["AAA", "BBB"] * 3


@pytest.mark.parametrize(
    "step", ["pandas.DataFrame.to_parquet", "os.fsync", "os.replace"], ids=["write", "sync", "name"]
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    table = load_prices(write(tmp_path, WIDE))
    path = write_prices(table, tmp_path / "out" / "p.parquet")
    before = path.read_bytes()

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        write_prices(table, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["p.parquet"]


def test_only_parquet_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.parquet"):
        write_prices(load_prices(write(tmp_path, WIDE)), tmp_path / "p.csv")


# The list


def test_list_of_sources() -> None:
    names = [name for name, _ in list_sources()]
    assert names == ["us20", "PATH", "yahoo:SYMBOL,..."]
    assert all("\n" not in about for _, about in list_sources())


def test_importing_sources_loads_no_pandas() -> None:
    code = "import sys, finflow_sb3.market.sources; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
