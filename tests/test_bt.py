"""Net equity against `bt`, an independent backtester that is given nothing but share orders."""

from __future__ import annotations

import dataclasses
from typing import Any

import bt
import numpy as np
import pandas as pd
import pytest
from markets import observe, random_prices, us20_market
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings, MarketSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.baselines import baselines
from finflow_sb3.evaluation.curve import Curve

Float = NDArray[np.float64]
CAPITAL = 1e6


def closes_of(market: ObservedMarket, curve: Curve) -> pd.DataFrame:
    """Closes from the first decision to the last day of the curve."""
    dates = market.prices.dates
    rows = (dates >= curve.decisions[0]) & (dates <= curve.dates[-1])
    return pd.DataFrame(market.prices.close[rows], dates[rows], list(market.prices.assets))


def shares_of(curve: Curve, closes: pd.DataFrame) -> Float:
    """Shares held after each day's trade, shape [D, n]: weights times value over close."""
    before = CAPITAL * np.concatenate([[1.0], curve.value[:-1]])
    after = before - CAPITAL * curve.cost
    return np.asarray(curve.weights[:, :-1] * after[:, None] / closes.to_numpy()[:-1])


class Orders(bt.Algo):  # type: ignore[misc]
    """The start is given, as equal weights without costs; then the orders of each day."""

    def __init__(self, start: Float, shares: Float, fees: dict[str, float]):
        super().__init__()
        self.shares = dict(enumerate(np.diff(shares, axis=0, prepend=start[None])))
        self.start, self.day = start, 0
        self.fees, self.rate = fees, 0.0

    def commission(self, quantity: float, price: float) -> float:
        return self.rate * abs(quantity) * price

    def __call__(self, strategy: Any) -> bool:
        names = list(strategy.universe.columns)
        if self.day == 0:
            self._send(strategy, names, self.start)
            strategy.set_commissions(self.commission)
        if self.day in self.shares:
            self._send(strategy, names, self.shares[self.day])
        self.day += 1
        return True

    def _send(self, strategy: Any, names: list[str], orders: Float) -> None:
        for name, order in zip(names, orders, strict=True):
            self.rate = self.fees[name]
            if order != 0.0:
                strategy.transact(float(order), child=name)


def bt_equity(market: ObservedMarket, curve: Curve, env: EnvSettings) -> Float:
    """The value over its start that `bt` finds at each close, shape [D].

    A curve's value is that before the trade of the close, `bt`'s that after it: what `bt` itself
    charged at that close is added.
    """
    closes = closes_of(market, curve)
    n = closes.shape[1]
    start = CAPITAL / n / closes.to_numpy()[0]
    fees = {name: env.fees.get(name, env.fee) for name in closes.columns}
    orders = Orders(start, shares_of(curve, closes), fees)
    test = bt.Backtest(
        bt.Strategy(curve.name, [orders]),
        closes,
        initial_capital=CAPITAL,
        commissions=lambda quantity, price: 0.0,
        integer_positions=False,
        progress_bar=False,
    )
    test.run()
    before = test.strategy.values.to_numpy() + test.strategy.fees.to_numpy()
    return np.asarray(before[-len(curve) :] / CAPITAL)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("fees", [{}, {"S01": 0.0, "S02": 0.02}], ids=["one", "by asset"])
def test_net_equity_is_that_of_bt(lag: int, fees: dict[str, float]) -> None:
    env = EnvSettings(fee=0.005, fees=fees, execution_lag=lag, trade_rate=0.5)
    market = observe(random_prices(5, 600), MarketSettings(anchor_refit=63), env)
    for curve in baselines(market, market.splits.test, env):
        equity = bt_equity(market, curve, env)
        np.testing.assert_allclose(equity, curve.value, rtol=1e-9, err_msg=curve.name)
    free = dataclasses.replace(env, fee=0.0, fees={})
    assert abs(bt_equity(market, curve, free)[-1] / curve.value[-1] - 1.0) > 1e-5


@pytest.mark.slow
def test_net_equity_is_that_of_bt_on_us20() -> None:
    market = us20_market()
    curves = baselines(market, market.splits.test, market.env)
    for curve in (c for c in curves if c.name in ("equal_weight", "anchors' average")):
        equity = bt_equity(market, curve, market.env)
        np.testing.assert_allclose(equity, curve.value, rtol=1e-9, err_msg=curve.name)
        assert curve.cost.sum() > 0.001
