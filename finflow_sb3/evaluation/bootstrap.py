"""Intervals of Sharpe ratios by the stationary bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval:
    """A figure and where its true value lies.

    Attributes
    ----------
    value : as found
    low, high : ends of the interval; nan where there is too little to tell
    level : probability that the interval is meant to hold, in percent
    """

    value: float
    low: float
    high: float
    level: int

    @property
    def sign(self) -> int:
        """1 where the whole interval is above zero, −1 where it is below, 0 otherwise."""
        return int(self.low > 0.0) - int(self.high < 0.0)
