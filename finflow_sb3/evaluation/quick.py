"""The few figures that choose an epoch or a checkpoint on the validation split."""

from __future__ import annotations

import numpy as np

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.backtest import Act, backtest
from finflow_sb3.evaluation.curve import TRADING_DAYS, Curve
from finflow_sb3.evaluation.metrics import measures

__all__ = ["untrained", "validate"]


def validate(market: ObservedMarket, env: EnvSettings, act: Act) -> dict[str, float]:
    """Net figures of one deterministic pass through the validation split.

    Returns
    -------
    sharpe, annual_return, max_drawdown, turnover (a year), and `excess`: mean daily log return
    above equal weight, annualised, which is what the default reward pays for
    """
    span = market.splits.validation
    curve = backtest(market, span, env, act, "policy")
    found = measures(curve, market.prices.cash_rate[span.start + 1 : span.stop])
    names = ("sharpe", "annual_return", "max_drawdown", "turnover")
    return {**{name: found[name] for name in names}, "excess": _excess(curve, market)}


def _excess(curve: Curve, market: ObservedMarket) -> float:
    span = market.splits.validation
    baseline = np.log1p(market.equal_weight[span.start + 1 : span.stop])
    return float(np.mean(np.log1p(curve.returns) - baseline) * TRADING_DAYS)


def untrained(market: ObservedMarket, env: EnvSettings) -> dict[str, float]:
    """The same for the zero action: in base `anchors`, the anchors' plain average."""
    zero = np.zeros((1, market.layout.action_size), dtype=np.float32)
    return validate(market, env, lambda _: zero)
