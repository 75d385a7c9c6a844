"""Features: values by hand and by definition, causality, order of assets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from markets import random_prices, table_of

from finflow_sb3.market.features import FEATURES, MARKET_FEATURES, WARMUP, compute_features

PRICES = random_prices(6, 420, seed=3)
TABLE = compute_features(PRICES)
RETURNS = PRICES.returns()
ROWS = (WARMUP, 300, 419)


def feature(group: str, name: str, table=TABLE) -> np.ndarray:
    return table.groups[group][..., FEATURES[group].index(name)]


def block(name: str, table=TABLE) -> np.ndarray:
    return table.market[:, MARKET_FEATURES.index(name)]


def test_shapes_and_warm_up() -> None:
    for group, names in FEATURES.items():
        assert TABLE.groups[group].shape == (420, 6, len(names))
        assert np.isfinite(TABLE.groups[group][WARMUP:]).all()
    assert TABLE.market.shape == (420, len(MARKET_FEATURES))
    assert np.isfinite(TABLE.market[WARMUP:]).all()
    assert np.isnan(feature("volatility", "log_vol_252")[WARMUP - 1]).all()


def test_by_hand_on_a_market_without_noise() -> None:
    """A: +1 % and -1 % in turn. B: +0.1 % each day. C: -0.2 % each day."""
    turn = np.where(np.arange(300) % 2 == 1, 0.01, -0.01)
    table = compute_features(
        table_of(np.stack([turn, np.full(300, 0.001), np.full(300, -0.002)], axis=1))
    )
    row = 299
    # 252 values of ±0.01 with mean zero: the sample deviation is 0.01·√(252/251).
    year = 0.01 * math.sqrt(252 / 251)
    assert feature("volatility", "log_vol_252", table)[row, 0] == pytest.approx(math.log(year))
    assert feature("volatility", "range_21", table)[row, 0] == pytest.approx(0.01 / year)
    assert feature("defensive", "worst_day_252", table)[row, 0] == pytest.approx(-0.01 / year)
    # Half of the days lose 0.01: √(0.0001/2).
    downside = feature("defensive", "downside_ratio_252", table)[row, 0]
    assert downside == pytest.approx(0.01 / math.sqrt(2) / year)
    # Growing without a break, B stands at its high; C has fallen 251 times since the high.
    drawdown = feature("defensive", "drawdown_252", table)[row]
    assert drawdown[1] == pytest.approx(0.0, abs=1e-12)
    assert drawdown[2] == pytest.approx(0.998**251 - 1.0)
    # 12-1 momentum: A goes nowhere, B rises, C falls; ranks 2, 3, 1 of 3.
    ranks = feature("momentum", "rank_12_1", table)[row]
    np.testing.assert_allclose(ranks, [2 / 3 - 0.5, 1 - 0.5, 1 / 3 - 0.5])
    # Only B stands over its average of 200 days, and A, whose last day was up.
    assert block("breadth_200", table)[row] == pytest.approx(2 / 3 - 0.5)
    # The mean of (±0.01, 0.001, -0.002): every second day (0.009/3), else (-0.011/3).
    index = 21 // 2 * math.log((1 + 0.003) * (1 - 0.011 / 3)) + math.log(1.003)
    spread = float(np.std([0.003, -0.011 / 3] * 126, ddof=1)) * math.sqrt(21)
    assert block("market_ret_21", table)[row] == pytest.approx(index / spread)


@pytest.mark.parametrize("row", ROWS)
def test_by_definition(row: int) -> None:
    """Every feature from its window in plain NumPy."""
    close, log = PRICES.close, np.log(PRICES.close)
    r = {w: RETURNS[row - w + 1 : row + 1] for w in (21, 63, 126, 252)}
    m = {w: x.mean(axis=1) for w, x in r.items()}
    vol = {w: x.std(axis=0, ddof=1) for w, x in r.items()}
    year = vol[252]

    def corr(window: int) -> np.ndarray:
        return np.array([np.corrcoef(r[window][:, i], m[window])[0, 1] for i in range(6)])

    down = np.minimum(r[252], 0.0)
    fallen = np.minimum(m[252], 0.0)
    twelve_one = log[row - 21] - log[row - 252]
    beta = np.array([np.cov(r[252][:, i], m[252], ddof=0)[0, 1] for i in range(6)])
    average = {w: close[row - w + 1 : row + 1].mean(axis=0) for w in (50, 200)}
    expected = {
        "log_vol_21": np.log(vol[21]),
        "log_vol_63": np.log(vol[63]),
        "log_vol_252": np.log(year),
        "vol_ratio_21_252": np.log(vol[21] / year),
        "range_21": np.abs(r[21]).max(axis=0) / year,
        "corr_market_63": corr(63),
        "corr_market_252": corr(252),
        "beta_252": beta / m[252].var(),
        "idio_share_252": 1 - corr(252) ** 2,
        "ret_21": (log[row] - log[row - 21]) / (year * math.sqrt(21)),
        "ret_63": (log[row] - log[row - 63]) / (year * math.sqrt(63)),
        "ret_126": (log[row] - log[row - 126]) / (year * math.sqrt(126)),
        "ret_12_1": twelve_one / (year * math.sqrt(231)),
        "rank_12_1": (np.argsort(np.argsort(twelve_one)) + 1) / 6 - 0.5,
        "drawdown_252": close[row] / close[row - 251 : row + 1].max(axis=0) - 1,
        "downside_ratio_252": np.sqrt((down**2).mean(axis=0)) / year,
        "worst_day_252": r[252].min(axis=0) / year,
        "down_beta_252": (down * fallen[:, None]).mean(axis=0) / (fallen**2).mean(),
        "sharpe_252": r[252].mean(axis=0) / year * math.sqrt(252),
        "sharpe_126": r[126].mean(axis=0) / vol[126] * math.sqrt(252),
        "trend_50_200": np.log(average[50] / average[200]) / (year * math.sqrt(126)),
        "excess_252": (r[252] - m[252][:, None]).mean(axis=0) / year * math.sqrt(252),
    }
    assert set(expected) == {name for names in FEATURES.values() for name in names}
    for group, names in FEATURES.items():
        for name in names:
            got = feature(group, name)[row]
            np.testing.assert_allclose(got, expected[name], rtol=1e-8, atol=1e-9, err_msg=name)
    index = np.cumprod(1 + RETURNS.mean(axis=1))
    market = {
        "market_ret_63": math.log(index[row] / index[row - 63]),
        "market_log_vol_21": math.log(m[21].std(ddof=1)),
        "market_vol_ratio": math.log(m[21].std(ddof=1) / m[252].std(ddof=1)),
        "market_drawdown_252": index[row] / index[row - 251 : row + 1].max() - 1,
        "dispersion_21": (log[row] - log[row - 21]).std(ddof=1),
        "mean_corr_63": corr(63).mean(),
    }
    market["market_ret_63"] /= m[252].std(ddof=1) * math.sqrt(63)
    for name, value in market.items():
        assert block(name)[row] == pytest.approx(value, rel=1e-8, abs=1e-10), name


@pytest.mark.parametrize("row", ROWS[:-1])
def test_the_future_changes_nothing(row: int) -> None:
    close = PRICES.close.copy()
    close[row + 1 :] *= np.random.default_rng(row).uniform(0.5, 2.0, close[row + 1 :].shape)
    from finflow_sb3.market.prices import PriceTable

    other = compute_features(PriceTable(PRICES.dates, PRICES.assets, close))
    for group in FEATURES:
        np.testing.assert_array_equal(
            other.groups[group][: row + 1], TABLE.groups[group][: row + 1]
        )
        assert np.any(other.groups[group][row + 1] != TABLE.groups[group][row + 1])
    np.testing.assert_array_equal(other.market[: row + 1], TABLE.market[: row + 1])


def test_permuting_assets_permutes_features() -> None:
    order = [4, 0, 5, 2, 1, 3]
    shuffled = compute_features(PRICES.select([PRICES.assets[i] for i in order]))
    for group in FEATURES:
        np.testing.assert_allclose(
            shuffled.groups[group][WARMUP:], TABLE.groups[group][WARMUP:, order], atol=1e-9
        )
    np.testing.assert_allclose(shuffled.market[WARMUP:], TABLE.market[WARMUP:], atol=1e-9)


def test_scale_of_prices_does_not_matter() -> None:
    from finflow_sb3.market.prices import PriceTable

    scaled = compute_features(
        PriceTable(PRICES.dates, PRICES.assets, PRICES.close * np.array([1, 10, 0.1, 3, 7, 1e3]))
    )
    for group in FEATURES:
        np.testing.assert_allclose(
            scaled.groups[group][WARMUP:], TABLE.groups[group][WARMUP:], atol=1e-8
        )


def test_a_constant_price_gives_finite_features() -> None:
    returns = RETURNS.copy()
    returns[:, 2] = 0.0
    table = compute_features(table_of(returns))
    for group in FEATURES:
        assert np.isfinite(table.groups[group][WARMUP:]).all()
    assert np.isfinite(table.market[WARMUP:]).all()
