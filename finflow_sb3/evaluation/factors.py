"""A curve's exposure to factor returns."""

from __future__ import annotations

from dataclasses import dataclass

from finflow_sb3.evaluation.relative import Estimate

__all__ = ["FactorModel", "Loading"]


@dataclass(frozen=True)
class Loading:
    """Exposure to one factor; `name` says what it is, such as "MTUM above market"."""

    name: str
    estimate: Estimate


@dataclass(frozen=True)
class FactorModel:
    """Regression of a curve's excess returns on factors.

    Attributes
    ----------
    source : where the factors come from
    market : what stands for the market
    first, last : ISO dates of the days that both have; empty where there are none
    days, lags : common days, and lags of the Newey–West errors
    alpha : annual, what the factors do not explain; None where there are too few days
    loadings : one for each factor, the market first; empty where there are too few days
    r_squared : share of the variance that the factors explain; nan likewise
    sentence : what was found, or why there is nothing
    """

    source: str
    market: str
    first: str
    last: str
    days: int
    lags: int
    alpha: Estimate | None
    loadings: tuple[Loading, ...]
    r_squared: float
    sentence: str
