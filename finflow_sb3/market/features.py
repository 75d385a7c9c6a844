"""Causal features: row t is computed from prices at or before t.

Each asset has features in five groups, one for each expert; the market block describes all
assets together, that is those that are listed. Nothing here depends on the order of assets. Rows
before `WARMUP` are NaN, and so are an asset's features until it has been listed for as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.market.prices import PriceTable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEATURES", "MARKET_FEATURES", "WARMUP", "FeatureTable", "compute_features"]

Float = NDArray[np.float64]

MONTH, QUARTER, HALF, YEAR = 21, 63, 126, 252
WARMUP = YEAR
EPS = 1e-8

FEATURES: dict[str, tuple[str, ...]] = {
    "volatility": ("log_vol_21", "log_vol_63", "log_vol_252", "vol_ratio_21_252", "range_21"),
    "correlation": ("corr_market_63", "corr_market_252", "beta_252", "idio_share_252"),
    "momentum": ("ret_21", "ret_63", "ret_126", "ret_12_1", "rank_12_1"),
    "defensive": ("drawdown_252", "downside_ratio_252", "worst_day_252", "down_beta_252"),
    "growth": ("sharpe_252", "sharpe_126", "trend_50_200", "excess_252"),
}
MARKET_FEATURES = (
    "market_ret_21",
    "market_ret_63",
    "market_ret_252",
    "market_log_vol_21",
    "market_log_vol_63",
    "market_vol_ratio",
    "market_drawdown_252",
    "dispersion_21",
    "mean_corr_63",
    "breadth_200",
)


@dataclass(frozen=True)
class FeatureTable:
    """Unscaled features.

    Attributes
    ----------
    groups : group → shape [T, n, f_g], features in the order of `FEATURES`
    market : shape [T, len(MARKET_FEATURES)]
    """

    groups: dict[str, Float]
    market: Float


def compute_features(prices: PriceTable) -> FeatureTable:
    """All features of a price table; O(T·n), rolling windows that only move forward.

    Returns are in units of daily volatility where they are compared across assets, so that a
    feature means the same for a bond fund as for a stock.
    """
    import pandas as pd

    close = pd.DataFrame(prices.close)
    returns = pd.DataFrame(prices.returns())
    returns.iloc[0] = np.nan
    if prices.listed is not None:
        close = close.where(prices.listed)
        returns = returns.where(prices.earning())
    market = returns.mean(axis=1)
    vols = {w: _volatility(returns, w) for w in (MONTH, QUARTER, YEAR)}
    columns = {
        **_volatility_group(returns, vols),
        **_correlation_group(returns, market),
        **_momentum_group(close, vols[YEAR]),
        **_defensive_group(close, returns, market, vols[YEAR]),
        **_growth_group(close, returns, market, vols[YEAR]),
    }
    groups = {
        group: np.stack([columns[name].to_numpy() for name in names], axis=-1)
        for group, names in FEATURES.items()
    }
    block = _market_block(close, returns, market, columns["corr_market_63"])
    return FeatureTable(groups, block)


def _volatility(returns: pd.DataFrame, window: int) -> pd.DataFrame:
    return returns.rolling(window).std().clip(lower=EPS)


def _volatility_group(
    returns: pd.DataFrame, vols: dict[int, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    largest = returns.abs().rolling(MONTH).max()
    return {
        "log_vol_21": np.log(vols[MONTH]),
        "log_vol_63": np.log(vols[QUARTER]),
        "log_vol_252": np.log(vols[YEAR]),
        "vol_ratio_21_252": np.log(vols[MONTH] / vols[YEAR]),
        "range_21": largest / vols[YEAR],
    }


def _correlation_group(returns: pd.DataFrame, market: pd.Series) -> dict[str, pd.DataFrame]:
    corr = {w: _rolling_corr(returns, market, w) for w in (QUARTER, YEAR)}
    beta = _rolling_beta(returns, market, YEAR)
    return {
        "corr_market_63": corr[QUARTER],
        "corr_market_252": corr[YEAR],
        "beta_252": beta,
        "idio_share_252": 1.0 - corr[YEAR] ** 2,
    }


def _rolling_cov(returns: pd.DataFrame, market: pd.Series, window: int) -> pd.DataFrame:
    product = returns.mul(market, axis=0).rolling(window).mean()
    means = returns.rolling(window).mean().mul(market.rolling(window).mean(), axis=0)
    return product - means


def _rolling_corr(returns: pd.DataFrame, market: pd.Series, window: int) -> pd.DataFrame:
    scale = returns.rolling(window).std(ddof=0).mul(market.rolling(window).std(ddof=0), axis=0)
    return (_rolling_cov(returns, market, window) / scale.clip(lower=EPS**2)).clip(-1.0, 1.0)


def _rolling_beta(returns: pd.DataFrame, market: pd.Series, window: int) -> pd.DataFrame:
    variance = market.rolling(window).var(ddof=0).clip(lower=EPS**2)
    return _rolling_cov(returns, market, window).div(variance, axis=0)


def _momentum_group(close: pd.DataFrame, vol: pd.DataFrame) -> dict[str, pd.DataFrame]:
    log = np.log(close)
    twelve_one = log.shift(MONTH) - log.shift(YEAR)

    def scaled(window: int) -> pd.DataFrame:
        return (log - log.shift(window)) / (vol * np.sqrt(window))

    return {
        "ret_21": scaled(MONTH),
        "ret_63": scaled(QUARTER),
        "ret_126": scaled(HALF),
        "ret_12_1": twelve_one / (vol * np.sqrt(YEAR - MONTH)),
        "rank_12_1": twelve_one.rank(axis=1, pct=True) - 0.5,
    }


def _defensive_group(
    close: pd.DataFrame, returns: pd.DataFrame, market: pd.Series, vol: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    losses = returns.clip(upper=0.0)
    semi = np.sqrt((losses**2).rolling(YEAR).mean())
    fallen = market.clip(upper=0.0)
    down = losses.mul(fallen, axis=0).rolling(YEAR).mean()
    return {
        "drawdown_252": close / close.rolling(YEAR).max() - 1.0,
        "downside_ratio_252": semi / vol,
        "worst_day_252": returns.rolling(YEAR).min() / vol,
        "down_beta_252": down.div((fallen**2).rolling(YEAR).mean().clip(lower=EPS**2), axis=0),
    }


def _growth_group(
    close: pd.DataFrame, returns: pd.DataFrame, market: pd.Series, vol: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    def sharpe(window: int) -> pd.DataFrame:
        deviation = returns.rolling(window).std().clip(lower=EPS)
        return returns.rolling(window).mean() / deviation * np.sqrt(YEAR)

    excess = returns.sub(market, axis=0)
    fast, slow = close.rolling(50).mean(), close.rolling(200).mean()
    return {
        "sharpe_252": sharpe(YEAR),
        "sharpe_126": sharpe(HALF),
        "trend_50_200": np.log(fast / slow) / (vol * np.sqrt(HALF)),
        "excess_252": excess.rolling(YEAR).mean() / vol * np.sqrt(YEAR),
    }


def _market_block(
    close: pd.DataFrame, returns: pd.DataFrame, market: pd.Series, corr: pd.DataFrame
) -> Float:
    index = (1.0 + market.fillna(0.0)).cumprod()
    log_index = np.log(index)
    vol_month = market.rolling(MONTH).std().clip(lower=EPS)
    vol_quarter = market.rolling(QUARTER).std().clip(lower=EPS)
    vol_year = market.rolling(YEAR).std().clip(lower=EPS)
    month_returns = np.log(close) - np.log(close.shift(MONTH))
    average = close.rolling(200).mean()
    above = (close > average).astype(float).where(average.notna()).mean(axis=1) - 0.5
    block = (
        (log_index - log_index.shift(MONTH)) / (vol_year * np.sqrt(MONTH)),
        (log_index - log_index.shift(QUARTER)) / (vol_year * np.sqrt(QUARTER)),
        (log_index - log_index.shift(YEAR)) / (vol_year * np.sqrt(YEAR)),
        np.log(vol_month),
        np.log(vol_quarter),
        np.log(vol_month / vol_year),
        index / index.rolling(YEAR).max() - 1.0,
        month_returns.std(axis=1),
        corr.mean(axis=1),
        above,
    )
    return np.stack([series.to_numpy() for series in block], axis=-1)
