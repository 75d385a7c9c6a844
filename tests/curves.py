"""Curves of made-up returns that tests of an evaluation share."""

from __future__ import annotations

import numpy as np
from markets import business_days
from numpy.typing import NDArray

from finflow_sb3.evaluation.curve import Curve

__all__ = ["curve_of"]


def curve_of(
    returns: NDArray[np.float64] | list[float],
    name: str = "cqsac",
    lag: int = 0,
    start: str = "2014-12-31",
) -> Curve:
    """A curve of one asset with these net returns on weekdays; `start` is the first decision."""
    values = np.asarray(returns, dtype=np.float64)
    days = business_days(len(values) + 1, start)
    return Curve(
        name=name,
        dates=days[1:],
        decisions=days[:-1],
        returns=values,
        weights=np.tile([1.0, 0.0], (len(values), 1)),
        turnover=np.zeros(len(values)),
        cost=np.zeros(len(values)),
        assets=("A",),
        execution_lag=lag,
    )
