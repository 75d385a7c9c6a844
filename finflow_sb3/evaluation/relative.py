"""A curve beside a reference: alpha, beta, tracking error, capture."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Estimate", "Relative"]


@dataclass(frozen=True)
class Estimate:
    """A coefficient of a regression: its value, Newey–West error and two-sided p-value."""

    value: float
    error: float
    p_value: float


@dataclass(frozen=True)
class Relative:
    """One curve against a reference on the same days; nan where something is undefined.

    Attributes
    ----------
    reference : name of the reference curve
    days, lags : of the regression, and lags of its Newey–West errors
    alpha : annual (252 times the daily intercept, excess of cash, arithmetic)
    beta : to the reference's excess return
    r_squared, correlation : of daily excess returns
    tracking_error : annual standard deviation of the daily difference of returns
    information_ratio : annual mean difference over the tracking error
    up_capture, down_capture : geometric mean monthly return in months in which the reference
        rose (fell), over the reference's own in these months; 1 is as much as the reference
    up_months, down_months : how many months these are
    """

    reference: str
    days: int
    lags: int
    alpha: Estimate
    beta: Estimate
    r_squared: float
    correlation: float
    tracking_error: float
    information_ratio: float
    up_capture: float
    down_capture: float
    up_months: int
    down_months: int
