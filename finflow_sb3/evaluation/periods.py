"""Net returns by month and year, in rising and falling markets, and in stress windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import drawdown, sharpe
from finflow_sb3.evaluation.relative import first_days, stretch_returns

__all__ = [
    "Figures",
    "MonthReturn",
    "Period",
    "Phases",
    "Stress",
    "YearReturn",
    "by_month",
    "by_year",
    "phases",
    "stress",
    "turning_points",
]

Float = NDArray[np.float64]

THRESHOLD = 0.2


@dataclass(frozen=True)
class Figures:
    """What one curve did in one period: net return, annual Sharpe ratio, largest drawdown."""

    total_return: float
    sharpe: float
    max_drawdown: float


@dataclass(frozen=True)
class MonthReturn:
    """Net returns in one month (1 to 12), on `days` days."""

    year: int
    month: int
    days: int
    policy: float
    equal_weight: float


@dataclass(frozen=True)
class YearReturn:
    """Net returns in one year, on `days` days; the first and last may be parts of a year."""

    year: int
    days: int
    policy: float
    equal_weight: float


@dataclass(frozen=True)
class Period:
    """A stretch of days and what the curves did in it.

    Attributes
    ----------
    name : "bull", "bear", or the name of a stress window
    first, last : ISO dates of the first and last day that counts
    days : how many
    whole : False where the period began before the curves or goes on after them
    policy, equal_weight : figures of the two
    """

    name: str
    first: str
    last: str
    days: int
    whole: bool
    policy: Figures
    equal_weight: Figures


@dataclass(frozen=True)
class Phases:
    """Rises and falls of the market, in order. They are known only afterwards.

    Attributes
    ----------
    reference : the curve by which they were told apart
    threshold : the fall from a peak (and rise from a trough) that makes one, as a fraction
    periods : named "bull" and "bear"
    sentence : the rule, and that it looks back
    """

    reference: str
    threshold: float
    periods: tuple[Period, ...]
    sentence: str


@dataclass(frozen=True)
class Stress:
    """Stress windows within the days, and one sentence for each that was left out or cut."""

    periods: tuple[Period, ...]
    remarks: tuple[str, ...]


def by_month(policy: Curve, equal_weight: Curve) -> tuple[MonthReturn, ...]:
    """Net returns of each calendar month; the first and last may be parts of one."""
    starts = first_days(policy.dates, "M")
    ours, theirs = (stretch_returns(c.returns, starts) for c in (policy, equal_weight))
    months = policy.dates[starts].astype("datetime64[M]").astype(np.int64)
    days = np.diff(starts, append=len(policy))
    return tuple(
        MonthReturn(1970 + int(m) // 12, int(m) % 12 + 1, int(d), float(a), float(b))
        for m, d, a, b in zip(months, days, ours, theirs, strict=True)
    )


def by_year(policy: Curve, equal_weight: Curve) -> tuple[YearReturn, ...]:
    """Net returns of each calendar year."""
    years = policy.dates.astype("datetime64[Y]")
    starts = first_days(policy.dates, "Y")
    ours, theirs = (stretch_returns(c.returns, starts) for c in (policy, equal_weight))
    days = np.diff(starts, append=len(policy))
    return tuple(
        YearReturn(1970 + int(y), int(d), float(a), float(b))
        for y, d, a, b in zip(years[starts].astype(np.int64), days, ours, theirs, strict=True)
    )


def phases(
    policy: Curve, equal_weight: Curve, reference: Curve, cash_rate: Float | float = 0.0
) -> Phases:
    """Rising and falling markets by a rule on `reference`, with what the curves did in them.

    A fall of 20 % from the highest close begins a bear market on the day after that close; it
    ends with its lowest close, once the reference has risen 20 % from there. All other days are
    a bull market, the first ones too, whatever was before them. Both turns are known only
    afterwards, so that nothing can be earned by the rule.

    Parameters
    ----------
    reference : the index, or equal weight where there is none
    cash_rate : simple daily rate on each day, shape [D] or one number
    """
    edges = [0, *turning_points(reference.value), len(reference)]
    periods = [
        _period(
            "bear" if place % 2 else "bull",
            slice(start, stop),
            start > 0 and stop < len(reference),
            policy,
            equal_weight,
            cash_rate,
        )
        for place, (start, stop) in enumerate(pairwise(edges))
        if stop > start
    ]
    name = reference.name.replace("_", " ")
    sentence = (
        f"A bear market is a fall of {100 * THRESHOLD:.0f} % from a peak of {name}; it ends at the "
        "trough from which as much is regained. Both turns are known only afterwards."
    )
    return Phases(reference.name, THRESHOLD, tuple(periods), sentence)


def turning_points(value: Float, threshold: float = THRESHOLD) -> list[int]:
    """First days of bear and bull markets in turn, beginning with a bear market.

    Parameters
    ----------
    value : shape [D], value at the end of each day of a curve that starts from 1
    threshold : fall from a peak and rise from a trough that make one, as a fraction
    """
    turns: list[int] = []
    extreme, since, falling = 1.0, 0, False
    for day, now in enumerate(value):
        if (now < extreme) if falling else (now > extreme):
            extreme, since = float(now), day + 1
        bound = extreme * (1.0 + threshold if falling else 1.0 - threshold)
        if (now >= bound) if falling else (now <= bound):
            turns.append(since)
            extreme, since, falling = float(now), day + 1, not falling
    return turns


def stress(
    policy: Curve,
    equal_weight: Curve,
    windows: Mapping[str, Sequence[str]],
    cash_rate: Float | float = 0.0,
) -> Stress:
    """What the curves did in named windows.

    Parameters
    ----------
    windows : name → [first day, last day], ISO dates, both included
    cash_rate : simple daily rate on each day, shape [D] or one number

    Returns
    -------
    Stress
        A window without a day of the curves is left out, one that is partly outside is cut;
        a remark says so.
    """
    periods, remarks = [], []
    begin, end = policy.decisions[0], policy.dates[-1]
    for name, (first, last) in windows.items():
        start = int(np.searchsorted(policy.dates, np.datetime64(first)))
        stop = int(np.searchsorted(policy.dates, np.datetime64(last), side="right"))
        title = f"{name[:1].upper()}{name[1:]} ({first} to {last})"
        if stop <= start:
            remarks.append(f"{title} is left out: these days are {policy.dates[0]} to {end}.")
            continue
        whole = bool(begin < np.datetime64(first) and np.datetime64(last) <= end)
        if not whole:
            remarks.append(f"{title} is cut to the days from {policy.dates[0]} to {end}.")
        days = slice(start, stop)
        periods.append(_period(name, days, whole, policy, equal_weight, cash_rate))
    return Stress(tuple(periods), tuple(remarks))


def _period(
    name: str,
    days: slice,
    whole: bool,
    policy: Curve,
    equal_weight: Curve,
    cash_rate: Float | float,
) -> Period:
    rate = np.broadcast_to(np.asarray(cash_rate, dtype=np.float64), policy.returns.shape)[days]
    dates = policy.dates[days]
    ours, theirs = (_figures(c.returns[days], rate) for c in (policy, equal_weight))
    return Period(name, str(dates[0]), str(dates[-1]), len(dates), whole, ours, theirs)


def _figures(returns: Float, rate: Float) -> Figures:
    value = np.asarray(np.cumprod(1.0 + returns), dtype=np.float64)
    return Figures(
        total_return=float(value[-1] - 1.0),
        sharpe=sharpe(returns - rate),
        max_drawdown=float(drawdown(value).min()),
    )
