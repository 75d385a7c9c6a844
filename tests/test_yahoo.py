"""Yahoo as a source, with a module in yfinance's place: nothing goes out."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finflow_sb3.errors import DataError, MissingExtraError
from finflow_sb3.market.sources import load_prices


def yahoo_frame(**closes: list[float]) -> pd.DataFrame:
    """The shape of yfinance's answer: two levels of columns, days in the index."""
    rows = len(next(iter(closes.values())))
    index = pd.DatetimeIndex(pd.bdate_range("2020-01-02", periods=rows), name="Date")
    columns = {}
    for symbol, close in closes.items():
        columns["Adj Close", symbol] = [c / 2 for c in close]
        columns["Close", symbol] = close
        columns["Volume", symbol] = [0.0 if math.isnan(c) else 100.0 for c in close]
    return pd.DataFrame(columns, index=index)


@pytest.fixture
def yahoo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a module in yfinance's place that answers with a given frame or error."""
    calls: list[dict[str, Any]] = []

    def install(answer: pd.DataFrame | Exception | None) -> list[dict[str, Any]]:
        def download(tickers: list[str], **options: Any) -> pd.DataFrame | None:
            calls.append({"tickers": tickers, **options})
            if isinstance(answer, Exception):
                raise answer
            return answer

        module = types.ModuleType("yfinance")
        module.download = download  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "yfinance", module)
        return calls

    return install


def test_yahoo(yahoo: Any) -> None:
    calls = yahoo(yahoo_frame(AAPL=[10.0, 12.0, 14.0], MSFT=[20.0, math.nan, 22.0]))
    table = load_prices("yahoo:msft, AAPL")
    assert calls[0]["tickers"] == ["MSFT", "AAPL"]
    assert calls[0]["auto_adjust"] is False
    assert table.assets == ("MSFT", "AAPL")
    np.testing.assert_array_equal(table.close, [[10, 5], [10, 6], [11, 7]])
    assert table.filled.tolist() == [1, 0]
    assert table.raw_close is not None
    np.testing.assert_array_equal(table.raw_close, [[20, 10], [np.nan, 12], [22, 14]])
    assert table.source == "yahoo:msft, AAPL"


def test_yahoo_starts_with_the_youngest_and_says_so(
    yahoo: Any, caplog: pytest.LogCaptureFixture
) -> None:
    yahoo(yahoo_frame(OLD=[1.0, 2.0, 3.0, 4.0], NEW=[math.nan, 5.0, 6.0, 7.0]))
    table = load_prices("yahoo:OLD,NEW")
    assert str(table.dates[0]) == "2020-01-03"
    assert "1 rows before 2020-01-03 are left out, as NEW" in caplog.text


def test_yahoo_leaves_out_the_running_day(yahoo: Any) -> None:
    frame = yahoo_frame(A=[1.0, 2.0, 3.0], B=[1.0, 2.0, 3.0])
    today = pd.Timestamp.now("UTC").tz_localize(None).normalize()
    frame.index = pd.DatetimeIndex([today + pd.Timedelta(days=d) for d in (-2, -1, 0)])
    yahoo(frame)
    assert load_prices("yahoo:A,B").close[:, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "sent nothing"),
        (pd.DataFrame(), "sent nothing"),
        (ConnectionError("no route\nto host"), "download failed (no route to host)"),
        (yahoo_frame(A=[1.0, 2.0]), "no Adj Close of 'B'"),
        (yahoo_frame(A=[1.0, 2.0], B=[math.nan, math.nan]), "no Adj Close of 'B'"),
        (yahoo_frame(A=[1.0, 2.0, 3.0], B=[1.0, 2.0, math.nan]), "'B' ends inside"),
    ],
)
def test_yahoo_failures(yahoo: Any, answer: Any, said: str) -> None:
    yahoo(answer)
    with pytest.raises(DataError) as caught:
        load_prices("yahoo:A,B")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yahoo_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yfinance", None)
    with pytest.raises(MissingExtraError, match=r'pip install "finflow-sb3\[yahoo\]"'):
        load_prices("yahoo:AAPL,MSFT")
