"""Months, years, phases of the market and stress windows, by hand and by pandas."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from curves import curve_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finflow_sb3.evaluation.metrics import sharpe
from finflow_sb3.evaluation.periods import by_month, by_year, phases, stress, turning_points

Float = NDArray[np.float64]


def noise(days: int = 700, seed: int = 0) -> Float:
    return np.random.default_rng(seed).normal(0.0004, 0.01, days)


def path(*levels: float) -> Float:
    """Daily returns that lead from 1 through these values."""
    values = np.array([1.0, *levels])
    return values[1:] / values[:-1] - 1.0


def test_months_and_years_are_pandas_own() -> None:
    ours, theirs = curve_of(noise()), curve_of(noise(seed=1), "equal_weight")
    frame = pd.DataFrame(
        {"policy": ours.returns, "equal_weight": theirs.returns}, index=pd.to_datetime(ours.dates)
    )
    grown = (1.0 + frame).groupby([frame.index.year, frame.index.month])
    months = by_month(ours, theirs)
    assert [(m.year, m.month) for m in months] == list(grown.groups)
    assert [m.days for m in months] == grown.size().tolist()
    expected = grown.prod() - 1.0
    assert [m.policy for m in months] == pytest.approx(expected["policy"].tolist())
    assert [m.equal_weight for m in months] == pytest.approx(expected["equal_weight"].tolist())
    years = by_year(ours, theirs)
    annual = (1.0 + frame).groupby(frame.index.year)
    assert [y.year for y in years] == list(annual.groups)
    assert [y.policy for y in years] == pytest.approx((annual.prod() - 1.0)["policy"].tolist())
    total = math.prod(1.0 + y.policy for y in years)
    assert total == pytest.approx(math.prod(1.0 + m.policy for m in months))
    assert total == pytest.approx(ours.value[-1])
    assert sum(y.days for y in years) == 700


@pytest.mark.parametrize(
    ("levels", "turns"),
    [
        ([1.1, 1.2, 1.0, 1.19], []),  # a fall of 17 %
        ([1.1, 1.2, 1.0, 0.95, 0.9, 1.0], [2]),  # a rise of 11 %
        ([0.9, 0.8, 0.75], [0]),  # from the start
        ([1.2, 0.9, 0.8, 1.0, 1.3], [1, 3]),
        ([1.2, 0.9, 1.2, 1.6, 1.2, 1.0], [1, 2, 4]),
        ([0.5, 1.0, 0.5, 1.0], [0, 1, 2, 3]),
    ],
)
def test_turning_points(levels: list[float], turns: list[int]) -> None:
    assert turning_points(np.array(levels)) == turns


def test_phases_by_hand() -> None:
    market = path(1.1, 1.2, 1.0, 0.9, 0.8, 1.0, 1.3, 1.25)
    ours, equal = curve_of(market / 2), curve_of(market, "equal_weight")
    found = phases(ours, equal, equal, cash_rate=0.001)
    assert [p.name for p in found.periods] == ["bull", "bear", "bull"]
    assert [p.days for p in found.periods] == [2, 3, 3]
    assert [p.whole for p in found.periods] == [False, True, False]
    bear = found.periods[1]
    assert bear.equal_weight.total_return == pytest.approx(0.8 / 1.2 - 1.0)
    assert bear.equal_weight.max_drawdown == pytest.approx(0.8 / 1.2 - 1.0)
    assert bear.policy.sharpe == pytest.approx(sharpe(ours.returns[2:5] - 0.001))
    assert (bear.first, bear.last) == (str(ours.dates[2]), str(ours.dates[4]))
    assert found.reference == "equal_weight" and "known only afterwards" in found.sentence


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400))
def test_phases_part_the_days_and_are_what_they_say(seed: int, days: int) -> None:
    returns = np.random.default_rng(seed).normal(0.0, 0.03, days)
    equal = curve_of(returns, "equal_weight")
    found = phases(curve_of(returns / 2), equal, equal).periods
    assert sum(p.days for p in found) == days
    edges = np.cumsum([p.days for p in found])[:-1]
    assert [p.first for p in found[1:]] == [str(equal.dates[i]) for i in edges]
    for period in found:
        if period.name == "bear":
            assert period.equal_weight.max_drawdown <= -0.2 + 1e-12
        elif period.whole:
            assert period.equal_weight.total_return >= 0.2 - 1e-12


def test_the_index_tells_phases_where_there_is_one() -> None:
    equal = curve_of(noise(300), "equal_weight")
    index = curve_of(path(*np.linspace(1.0, 0.7, 300)), "index")
    found = phases(equal, equal, index)
    assert (found.reference, found.periods[-1].name) == ("index", "bear")


WINDOWS = {
    "before": ["2008-09-01", "2009-03-31"],
    "cut": ["2014-11-03", "2015-01-09"],
    "inside": ["2015-02-02", "2015-02-14"],
    "weekend first": ["2015-02-07", "2015-02-13"],
    "to the last day": ["2015-03-02", "2015-03-24"],
    "beyond": ["2015-03-20", "2015-12-31"],
    "after": ["2020-02-20", "2020-03-23"],
}


def test_stress_windows() -> None:
    equal = curve_of(noise(59), "equal_weight")
    assert (str(equal.dates[0]), str(equal.dates[-1])) == ("2015-01-01", "2015-03-24")
    ours = curve_of(noise(59, 1))
    found = stress(ours, equal, WINDOWS)
    by_name = {p.name: p for p in found.periods}
    assert list(by_name) == ["cut", "inside", "weekend first", "to the last day", "beyond"]
    assert [p.whole for p in found.periods] == [False, True, True, True, False]
    inside = by_name["inside"]
    assert (inside.first, inside.last, inside.days) == ("2015-02-02", "2015-02-13", 10)
    days = (ours.dates >= np.datetime64("2015-02-02")) & (ours.dates <= np.datetime64("2015-02-14"))
    assert inside.policy.total_return == pytest.approx(np.prod(1.0 + ours.returns[days]) - 1.0)
    assert len(found.remarks) == 4
    assert found.remarks[0].startswith("Before (2008-09-01 to 2009-03-31) is left out")
    assert "is cut to the days" in found.remarks[1]
