"""Rules beside a policy: their weights, their trades, and skfolio's own curve of the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from checkers import check_budget
from markets import random_prices, small_market, table_of
from numpy.typing import NDArray
from skfolio import RiskMeasure
from skfolio import optimization as o
from skfolio.model_selection import WalkForward, cross_val_predict

from finflow_sb3.config import EnvSettings, EvaluationSettings, Settings
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.evaluation import allocators as module
from finflow_sb3.evaluation.allocators import ALLOCATORS, fit_allocators, fit_window
from finflow_sb3.evaluation.baselines import baseline, baselines, left_out, remarks
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.index_curve import index_curve
from finflow_sb3.evaluation.sixty_forty import equities_and_bonds, sixty_forty
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span

Float = NDArray[np.float64]
FREE = EnvSettings(fee=0.0)
ROWS = np.array([300, 363, 426])


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def fits(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the allocators that were really fitted, a window each."""
    calls: list[str] = []

    def counted(name: str, *rest: Any) -> Any:
        calls.append(name)
        return fit_window(name, *rest)

    monkeypatch.setattr(module, "fit_window", counted)
    return calls


def uncorrelated(deviations: list[float], n_rows: int = 512) -> Float:
    """Closes whose returns have exactly these deviations, and no correlation (Hadamard)."""
    base = np.array([[1.0]])
    while len(base) < n_rows:
        base = np.block([[base, base], [base, -base]])
    signs = base[:, 1 : len(deviations) + 1][np.random.default_rng(0).permutation(n_rows)]
    returns = signs * np.array(deviations) + 0.0002
    start = np.full((1, len(deviations)), 100.0)
    return np.concatenate([start, 100.0 * np.cumprod(1.0 + returns, axis=0)])


def fitted(name: str, close: Float, usable: Any = None, cash: float = 0.0) -> Float:
    n = close.shape[1]
    mask = np.ones(n, dtype=bool) if usable is None else np.array(usable)
    return fit_window(name, close, np.full(len(close) - 1, cash), mask)


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("minimum_variance", [0.4, 0.1, 0.4, 0.1]),
        ("inverse_volatility", [1 / 3, 1 / 6, 1 / 3, 1 / 6]),
        ("risk_budgeting", [1 / 3, 1 / 6, 1 / 3, 1 / 6]),
        ("maximum_diversification", [1 / 3, 1 / 6, 1 / 3, 1 / 6]),
        ("maximum_sharpe", [0.4, 0.1, 0.4, 0.1]),
        ("nested_clusters", [0.4, 0.1, 0.4, 0.1]),
        ("hrp", [0.4, 0.1, 0.4, 0.1]),
    ],
)
def test_of_uncorrelated_assets_by_hand(name: str, expected: list[float]) -> None:
    """For σ of 1 % and 2 %: ∝ 1/σ² where variance (or Sharpe at equal means) counts, else 1/σ."""
    weights = fitted(name, uncorrelated([0.01, 0.02, 0.01, 0.02]))
    np.testing.assert_allclose(weights[:4], expected, atol=5e-3)
    assert weights[4] == weights[5] == 0.0


def test_minimum_cvar_has_the_least_cvar() -> None:
    close = random_prices(5, 400, seed=3).close
    returns = close[1:] / close[:-1] - 1.0

    def tail(weights: Float) -> float:
        return float(np.sort(returns @ weights)[: len(returns) // 20].mean())

    best = fitted("minimum_cvar", close)[:5]
    others = [fitted(name, close)[:5] for name in ALLOCATORS if name != "minimum_cvar"]
    assert all(tail(best) >= tail(other) - 1e-6 for other in others)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("kind", ["usual", "twins", "two", "falling"])
def test_every_window_gives_a_budget(name: str, kind: str) -> None:
    returns = random_prices(2 if kind == "two" else 5, 200, seed=9).returns()
    if kind == "twins":
        returns[:, 2] = returns[:, 1]
    if kind == "falling":
        returns -= 0.005
    weights = fitted(name, table_of(returns).close)
    check_budget(weights[None, :-1])
    assert weights[-1] == (1 if name == "maximum_sharpe" and kind == "falling" else 0)


def test_without_a_mean_above_cash_maximum_sharpe_holds_minimum_variance() -> None:
    close = uncorrelated([0.01, 0.02, 0.01, 0.02])
    free, dear = (fitted("maximum_sharpe", close, cash=rate) for rate in (0.0, 0.0003))
    assert (free[-1], dear[-1]) == (0, 1)
    np.testing.assert_allclose(dear[:4], [0.4, 0.1, 0.4, 0.1], atol=5e-3)


def test_fallbacks_are_counted_and_said(own_cache: Path) -> None:
    market = small_market()
    falling = market.prices.returns() - 0.005
    prices = dataclasses.replace(market.prices, close=table_of(falling).close)
    found = fit_allocators(prices, ["maximum_sharpe", "hrp"], ROWS, 126)
    assert found["maximum_sharpe"].fallbacks == (3, 0)
    assert found["hrp"].fallbacks == (0, 0)
    market = dataclasses.replace(market, prices=prices)
    settings = EvaluationSettings(baselines=("maximum_sharpe", "hrp"), lookback=126, rebalance=63)
    curves = baselines(market, market.splits.test, FREE, settings)
    said = "2 of 2 refits had no solution and hold minimum variance"
    assert [curve.note for curve in curves] == ["", said, ""]
    assert remarks(curves, prices.assets, settings) == (f"Maximum Sharpe: {said}.",)


@pytest.mark.parametrize(
    ("usable", "cash"), [([1, 0, 1, 1], 0.0), ([0, 0, 1, 0], 0.0), ([0, 0, 0, 0], 1.0)]
)
@pytest.mark.parametrize("name", ["herc", "nested_clusters", "minimum_variance"])
def test_what_is_not_usable_is_not_held(name: str, usable: list[int], cash: float) -> None:
    mask = np.array(usable, dtype=bool)
    close = random_prices(4, 200, seed=1).close
    weights = fitted(name, close, mask)
    assert np.all(weights[:4][~mask] == 0.0)
    assert weights[4] == cash
    assert weights[:5].sum() == pytest.approx(1.0)
    if mask.sum() > 1:
        alone = fitted(name, close[:, mask])
        np.testing.assert_array_equal(weights[:4][mask], alone[:-2])


def test_a_price_that_stands_still_is_not_weighed(own_cache: Path) -> None:
    returns = random_prices(4, 500, seed=2).returns()
    returns[200:, 1] = 0.0
    found = fit_allocators(table_of(returns), ["inverse_volatility"], np.array([240, 400]), 63)
    weights = found["inverse_volatility"].weights
    assert weights[0, 1] > 0.0
    assert weights[1, 1] == 0.0


# ------------------------------------------------------------------ time and cache


@pytest.mark.parametrize("name", ALLOCATORS)
def test_no_look_ahead(name: str, own_cache: Path) -> None:
    prices = random_prices(5, 500, seed=5, cash_rate=1e-4)
    changed, rate = prices.close.copy(), prices.cash_rate.copy()
    changed[364:] *= 1.0 + 0.05 * np.random.default_rng(0).random((136, 5))
    rate[364:] = 5e-4
    other = dataclasses.replace(prices, close=changed, cash_rate=rate)
    first, second = (fit_allocators(p, [name], ROWS, 126)[name].weights for p in (prices, other))
    np.testing.assert_array_equal(first[:2], second[:2])
    assert not np.array_equal(first[2], second[2])


def test_near_the_start_a_window_is_as_long_as_there_is_history(own_cache: Path) -> None:
    prices = random_prices(4, 400)
    early = fit_allocators(prices, ["hrp"], np.array([100]), 756)["hrp"].weights[0]
    np.testing.assert_array_equal(early, fitted("hrp", prices.close[:101])[:-1])


def test_cache_computes_what_is_new_alone(fits: list[str]) -> None:
    prices = random_prices(4, 600)
    first = fit_allocators(prices, ["hrp", "herc"], ROWS, 126)
    assert fits == ["hrp"] * 3 + ["herc"] * 3
    seen: list[tuple[int, int]] = []
    again = fit_allocators(
        prices.rows(0, 500),
        ["herc", "minimum_variance", "hrp"],
        ROWS,
        126,
        on_progress=lambda done, todo: seen.append((done, todo)),
    )
    assert fits[6:] == ["minimum_variance"] * 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name in first:
        np.testing.assert_array_equal(first[name].weights, again[name].weights)
    fit_allocators(prices, ["hrp"], ROWS, 252)
    fit_allocators(dataclasses.replace(prices, close=prices.close * [1, 1, 1, 2]), ["hrp"], ROWS, 1)
    assert len(fits) == 15


def test_two_processes_fit_as_one(own_cache: Path) -> None:
    prices, names = random_prices(4, 600), ("inverse_volatility", "hrp")
    rows = np.arange(200, 420, 10)
    found = fit_allocators(prices, names, rows, 63)
    for name in names:
        for row, weights in zip(rows, found[name].weights, strict=True):
            alone = fitted(name, prices.close[row - 63 : row + 1])
            np.testing.assert_allclose(weights, alone[:-1], rtol=0, atol=1e-12)


# ------------------------------------------------------------------ curves


DAYS = 42
MODELS = {
    "inverse_volatility": o.InverseVolatility(),
    "hrp": o.HierarchicalRiskParity(),
    "minimum_cvar": o.MeanRisk(risk_measure=RiskMeasure.CVAR),
}


def skfolio_curve(market: Any, name: str, every: int, lookback: int) -> Float:
    """skfolio's own walk-forward through the test split: weights held fixed between refits."""
    span = market.splits.test
    returns = market.prices.returns()[span.start - lookback + 1 : span.stop]
    returns = returns[: lookback + DAYS]
    folds = WalkForward(test_size=every, train_size=lookback)
    return np.asarray(cross_val_predict(MODELS[name], returns, cv=folds).returns)


@pytest.mark.parametrize("name", ["inverse_volatility", "hrp", "minimum_cvar"])
def test_daily_and_free_of_costs_it_is_skfolios_curve(name: str) -> None:
    market = small_market()
    settings = EvaluationSettings(baselines=(name,), lookback=63, rebalance=1)
    start = market.splits.test.start
    curve = baseline(name, market, Span(start, start + DAYS + 1), FREE, settings)
    theirs = skfolio_curve(market, name, 1, 63)
    assert len(theirs) == DAYS
    np.testing.assert_allclose(curve.returns, theirs, rtol=0, atol=1e-8)


def test_what_ignoring_drift_would_amount_to() -> None:
    """Between refits skfolio holds weights fixed, a trade a day that it does not count."""
    market = small_market()
    settings = EvaluationSettings(baselines=("inverse_volatility",), lookback=63, rebalance=21)
    curve = baseline("inverse_volatility", market, market.splits.test, FREE, settings)
    theirs = skfolio_curve(market, "inverse_volatility", 21, 63)
    ours = curve.returns[: len(theirs)]
    np.testing.assert_allclose(ours[::21], theirs[::21], rtol=0, atol=1e-12)
    apart = np.abs(ours - theirs)
    assert 1e-5 < apart.max() < 2e-3
    total = abs(np.prod(1 + ours) - np.prod(1 + theirs))
    assert 1e-5 < total < 0.01, f"{total:.2%} over {len(theirs)} days"


def by_name(curves: list[Curve]) -> dict[str, Curve]:
    return {curve.name: curve for curve in curves}


@pytest.mark.parametrize("lag", [0, 1])
def test_every_rule_trades_on_rebalancing_days_and_drifts_between(lag: int) -> None:
    market = small_market(EnvSettings(fee=0.002))
    settings = EvaluationSettings(lookback=126)
    found = by_name(baselines(market, market.splits.test, market.env, settings, lag))
    expected = {"equal_weight", "buy_and_hold", *ALLOCATORS, "anchors' average"}
    assert expected <= set(found)
    assert set(found) - expected == {f"anchor: {name}" for name in market.anchors.names}
    for name in ALLOCATORS:
        curve = found[name]
        traded = np.flatnonzero(curve.turnover > 1e-12)
        assert set(traded) == set(range(lag, len(curve), 21))
        assert curve.cost[traded].min() > 0.0
        row = market.splits.test.start + 21
        target = fit_allocators(market.prices, [name], np.array([row]), 126)[name].weights[0]
        np.testing.assert_allclose(curve.weights[21 + lag], target, rtol=0, atol=1e-12)
    assert {curve.execution_lag for curve in found.values()} == {lag}


def test_constraints_of_the_environment_hold() -> None:
    env = EnvSettings(max_turnover=0.05, max_position=0.3)
    market = small_market(env)
    settings = EvaluationSettings(lookback=126)
    for curve in baselines(market, market.splits.test, env, settings):
        assert curve.turnover.max() <= 0.05 + 1e-4  # of weights, before the fee is paid


@pytest.mark.parametrize("name", ["equal_weight", "hrp", "anchors", "buy_and_hold"])
def test_one_rule_alone_is_as_among_all(name: str) -> None:
    market = small_market()
    settings = EvaluationSettings(lookback=126)
    alone = baseline(name, market, market.splits.test, market.env, settings)
    among = by_name(baselines(market, market.splits.test, market.env, settings))[alone.name]
    np.testing.assert_array_equal(alone.returns, among.returns)


# ------------------------------------------------------------------ 60/40 and the index

FUNDS = ("SPY", "AGG", "GLD", "tlt", "EFA")


def funds(prices: PriceTable, names: tuple[str, ...] = FUNDS) -> PriceTable:
    return dataclasses.replace(prices, assets=names)


def test_sixty_forty_of_known_funds() -> None:
    market = small_market()
    market = dataclasses.replace(market, prices=funds(market.prices))
    settings = EvaluationSettings(baselines=("sixty_forty",))
    curve = baseline("sixty_forty", market, market.splits.test, FREE, settings)
    np.testing.assert_allclose(curve.weights[0], [0.3, 0.2, 0.0, 0.2, 0.3, 0.0], atol=1e-12)
    assert curve.note == "60 % in 2 equities, 40 % in 2 bonds, equal within each"


@pytest.mark.parametrize(
    ("named", "equities", "bonds"),
    [
        ({"bonds": ["GLD"]}, [1, 0, 0, 0, 1], [0, 0, 1, 0, 0]),
        ({"equities": ["GLD", "SPY"]}, [1, 0, 1, 0, 0], [0, 1, 0, 1, 0]),
    ],
)
def test_sixty_forty_of_named_assets(named: Any, equities: Any, bonds: Any) -> None:
    groups = equities_and_bonds(FUNDS, EvaluationSettings(**named))
    assert groups is not None
    np.testing.assert_array_equal(groups[0], equities)
    np.testing.assert_array_equal(groups[1], bonds)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"bonds": ["AGGG"]}, "evaluation.bonds: 'AGGG' is no asset; did you mean"),
        ({"equities": ["SPY", "AGG"]}, "'AGG' is among equities and bonds; name it once"),
    ],
)
def test_sixty_forty_refuses_names(named: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        equities_and_bonds(FUNDS, EvaluationSettings(**named))


def test_sixty_forty_holds_what_is_listed() -> None:
    equities, bonds = np.array([True, True, False]), np.array([False, False, True])
    assert sixty_forty(equities, bonds, np.array([True, False, True])).tolist() == [0.6, 0, 0.4, 0]
    early = sixty_forty(equities, bonds, np.array([True, True, False]))
    np.testing.assert_allclose(early, [0.3, 0.3, 0.0, 0.4])


def test_without_bonds_it_is_left_out_with_a_word() -> None:
    market = small_market()
    settings = EvaluationSettings(baselines=("sixty_forty",))
    curves = baselines(market, market.splits.test, FREE, settings)
    assert [curve.name for curve in curves] == ["equal_weight"]
    assert "none of the 5 assets" in left_out(market.prices.assets, settings)[0]
    with pytest.raises(DataError, match=r"sixty_forty: .* name yours in evaluation\.bonds"):
        baseline("sixty_forty", market, market.splits.test, FREE)


def write_index(path: Path, market: Any, column: int, drop: int | None = None) -> str:
    table = pd.DataFrame({"SPX": 2.0 * market.prices.close[:, column]}, index=market.prices.dates)
    if drop is not None:
        table = table.drop(table.index[drop])
    table.rename_axis("date").to_csv(path)
    return str(path)


@pytest.mark.parametrize("kind", ["asset", "file"])
def test_an_index_costs_nothing_and_says_so(kind: str, tmp_path: Path) -> None:
    market = small_market(EnvSettings(fee=0.05))
    span = market.splits.test
    index = "S02" if kind == "asset" else write_index(tmp_path / "spx.csv", market, 2)
    settings = EvaluationSettings(baselines=("index",), index=index)
    curve = baseline("index", market, span, market.env, settings)
    expected = market.returns[span.start + 1 : span.stop, 2]
    np.testing.assert_allclose(curve.returns, expected, rtol=0, atol=1e-12)
    assert curve.cost.sum() == curve.turnover.sum() == curve.fee == 0.0
    assert curve.note == f"{'S02' if kind == 'asset' else 'spx'}, without any costs"
    equal = by_name(baselines(market, span, market.env, settings))["equal_weight"]
    np.testing.assert_array_equal(curve.dates, equal.dates)
    np.testing.assert_array_equal(curve.decisions, equal.decisions)


def test_an_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    market = small_market()
    span, prices = market.splits.test, market.prices
    short = write_index(tmp_path / "short.csv", market, 0, drop=span.start + 7)
    with pytest.raises(DataError, match=f"no price on {prices.dates[span.start + 7]} \\(1 of"):
        index_curve(short, prices, span)
    with pytest.raises(DataError, match="'SPX' is no asset of synthetic and no file"):
        index_curve("SPX", prices, span)
    wide = tmp_path / "wide.csv"
    pd.DataFrame(prices.close, index=prices.dates).rename_axis("date").to_csv(wide)
    with pytest.raises(DataError, match="has 5 columns beside the date; an index is one"):
        index_curve(str(wide), prices, span)


def test_an_index_that_baselines_leave_out_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="baselines leave index out; add it"):
        Settings(evaluation=EvaluationSettings(baselines=("hrp",), index="SPY"))
    assert Settings(evaluation=EvaluationSettings(index="SPY")).evaluation.index == "SPY"
