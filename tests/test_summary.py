"""The summary of a universe, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.market.summary import summarise


def test_summary_by_hand() -> None:
    table = PriceTable(
        dates=np.array(["2020-01-02", "2020-01-03", "2020-01-07"], dtype="datetime64[D]"),
        assets=("A", "B"),
        close=np.array([[100.0, 10.0], [110.0, 8.0], [99.0, 12.0]]),
        filled=np.array([1, 0]),
        source="here",
    )
    summary = summarise(table)
    assert (summary.first_date, summary.last_date, summary.rows) == ("2020-01-02", "2020-01-07", 3)
    assert summary.longest_gap_days == 4
    assert (summary.longest_gap_from, summary.longest_gap_to) == ("2020-01-03", "2020-01-07")
    # A: +10 %, -10 %; two returns ±0.1 around a mean of 0 have a sample deviation of 0.1·√2.
    assert summary.annual_return == pytest.approx((0.99**126 - 1, 1.2**126 - 1), rel=1e-12)
    assert summary.annual_volatility[0] == pytest.approx(0.1 * math.sqrt(2 * 252), rel=1e-12)
    assert summary.max_drawdown == pytest.approx((0.1, 0.2), rel=1e-12)
    assert summary.filled == (1, 0)
    assert summary.survivorship_note is None
    plain = summary.as_dict()
    assert plain["assets"] == ["A", "B"]
    assert plain["filled"] == {"A": 1, "B": 0}
    assert plain["max_drawdown"]["B"] == pytest.approx(0.2)


def test_summary_of_two_rows_has_no_volatility() -> None:
    days = np.array(["2020-01-02", "2020-01-03"], dtype="datetime64[D]")
    table = PriceTable(dates=days, assets=("A", "B"), close=np.array([[1.0, 1.0], [1.0, 1e9]]))
    summary = summarise(table)
    assert all(math.isnan(v) for v in summary.annual_volatility)
    assert summary.as_dict()["annual_volatility"] == {"A": None, "B": None}
    assert summary.as_dict()["annual_return"] == {"A": 0.0, "B": None}


def test_summary_warns_of_survivors() -> None:
    note = summarise(load_prices("us20", assets=["KO", "AAPL"])).survivorship_note
    assert note is not None
    assert "equal weight" in note
