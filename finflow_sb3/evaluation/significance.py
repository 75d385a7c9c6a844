"""How sure a Sharpe ratio is, and what is left of it after the search that found it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Significance"]


@dataclass(frozen=True)
class Significance:
    """One Sharpe ratio with what chance alone would have made of it.

    Attributes
    ----------
    sharpe : annual Sharpe ratio of the excess returns
    skewness, kurtosis : of daily excess returns; a normal distribution has 0 and 3
    days : length of the record
    probabilistic : probability that the true Sharpe ratio lies above zero (0 to 1)
    level : confidence of `minimum_days`, in percent
    minimum_days : days of record that this Sharpe ratio needs to lie above zero at `level`; nan
        where it is not above zero
    trials : configurations that were tried before this one was shown
    trials_deviation : standard deviation of the trials' annual Sharpe ratios
    assumed : True where no trials' Sharpe ratios were given, so that `trials_deviation` is what
        chance alone would give over as many days
    expected_best : annual Sharpe ratio that the best of so many trials without skill reaches
    deflated : probability that the true Sharpe ratio lies above `expected_best` (0 to 1)
    """

    sharpe: float
    skewness: float
    kurtosis: float
    days: int
    probabilistic: float
    level: int
    minimum_days: float
    trials: int
    trials_deviation: float
    assumed: bool
    expected_best: float
    deflated: float
