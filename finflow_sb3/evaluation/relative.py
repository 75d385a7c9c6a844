"""A curve beside a reference: alpha, beta, tracking error, capture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import TRADING_DAYS, Curve

__all__ = [
    "Estimate",
    "Regression",
    "Relative",
    "annual_alpha",
    "first_days",
    "newey_west_lags",
    "regression",
    "relative",
    "stretch_returns",
]

Float = NDArray[np.float64]

# Days below which a regression says nothing: a quarter of a year.
FEWEST = 63
FLAT = 1e-14
# Residuals below this share of the returns' deviation are rounding.
EXACT = 1e-10


@dataclass(frozen=True)
class Estimate:
    """A coefficient of a regression: its value, Newey–West error and two-sided p-value."""

    value: float
    error: float
    p_value: float


@dataclass(frozen=True)
class Regression:
    """Least squares with Newey–West errors.

    Attributes
    ----------
    intercept : in the units of a day
    slopes : one for each regressor
    r_squared : share of the variance that is explained
    lags : of the errors
    """

    intercept: Estimate
    slopes: tuple[Estimate, ...]
    r_squared: float
    lags: int


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


def newey_west_lags(days: int) -> int:
    """Lags of a Newey–West error: 4·(D/100)^(2/9), rounded down (Newey & West 1994)."""
    return int(4.0 * (days / 100.0) ** (2.0 / 9.0))


def regression(target: Float, regressors: Float) -> Regression | None:
    """Least squares of `target`, shape [D], on `regressors`, shape [D, k], and a constant.

    Errors are those of Newey & West (1987) with `newey_west_lags` lags, corrected for the
    number of coefficients, p-values from Student's t, all by statsmodels. Of an exact fit the
    errors are 0 and the p-values nan.

    Returns
    -------
    Regression, or None on fewer than 63 days, and where a series is constant or regressors hang
    together
    """
    import statsmodels.api as sm

    days = len(target)
    spread = regressors.std(axis=0)
    if days < FEWEST or np.std(target) <= FLAT or np.any(spread <= FLAT):
        return None
    # In units of their deviations, so that the rank does not depend on the size of returns.
    scaled = sm.add_constant(regressors / spread)
    if np.linalg.matrix_rank(scaled, tol=1e-9 * math.sqrt(days)) < scaled.shape[1]:
        return None
    lags = newey_west_lags(days)
    found = sm.OLS(target, scaled).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": True}, use_t=True
    )
    unit = np.concatenate([[1.0], spread])
    errors, chances = found.bse, found.pvalues
    if np.std(found.resid) <= EXACT * np.std(target):
        # What is left is rounding, of which errors and p-values would be an artefact.
        errors, chances = np.zeros(len(unit)), np.full(len(unit), np.nan)
    each = [
        Estimate(float(value / u), float(error / u), float(p))
        for value, error, p, u in zip(found.params, errors, chances, unit, strict=True)
    ]
    return Regression(each[0], tuple(each[1:]), float(found.rsquared), lags)


def annual_alpha(daily: Estimate) -> Estimate:
    """A daily intercept as 252 days of it."""
    return Estimate(daily.value * TRADING_DAYS, daily.error * TRADING_DAYS, daily.p_value)


def relative(
    curve: Curve, reference: Curve, cash_rate: Float | float = 0.0, name: str | None = None
) -> Relative:
    """A curve against a reference.

    Parameters
    ----------
    cash_rate : simple daily rate on each day, shape [D] or one number; alpha, beta and
        correlation are of returns in excess of it
    name : of the reference, its curve's own if not given

    Returns
    -------
    Relative
        nan: alpha and beta on fewer than 63 days and where one of the two is constant, information
        ratio and tracking error of a single day, information ratio where both earn the same
        every day, a capture without such a month.

    Raises
    ------
    DataError
        If the two have other days.
    """
    if not np.array_equal(curve.dates, reference.dates):
        raise DataError(
            f"{curve.name} has other days than {reference.name}; backtest both on the same split"
        )
    ours, theirs = curve.returns - cash_rate, reference.returns - cash_rate
    fit = regression(ours, theirs[:, None])
    unknown = Estimate(math.nan, math.nan, math.nan)
    error, ratio = _active(curve.returns - reference.returns)
    months = first_days(curve.dates, "M")
    mine, market = (stretch_returns(c.returns, months) for c in (curve, reference))
    return Relative(
        reference=name or reference.name,
        days=len(curve),
        lags=newey_west_lags(len(curve)),
        alpha=annual_alpha(fit.intercept) if fit else unknown,
        beta=fit.slopes[0] if fit else unknown,
        r_squared=fit.r_squared if fit else math.nan,
        correlation=_correlation(ours, theirs),
        tracking_error=error,
        information_ratio=ratio,
        up_capture=_capture(mine, market, market > 0.0),
        down_capture=_capture(mine, market, market < 0.0),
        up_months=int((market > 0.0).sum()),
        down_months=int((market < 0.0).sum()),
    )


def first_days(dates: NDArray[np.datetime64], unit: Literal["M", "Y"]) -> NDArray[np.int64]:
    """Positions of the first day of each calendar month or year among `dates`."""
    parts = dates.astype(f"datetime64[{unit}]")
    return np.flatnonzero(np.concatenate([[True], parts[1:] != parts[:-1]]))


def stretch_returns(returns: Float, starts: NDArray[np.int64]) -> Float:
    """Simple returns of the stretches that begin at `starts`, shape [len(starts)]."""
    return np.asarray(np.multiply.reduceat(1.0 + returns, starts) - 1.0)


def _active(difference: Float) -> tuple[float, float]:
    """Tracking error and information ratio of daily differences of returns."""
    if len(difference) < 2:
        return math.nan, math.nan
    deviation = float(np.std(difference, ddof=1))
    if deviation <= FLAT:
        return 0.0, math.nan
    annual = math.sqrt(TRADING_DAYS)
    return deviation * annual, float(np.mean(difference)) / deviation * annual


def _correlation(first: Float, second: Float) -> float:
    if len(first) < 2 or first.std() <= FLAT or second.std() <= FLAT:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _capture(ours: Float, theirs: Float, chosen: NDArray[np.bool_]) -> float:
    """Ratio of geometric mean monthly returns in the chosen months."""
    if not chosen.any():
        return math.nan
    mine, market = (float(_geometric_mean(r[chosen])) for r in (ours, theirs))
    return mine / market if abs(market) > FLAT else math.nan


def _geometric_mean(returns: Float) -> float:
    growth = float(np.prod(1.0 + returns))
    return growth ** (1.0 / len(returns)) - 1.0 if growth > 0.0 else -1.0
