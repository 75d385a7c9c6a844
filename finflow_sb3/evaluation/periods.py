"""Net returns by month and year, in rising and falling markets, and in stress windows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Figures", "MonthReturn", "Period", "Phases", "Stress", "YearReturn"]


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
