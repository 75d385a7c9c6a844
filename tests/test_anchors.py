"""The five anchors, their causality and their disk cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkers import check_budget
from markets import random_prices, table_of

from finflow_sb3.config import ANCHORS, MarketSettings
from finflow_sb3.errors import DataError
from finflow_sb3.market import anchor_fits
from finflow_sb3.market import anchors as module
from finflow_sb3.market.anchors import fit_anchors, fit_window
from finflow_sb3.market.prices import PriceTable

SETTINGS = MarketSettings(anchor_refit=63)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the windows that were really fitted."""
    calls: list[int] = []

    def counted(close: Any, *rest: Any) -> Any:
        calls.append(len(close))
        return fit_window(close, *rest)

    monkeypatch.setattr(module, "fit_window", counted)
    return calls


def uncorrelated(deviations: list[float], n_rows: int = 512) -> np.ndarray:
    """Returns with exactly these deviations and no correlation (columns of a Hadamard matrix)."""
    base = np.array([[1.0]])
    while len(base) < n_rows:
        base = np.block([[base, base], [base, -base]])
    signs = base[:, 1 : len(deviations) + 1]
    signs = signs[np.random.default_rng(0).permutation(n_rows)]
    return np.asarray(signs * np.array(deviations))


def window_of(returns: np.ndarray) -> np.ndarray:
    return np.concatenate([np.full((1, returns.shape[1]), 100.0), 100 * np.cumprod(1 + returns, 0)])


# ------------------------------------------------------------------ each anchor


def test_minimum_variance_of_uncorrelated_assets() -> None:
    """w ∝ 1/σ²: for σ of 1 %, 2 %, 1 %, 2 %: 0.4, 0.1, 0.4, 0.1. Diversification: w ∝ 1/σ."""
    close = window_of(uncorrelated([0.01, 0.02, 0.01, 0.02]) + 0.0002)
    fitted = fit_window(close, 0.12, 0.9, 512)
    np.testing.assert_allclose(fitted[0, :4], [0.4, 0.1, 0.4, 0.1], atol=2e-4)
    np.testing.assert_allclose(fitted[1, :4], [1 / 3, 1 / 6, 1 / 3, 1 / 6], atol=1e-4)


def test_minimum_variance_of_correlated_assets() -> None:
    """Where no weight is at zero, Σ⁻¹1/(1'Σ⁻¹1) with the sample covariance."""
    rng = np.random.default_rng(1)
    common = rng.normal(0, 0.004, size=(756, 1))
    returns = common + rng.normal(0, 0.01, size=(756, 5)) * [1.0, 1.1, 1.2, 1.3, 1.4]
    closed = np.linalg.solve(np.cov(returns.T), np.ones(5))
    closed /= closed.sum()
    assert closed.min() > 0.0
    fitted = fit_window(window_of(returns), 0.12, 0.5, 756)
    np.testing.assert_allclose(fitted[0, :5], closed, atol=1e-4)


def test_momentum_holds_the_top_quarter() -> None:
    """Of 6 assets ⌈6/4⌉ = 2: the best from a year ago to a month ago; the last month counts not."""
    close = np.ones((300, 6))
    close[-22] = [1.1, 1.5, 0.9, 1.4, 1.2, 1.0]
    close[-1] = [9.0, 0.1, 9.0, 0.1, 9.0, 9.0]
    np.testing.assert_array_equal(anchor_fits.top_quarter(close), [0, 0.5, 0, 0.5, 0, 0])
    np.testing.assert_array_equal(anchor_fits.top_quarter(np.ones((253, 5))), [0.5, 0.5, 0, 0, 0])


@pytest.mark.parametrize("target", [0.02, 0.05])
def test_defensive_meets_its_volatility(target: float) -> None:
    """The last 63 days of the risky part have exactly the target volatility; the rest is cash."""
    returns = random_prices(5, 400, seed=2).returns()[1:]
    weights = fit_window(window_of(returns), target, 0.5, 399)[3, :6]
    realised = np.std(returns[-63:] @ weights[:5], ddof=1) * np.sqrt(252)
    assert realised == pytest.approx(target, rel=1e-9)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[5] > 0.0


def test_defensive_does_not_borrow() -> None:
    returns = random_prices(5, 400, seed=2).returns()[1:]
    assert fit_window(window_of(returns), 1.0, 0.5, 399)[3, 5] == 0.0


def test_growth_keeps_its_cap_and_beats_the_others() -> None:
    returns = random_prices(8, 757, seed=4).returns()[1:]
    fitted = fit_window(window_of(returns), 0.12, 0.2, 756)
    assert fitted[4, :8].max() <= 0.2 + 1e-6
    assert fitted[4, -1] == 0.0
    free = fit_window(window_of(returns), 0.12, 1.0, 756)[4, :8]
    in_sample = [w @ returns.mean(axis=0) / np.std(returns @ w) for w in (free, fitted[0, :8])]
    assert in_sample[0] > in_sample[1]


@pytest.mark.parametrize("spread", [0.0, 1e-5, 1e-4])
def test_growth_never_turns_the_order_of_means_round(spread: float) -> None:
    """Means that differ by less than their error: shrunk to one another, but not past."""
    from skfolio.moments import ShrunkMu

    drifts = 0.0005 + spread * np.arange(4)
    returns = uncorrelated([0.01, 0.02, 0.01, 0.02]) + drifts
    shrunk = anchor_fits._shrinkage().fit(returns).mu_
    assert np.all(np.diff(shrunk) >= -1e-15)
    assert np.ptp(shrunk) <= np.ptp(drifts) + 1e-15
    assert shrunk.mean() == pytest.approx(drifts.mean())
    if spread == 1e-5:
        assert ShrunkMu().fit(returns).beta_ > 1.0
    # Where the means are well apart, it is skfolio's own.
    clear = returns + 0.002 * np.arange(4)
    np.testing.assert_allclose(
        anchor_fits._shrinkage().fit(clear).mu_, ShrunkMu().fit(clear).mu_, atol=1e-15
    )


@pytest.mark.parametrize(
    "drifts",
    [
        # All fall: there is no positive ratio at all.
        [-0.002, -0.003, -0.002, -0.003],
        # One rises, but at most 30 % may be held of it: the best mixture still falls.
        [0.0008, -0.004, -0.004, -0.004],
    ],
)
def test_growth_falls_back_where_nothing_can_be_earned(drifts: list[float]) -> None:
    close = window_of(uncorrelated([0.01, 0.02, 0.01, 0.02]) + np.array(drifts))
    fitted = fit_window(close, 0.12, 0.3, 512)
    np.testing.assert_array_equal(fitted[:, -1], 1.0)
    np.testing.assert_array_equal(fitted[4, :5], fitted[0, :5])


# ------------------------------------------------------------------ over time


@pytest.mark.parametrize("n_assets", [2, 5, 9])
def test_weights_are_budgets(n_assets: int) -> None:
    fitted = fit_anchors(random_prices(n_assets, 600), SETTINGS)
    assert fitted.names == ANCHORS
    check_budget(fitted.weights)
    np.testing.assert_array_equal(fitted.refits, np.arange(252, 600, 63))
    assert fitted.first_row == 252
    np.testing.assert_array_equal(fitted.index[[251, 252, 314, 315]], [-1, 0, 0, 1])
    np.testing.assert_array_equal(fitted.at(314), fitted.weights[0])


@pytest.mark.parametrize("row", [252, 314, 315, 316, 440])
def test_the_future_changes_no_anchor(row: int) -> None:
    """For days on, before and after refits (252, 315, 378, ...)."""
    prices = random_prices(5, 600, seed=7)
    close = prices.close.copy()
    close[row + 1 :] *= np.random.default_rng(row).uniform(0.5, 2.0, close[row + 1 :].shape)
    other = fit_anchors(PriceTable(prices.dates, prices.assets, close), SETTINGS)
    mine = fit_anchors(prices, SETTINGS)
    before = np.arange(252, row + 1)
    np.testing.assert_array_equal(other.at(before), mine.at(before))
    assert np.any(other.weights[-1] != mine.weights[-1])


def test_permuting_assets_permutes_anchors() -> None:
    """Up to the solvers' tolerance; HRP, whose tree breaks no ties here, exactly."""
    prices = random_prices(5, 330, seed=8)
    order = [3, 0, 4, 1, 2]
    shuffled = fit_anchors(prices.select([prices.assets[i] for i in order]), SETTINGS)
    expected = fit_anchors(prices, SETTINGS).weights[:, :, [*order, 5]]
    np.testing.assert_allclose(shuffled.weights, expected, atol=1e-3)


@pytest.mark.parametrize("window", [63, 126, 252])
def test_short_windows_work(window: int) -> None:
    """Momentum still looks back a year; the others see `window` days."""
    prices = random_prices(5, 400, seed=9)
    fitted = fit_anchors(prices, MarketSettings(anchor_refit=63, anchor_window=window))
    check_budget(fitted.weights)
    row = 252
    expected = anchor_fits.top_quarter(prices.close[: row + 1])
    np.testing.assert_array_equal(fitted.weights[0, 2, :5], expected)
    tail = window_of(prices.returns()[row - window + 1 : row + 1])
    padded = np.concatenate([np.ones((300, 5)) * tail[0], tail])
    again = fit_window(padded, 0.12, 0.2, window)
    np.testing.assert_allclose(fitted.weights[0, 0], again[0, :-1], atol=1e-6)


@pytest.mark.parametrize("kind", ["twins", "all falling"])
def test_odd_universes_still_have_budgets(kind: str) -> None:
    returns = random_prices(5, 330, seed=9).returns()
    if kind == "twins":
        returns[:, 2] = returns[:, 1]
    else:
        returns -= 0.005
    check_budget(fit_anchors(table_of(returns), SETTINGS).weights)


@pytest.mark.parametrize("rate", [0.0, 1e-4])
def test_a_price_that_stands_still_is_refused_by_name(rate: float) -> None:
    returns = random_prices(5, 330, seed=9).returns()
    returns[:, 2] = rate
    with pytest.raises(DataError, match="'S02' grew evenly in the 252 days before") as caught:
        fit_anchors(table_of(returns), SETTINGS)
    assert "\n" not in str(caught.value)


def test_too_few_rows_or_assets() -> None:
    with pytest.raises(DataError, match="252 rows of prices are too few"):
        fit_anchors(random_prices(5, 252), SETTINGS)
    with pytest.raises(DataError, match="one asset"):
        fit_anchors(random_prices(1, 400), SETTINGS)


# ------------------------------------------------------------------ the cache


def test_cache_gives_the_same_without_fitting(own_cache: Path, fits: list[int]) -> None:
    prices = random_prices(4, 400)
    first = fit_anchors(prices, SETTINGS)
    assert len(fits) == len(first.refits) == 3
    second = fit_anchors(prices, SETTINGS)
    assert len(fits) == 3
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.fallbacks, second.fallbacks)


def test_a_longer_history_fits_its_new_days_alone(own_cache: Path, fits: list[int]) -> None:
    prices = random_prices(4, 600)
    short = fit_anchors(prices.rows(0, 400), SETTINGS)
    done = len(fits)
    seen: list[tuple[int, int]] = []
    longer = fit_anchors(prices, SETTINGS, lambda done, todo: seen.append((done, todo)))
    assert len(fits) - done == len(longer.refits) - len(short.refits) == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(longer.weights[: len(short.refits)], short.weights)


def test_other_settings_and_prices_are_not_mixed_up(own_cache: Path, fits: list[int]) -> None:
    prices = random_prices(4, 320)
    fit_anchors(prices, SETTINGS)
    for changes in (
        {"anchor_cap": 0.5},
        {"anchor_target_volatility": 0.05},
        {"anchor_window": 252},
    ):
        before = len(fits)
        fit_anchors(prices, dataclasses.replace(SETTINGS, **changes))
        assert len(fits) - before == 2, changes
    before = len(fits)
    fit_anchors(table_of(random_prices(4, 320, seed=1).returns()), SETTINGS)
    assert len(fits) - before == 2


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def garbage(content: bytes) -> bytes:
    return b"PK\x03\x04" + b"garbage" * 10


def emptied(content: bytes) -> bytes:
    return b""


def flipped(content: bytes) -> bytes:
    """One bit of a weight: momentum's whole share of one asset becomes another number."""
    place = content.index(np.float64(1.0).tobytes()) + 6
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [cut_in_half, garbage, emptied, flipped])
def test_a_damaged_cache_is_fitted_anew(own_cache: Path, fits: list[int], damage: Any) -> None:
    prices = random_prices(4, 400)
    first = fit_anchors(prices, SETTINGS)
    (file,) = (own_cache / "anchors").glob("*.npz")
    file.write_bytes(damage(file.read_bytes()))
    second = fit_anchors(prices, SETTINGS)
    assert len(fits) == 6
    np.testing.assert_array_equal(first.weights, second.weights)
    fit_anchors(prices, SETTINGS)
    assert len(fits) == 6
