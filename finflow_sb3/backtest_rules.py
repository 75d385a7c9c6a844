"""The verb `backtest_baselines`: rules on a universe, without a trained policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.baselines import baselines, remarks
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.market.splits import Span
from finflow_sb3.opening import open_market
from finflow_sb3.results import Backtested, Watch

__all__ = ["LAGS", "SPLITS", "Split", "backtest_baselines", "measured", "split_span"]

LAGS = (0, 1)
SPLITS = ("train", "validation", "test", "all")
Split = Literal["train", "validation", "test", "all"]


def backtest_baselines(
    settings: Settings, split: Split = "test", watch: Watch | None = None
) -> Backtested:
    """Backtest the rules of `settings.evaluation` at both lags, net of costs.

    Parameters
    ----------
    split : the period; ``all`` is from the first day with a year of history to the last
    """
    watch = watch or Watch()
    market = open_market(settings, watch=watch)
    span = split_span(market, split)
    curves = [
        curve
        for lag in LAGS
        for curve in baselines(
            market,
            span,
            settings.env_kwargs,
            settings.evaluation,
            lag,
            lambda done, total: watch.progress("baselines", done, total),
        )
    ]
    return Backtested(
        prices=settings.market.prices,
        split=split,
        dates=span.return_dates(market.prices.dates),
        measures=measured(curves, market.prices.cash_rate[span.start + 1 : span.stop]),
        notes=remarks(curves, market.prices.assets, settings.evaluation),
    )


def measured(
    curves: Iterable[Curve], cash_rate: NDArray[np.float64]
) -> dict[str, dict[str, dict[str, float]]]:
    """Measures by name of the curve and by lag, as in ``["hrp"]["lag_0"]["sharpe"]``."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for curve in curves:
        out.setdefault(curve.name, {})[f"lag_{curve.execution_lag}"] = measures(curve, cash_rate)
    return out


def split_span(market: ObservedMarket, split: Split) -> Span:
    """The rows of a period, as `backtest_baselines` names it."""
    if split == "all":
        return Span(market.splits.train.start, market.splits.test.stop)
    return market.splits.named()[split]
