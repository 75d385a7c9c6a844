"""Markets that the tests share: small synthetic ones, the OLPS set, and us20."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings, MarketSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket, observe, observe_source
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span

OLPS = Path(__file__).parent / "data" / "olps" / "djia_relatives.csv.gz"
NAMES = tuple(f"S{i:02d}" for i in range(100))


def business_days(count: int, start: str = "2000-01-03") -> NDArray[np.datetime64]:
    """`count` weekdays from `start` on."""
    first = np.datetime64(start)
    return np.busday_offset(first, np.arange(count), roll="forward").astype("datetime64[D]")


def table_of(returns: NDArray[np.float64], cash_rate: float = 0.0) -> PriceTable:
    """A price table with these daily returns [T, n]; the first row's returns are not used."""
    growth = 1.0 + returns
    growth[0] = 100.0
    n_rows, n = returns.shape
    return PriceTable(
        dates=business_days(n_rows),
        assets=NAMES[:n],
        close=np.cumprod(growth, axis=0),
        cash_rate=np.full(n_rows, cash_rate),
        source="synthetic",
    )


def random_prices(
    n_assets: int = 5, n_rows: int = 600, seed: int = 0, cash_rate: float = 0.0
) -> PriceTable:
    """Correlated random walks with unequal drift and volatility."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0.0003, 0.006, size=(n_rows, 1))
    own = rng.normal(0.0, 1.0, size=(n_rows, n_assets)) * np.linspace(0.005, 0.02, n_assets)
    drift = rng.permutation(np.linspace(-0.0002, 0.0012, n_assets))
    return table_of(drift + common + own, cash_rate)


@lru_cache(maxsize=32)
def small_market(
    env: EnvSettings | None = None, n_assets: int = 5, seed: int = 0
) -> ObservedMarket:
    """An observed synthetic market of 600 days, with a cash rate of 1 bp a day."""
    prices = random_prices(n_assets, 600, seed, cash_rate=1e-4)
    return observe(prices, MarketSettings(anchor_refit=63), env or EnvSettings())


def partial_prices(
    starts: dict[int, int] | None = None,
    ends: dict[int, int] | None = None,
    n_assets: int = 6,
    seed: int = 0,
) -> PriceTable:
    """`random_prices` of 600 days whose assets have their first or last price on these rows."""
    whole = random_prices(n_assets, 600, seed, cash_rate=1e-4)
    listed = np.ones(whole.close.shape, dtype=np.bool_)
    for asset, row in (starts or {}).items():
        listed[:row, asset] = False
    for asset, row in (ends or {}).items():
        listed[row + 1 :, asset] = False
    return dataclasses.replace(whole, listed=listed)


@lru_cache(maxsize=32)
def partial_market(env: EnvSettings | None = None) -> ObservedMarket:
    """Of 6 assets, two start later and two end: one in training, one of them between refits."""
    prices = partial_prices(starts={1: 60, 4: 150}, ends={2: 330, 5: 480})
    return observe(prices, MarketSettings(anchor_refit=63), env or EnvSettings())


def us20_market(env: EnvSettings | None = None) -> ObservedMarket:
    """The embedded market; its anchors take about 20 s the first time, then come from disk."""
    return observe_source("us20", MarketSettings(), env or EnvSettings())


def whole_span(market: ObservedMarket) -> Span:
    return Span(market.splits.train.start, market.splits.test.stop)


def batch_of(
    market: ObservedMarket,
    env: EnvSettings | None = None,
    n_envs: int = 1,
    span: Span | None = None,
    evaluation: bool = True,
    seed: int = 0,
) -> PortfolioBatch:
    """A batch that is reset and ready to step; the market's own settings if not given."""
    seeds: list[int | None] = [seed + i for i in range(n_envs)]
    batch = PortfolioBatch(
        market, span or whole_span(market), n_envs, env or market.env, evaluation, seeds
    )
    batch.reset()
    return batch


def random_actions(
    market: ObservedMarket, n_envs: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    return rng.uniform(-1.0, 1.0, size=(n_envs, market.layout.action_size))


@lru_cache(maxsize=1)
def olps_market() -> tuple[ObservedMarket, Span]:
    """The DJIA set of the OLPS toolbox behind 300 days of made-up history, and its own rows.

    The 507 relatives x_t = p_t / p_{t-1} become returns of the 507 days of the span after its
    first; the history is there because anchors and features need a year, and earns nothing.
    """
    relatives = np.loadtxt(OLPS, delimiter=",", skiprows=1)[:, 1:]
    before = np.random.default_rng(0).normal(0.0, 0.01, size=(300, relatives.shape[1]))
    prices = table_of(np.concatenate([before, relatives - 1.0]))
    free = EnvSettings(fee=0.0, trade_rate=1.0)
    market = observe(prices, MarketSettings(anchor_refit=252), free)
    return market, Span(299, 300 + len(relatives))
