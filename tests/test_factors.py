"""Factors: what a file is taken for, which days count, and loadings that are known."""

from __future__ import annotations

import math
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from curves import curve_of
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.factors import factor_model, load_factors

Float = NDArray[np.float64]


def draws(days: int, columns: int, seed: int = 0) -> Float:
    return np.random.default_rng(seed).normal(0.0002, 0.01, (days, columns))


def write(path: Path, values: Float, names: list[str], dates: NDArray[np.datetime64]) -> Path:
    frame = pd.DataFrame(values, columns=names)
    frame.insert(0, "date", dates)
    frame.to_csv(path, index=False)
    return path


def test_skfolios_factors_come_from_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    table = load_factors("skfolio")
    assert table.names == ("MTUM", "QUAL", "SIZE", "USMV", "VLUE")
    assert table.funds and table.market is None
    assert (str(table.dates[0]), str(table.dates[-1])) == ("2014-01-02", "2022-12-28")


def test_loadings_on_returns_are_found(tmp_path: Path) -> None:
    factors = draws(800, 3)
    rate, noise = 1e-4, np.random.default_rng(1).normal(0.0, 0.001, 800)
    ours = rate + factors @ [1.2, 0.5, -0.3] + 0.0001 + noise - noise.mean()
    curve = curve_of(ours)
    names = ["Mkt-RF", "SMB", "HML", "RF"]
    values = np.column_stack([factors, np.full(800, rate)])
    table = load_factors(write(tmp_path / "f.csv", values, names, curve.dates))
    assert not table.funds and table.names == ("Mkt-RF", "SMB", "HML") and table.market == 0
    found = factor_model(curve, curve_of(factors[:, 0]), table, rate)
    assert [each.name for each in found.loadings] == ["Mkt-RF", "SMB", "HML"]
    for each, truth in zip(found.loadings, (1.2, 0.5, -0.3), strict=True):
        assert each.estimate.value == pytest.approx(truth, abs=4 * each.estimate.error)
        assert each.estimate.error < 0.01
    assert found.alpha is not None
    assert found.alpha.value == pytest.approx(0.0252, abs=4 * found.alpha.error)
    assert (found.market, found.days, found.first) == ("Mkt-RF", 800, str(curve.dates[0]))
    assert found.r_squared > 0.98 and "explain" in found.sentence


def test_funds_enter_above_the_market(tmp_path: Path) -> None:
    """Prices of two funds; equal weight stands for the market, as the file has none."""
    equal, tilts, rate = draws(700, 1, 3)[:, 0] + 0.0003, draws(700, 2, 4) / 2, 5e-5
    ours = rate + 0.8 * (equal - rate) + tilts @ [0.4, -0.6]
    curve = curve_of(ours)
    funds = equal[:, None] + tilts
    prices = 50.0 * np.concatenate([np.ones((1, 2)), np.cumprod(1.0 + funds, axis=0)])
    days = np.concatenate([curve.decisions[:1], curve.dates])
    table = load_factors(write(tmp_path / "f.csv", prices, ["A", "B"], days))
    assert table.funds
    found = factor_model(curve, curve_of(equal, "equal_weight"), table, rate)
    assert [each.name for each in found.loadings] == [
        "market (equal weight)",
        "A above market",
        "B above market",
    ]
    values = [each.estimate.value for each in found.loadings]
    assert values == pytest.approx([0.8, 0.4, -0.6], abs=1e-6)
    assert found.sentence.endswith("exactly.")


def test_days_that_only_one_of_them_has_do_not_count(tmp_path: Path) -> None:
    """A fund without a price on a day has no return over it, nor over the next one."""
    curve = curve_of(draws(600, 1, 5)[:, 0])
    prices = 50.0 * np.cumprod(1.0 + draws(601, 1, 6), axis=0)
    days = np.concatenate([curve.decisions[:1], curve.dates])
    kept = np.delete(np.arange(601), [100, 400])
    table = load_factors(write(tmp_path / "f.csv", prices[kept], ["A"], days[kept]))
    found = factor_model(curve, curve_of(draws(600, 1, 7)[:, 0]), table)
    assert found.days == 600 - 4


@pytest.mark.parametrize(
    ("kept", "says"),
    [(slice(0, 251), "needs 252"), (slice(0, None, 5), "needs 252"), (slice(0, None, 2), "daily")],
    ids=["few", "weekly", "every other day"],
)
def test_too_little_is_a_sentence(tmp_path: Path, kept: slice, says: str) -> None:
    curve = curve_of(draws(1000, 1, 5)[:, 0])
    table = load_factors(
        write(tmp_path / "f.csv", draws(1000, 2, 6)[kept], ["A", "B"], curve.dates[kept])
    )
    found = factor_model(curve, curve_of(draws(1000, 1, 7)[:, 0]), table)
    assert found.alpha is None and found.loadings == () and math.isnan(found.r_squared)
    assert says in found.sentence


def test_no_common_days(tmp_path: Path) -> None:
    curve = curve_of(draws(300, 1)[:, 0], start="2001-01-01")
    found = factor_model(curve, curve, load_factors("skfolio"))
    assert (found.days, found.first, found.last) == (0, "", "")
    assert "shares 0 days" in found.sentence


def test_factors_that_are_the_same(tmp_path: Path) -> None:
    curve = curve_of(draws(400, 1)[:, 0])
    twice = np.tile(draws(400, 1, 2), (1, 2))
    table = load_factors(write(tmp_path / "f.csv", twice, ["A", "B"], curve.dates))
    found = factor_model(curve, curve_of(draws(400, 1, 3)[:, 0]), table)
    assert found.loadings == () and "cannot be told apart" in found.sentence


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date,SMB,HML\n2020-01-02,0.3,-1.5\n2020-01-03,0.1,0.2\n", "write returns as fractions"),
        ("date,SMB\n2020-01-02,0.01\n2020-01-03,\n", "'SMB', line 3 .2020-01-03.: is empty"),
        ("date,SMB\n2020-01-03,0.01\n2020-01-02,-0.01\n", "sort the rows"),
        ("date,SMB\n2020-01-02,up\n", "is not a number"),
        ("date,symbol,close\n2020-01-02,A,1.0\n", "long form"),
        ("date,market,mkt\n2020-01-02,0.01,-0.01\n", "both name the market"),
        ("date,RF\n2020-01-02,0.01\n", "no column of a factor"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "factors.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        load_factors(path)
    assert "\n" not in str(error.value)


def test_missing_file() -> None:
    with pytest.raises(DataError, match="no such file"):
        load_factors("nowhere/factors.csv")
