"""Everything that is said about one curve beside equal weight, in one frozen record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finflow_sb3.config_evaluation import EvaluationSettings
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.bootstrap import Interval, block_days, sharpe_gap, sharpe_interval
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.factors import FactorModel, factor_model, load_factors
from finflow_sb3.evaluation.periods import (
    MonthReturn,
    Phases,
    Stress,
    YearReturn,
    by_month,
    by_year,
    phases,
    stress,
)
from finflow_sb3.evaluation.relative import Relative, relative
from finflow_sb3.evaluation.significance import Significance, significance

__all__ = ["Analysis", "CurveIntervals", "Verdict", "analyse"]

Float = NDArray[np.float64]

Outcome = Literal["better", "worse", "cannot be told"]
EQUAL_WEIGHT, INDEX, ANCHORS = "equal_weight", "index", "anchors' average"


@dataclass(frozen=True)
class Verdict:
    """How a curve did against equal weight, in plain language.

    ``outcome`` is "better" or "worse" where the interval of the Sharpe difference leaves out 0,
    else "cannot be told". ``headline`` is a few words, ``sentence`` one sentence with figures.
    """

    outcome: Outcome
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


def analyse(
    policy: Curve,
    others: Sequence[Curve],
    cash_rate: Float | float | None,
    settings: EvaluationSettings,
    sharpes: ArrayLike | None = None,
    seed: int = 0,
) -> Analysis:
    """Compare one curve with equal weight, the index and the anchors' average.

    Parameters
    ----------
    policy : the curve in question
    others : curves at its execution lag, equal_weight among them; each gets its intervals
    cash_rate : simple daily rate on each day, shape [D] or one number; None stands for 0
    settings : level, draws and mean block of the bootstrap, trials, factors, stress windows. A
        block of `auto` is Politis and White's for the daily difference of policy and equal
        weight.
    sharpes : annual Sharpe ratios of all configurations that were tried, where they are known
    seed : of the bootstrap; the same seed gives the same record

    Raises
    ------
    DataError
        If equal weight is missing, curves have other days or lags, a return is not a number,
        or the factors cannot be read.
    """
    _check(policy, others)
    equal = next(c for c in others if c.name == EQUAL_WEIGHT)
    index = next((c for c in others if c.name == INDEX), None)
    rate = _rate(policy, cash_rate)
    block = block_days(settings.block, policy.returns - equal.returns)
    bootstrap = {"level": settings.level, "block": block, "draws": settings.draws, "seed": seed}
    intervals = tuple(_intervals(curve, equal, rate, bootstrap) for curve in (policy, *others))
    excess = policy.returns - rate
    references = [equal, *(c for n in (INDEX, ANCHORS) for c in others if c.name == n)]
    table = None if settings.factors is None else load_factors(settings.factors)
    return Analysis(
        policy=policy.name,
        execution_lag=policy.execution_lag,
        first=str(policy.dates[0]),
        last=str(policy.dates[-1]),
        days=len(policy),
        level=settings.level,
        draws=settings.draws,
        block=block,
        verdict=_verdict(policy, intervals),
        intervals=intervals,
        significance=significance(excess, settings.trials, settings.level, sharpes),
        relative=tuple(relative(policy, reference, rate) for reference in references),
        factors=None if table is None else factor_model(policy, equal, table, rate),
        months=by_month(policy, equal),
        years=by_year(policy, equal),
        phases=phases(policy, equal, index or equal, rate),
        stress=stress(policy, equal, settings.stress, rate),
    )


def _check(policy: Curve, others: Sequence[Curve]) -> None:
    if EQUAL_WEIGHT not in [c.name for c in others]:
        raise DataError("analysis: no equal_weight among the other curves; add it")
    for curve in (policy, *others):
        if not np.array_equal(curve.dates, policy.dates):
            raise DataError(
                f"analysis: {curve.name} has other days than {policy.name}; backtest both on the "
                "same split"
            )
        if curve.execution_lag != policy.execution_lag:
            raise DataError(
                f"analysis: {curve.name} has lag {curve.execution_lag}, {policy.name} "
                f"{policy.execution_lag}; analyse each lag by itself"
            )
        if len(curve) == 0 or not np.isfinite(curve.returns).all():
            raise DataError(f"analysis: {curve.name} has no days, or a return that is no number")


def _rate(policy: Curve, cash_rate: Float | float | None) -> Float:
    rate = np.asarray(0.0 if cash_rate is None else cash_rate, dtype=np.float64)
    if rate.shape not in ((), (len(policy),)):
        raise DataError(
            f"analysis: cash_rate has shape {rate.shape}, the curves {len(policy)} days; give one "
            "rate for each day"
        )
    return np.broadcast_to(rate, (len(policy),))


def _intervals(
    curve: Curve, equal: Curve, rate: Float, bootstrap: Mapping[str, int]
) -> CurveIntervals:
    excess = curve.returns - rate
    gap = None if curve is equal else sharpe_gap(excess, equal.returns - rate, **bootstrap)
    return CurveIntervals(curve.name, sharpe_interval(excess, **bootstrap), gap)


def _verdict(policy: Curve, intervals: Sequence[CurveIntervals]) -> Verdict:
    from finflow_sb3.evaluation.plot_style import label  # it takes matplotlib along

    ours = intervals[0]
    theirs = next(found for found in intervals if found.difference is None)
    assert ours.difference is not None
    outcome, headline, judgement = _judgement(ours.difference)
    sentence = (
        f"Net of costs, {policy.dates[0]} to {policy.dates[-1]}, {label(policy.name)} had a "
        f"Sharpe ratio of {_figure(ours.sharpe.value)} against {_figure(theirs.sharpe.value)} "
        f"for equal weight: {judgement}."
    )
    return Verdict(outcome, headline, sentence)


def _judgement(gap: Interval) -> tuple[Outcome, str, str]:
    """Outcome, headline, and the end of the sentence that says how sure it is."""
    unsure: Outcome = "cannot be told"
    if math.isnan(gap.value):
        return unsure, "Cannot be compared", "a ratio is undefined, so the two cannot be compared"
    if math.isnan(gap.low):
        return (
            unsure,
            "Too few days to tell",
            "over so few days, which of the two is better cannot be told",
        )
    interval = f"{gap.level} % interval {_figure(gap.low)} to {_figure(gap.high)}"
    much = f"a difference of {_figure(gap.value)}"
    if gap.sign == 0:
        return (
            unsure,
            "Cannot be told from equal weight",
            f"{much} ({interval}), so that which of the two is better cannot be told from these "
            "days",
        )
    outcome: Outcome = "better" if gap.sign > 0 else "worse"
    return (
        outcome,
        f"{outcome.capitalize()} than equal weight",
        f"{much} ({interval}), more than chance explains",
    )


def _figure(value: float) -> str:
    """Two decimals, a true minus, no minus before a zero, a dash where it is undefined."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.2f}"
    return text.lstrip("-") if float(text) == 0.0 else text.replace("-", "−")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
