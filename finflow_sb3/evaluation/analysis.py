"""Everything that is said about one curve beside equal weight, in one frozen record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finflow_sb3.evaluation.bootstrap import Interval
from finflow_sb3.evaluation.factors import FactorModel
from finflow_sb3.evaluation.periods import MonthReturn, Phases, Stress, YearReturn
from finflow_sb3.evaluation.relative import Relative
from finflow_sb3.evaluation.significance import Significance

__all__ = ["Analysis", "CurveIntervals", "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """How a curve did against equal weight, in plain language.

    ``outcome`` is "better" or "worse" where the interval of the Sharpe difference leaves out 0,
    else "cannot be told". ``headline`` is a few words, ``sentence`` one sentence with figures.
    """

    outcome: Literal["better", "worse", "cannot be told"]
    headline: str
    sentence: str


@dataclass(frozen=True)
class CurveIntervals:
    """Annual Sharpe ratio of one curve, and its difference to equal weight's.

    ``difference`` is None for equal weight itself.
    """

    name: str
    sharpe: Interval
    difference: Interval | None


@dataclass(frozen=True)
class Analysis:
    """What is known about a policy on the days of a backtest, net of costs.

    Attributes
    ----------
    policy : name of the curve
    execution_lag : of it and of all that it is compared with
    first, last : ISO dates of the first and last return
    days : how many
    level : probability of every interval, in percent
    draws, block : of the stationary bootstrap; mean length of its blocks in days
    verdict : better than equal weight, worse, or cannot be told
    intervals : one for each curve, the policy's first
    significance : of the policy's Sharpe ratio
    relative : against equal weight, then the index and the anchors' average where there are such
    factors : None where the settings name none
    months, years : net returns of the policy and of equal weight
    phases : rising and falling markets
    stress : the settings' stress windows
    """

    policy: str
    execution_lag: int
    first: str
    last: str
    days: int
    level: int
    draws: int
    block: int
    verdict: Verdict
    intervals: tuple[CurveIntervals, ...]
    significance: Significance
    relative: tuple[Relative, ...]
    factors: FactorModel | None
    months: tuple[MonthReturn, ...]
    years: tuple[YearReturn, ...]
    phases: Phases
    stress: Stress

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: None where a figure is undefined."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
