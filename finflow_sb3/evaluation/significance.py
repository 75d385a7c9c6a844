"""How sure a Sharpe ratio is, and what is left of it after the search that found it.

Bailey & López de Prado: "The Sharpe ratio efficient frontier" (2012) for the probabilistic ratio
and the minimum track record, "The deflated Sharpe ratio" (2014) for what many trials do to the
best of them. All three allow for skewed and fat-tailed returns, and take days as independent; the
bootstrap's interval does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import TRADING_DAYS

__all__ = [
    "Significance",
    "expected_best",
    "minimum_track_record",
    "probabilistic_sharpe",
    "significance",
]

Float = NDArray[np.float64]

NORMAL = NormalDist()
ANNUAL = math.sqrt(TRADING_DAYS)
FLAT = 1e-14


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


def significance(
    excess: Float, trials: int = 1, level: int = 95, sharpes: ArrayLike | None = None
) -> Significance:
    """Probabilistic and deflated Sharpe ratio of daily excess returns, shape [D].

    Parameters
    ----------
    trials : configurations that were tried, the shown one among them
    sharpes : annual Sharpe ratios of all of them, shape [trials], where they are known; their
        number then stands for `trials`. Without them the trials are taken to differ by chance
        alone, √(252 / (D − 1)) a year, as ratios of D independent days around zero do.

    Returns
    -------
    Significance
        All nan, but for what was given, on fewer than 4 days and for constant returns.

    Raises
    ------
    DataError
        If `trials` is below 1 or one of `sharpes` is not a number.
    """
    days = len(excess)
    known = None if sharpes is None else _known(sharpes)
    trials = trials if known is None else len(known)
    if trials < 1:
        raise DataError(f"significance: {trials} trials; the one that is shown counts too")
    if days < 4 or float(np.std(excess)) <= FLAT:
        nothing = math.nan
        return Significance(
            *(nothing, nothing, nothing, days, nothing, level, nothing, trials),
            *(nothing, known is None, nothing, nothing),
        )
    centred = excess - excess.mean()
    spread = float(np.std(excess))
    skewness = float(np.mean(centred**3)) / spread**3
    kurtosis = float(np.mean(centred**4)) / spread**4
    daily = float(excess.mean()) / float(np.std(excess, ddof=1))
    deviation = 1.0 / math.sqrt(days - 1) if known is None else _spread(known) / ANNUAL
    best = expected_best(trials, deviation)
    return Significance(
        sharpe=daily * ANNUAL,
        skewness=skewness,
        kurtosis=kurtosis,
        days=days,
        probabilistic=probabilistic_sharpe(daily, days, skewness, kurtosis),
        level=level,
        minimum_days=minimum_track_record(daily, skewness, kurtosis, level),
        trials=trials,
        trials_deviation=deviation * ANNUAL,
        assumed=known is None,
        expected_best=best * ANNUAL,
        deflated=probabilistic_sharpe(daily, days, skewness, kurtosis, best),
    )


def probabilistic_sharpe(
    sharpe: float, days: int, skewness: float, kurtosis: float, against: float = 0.0
) -> float:
    """Probability that the true daily Sharpe ratio lies above `against`, 0 to 1.

    Φ((SR − SR*)·√(D − 1) / √(1 − γ₃·SR + (γ₄ − 1)/4·SR²)), equation 9 of Bailey & López de
    Prado (2012).

    Parameters
    ----------
    sharpe, against : daily Sharpe ratios, as observed and as compared with
    days : D
    skewness, kurtosis : γ₃ and γ₄ of daily excess returns; a normal distribution has 0 and 3
    """
    scale = math.sqrt(_estimator_variance(sharpe, skewness, kurtosis))
    return NORMAL.cdf((sharpe - against) * math.sqrt(days - 1) / scale)


def minimum_track_record(
    sharpe: float, skewness: float, kurtosis: float, level: int = 95, against: float = 0.0
) -> float:
    """Days after which a daily Sharpe ratio lies above `against` with this confidence.

    1 + (1 − γ₃·SR + (γ₄ − 1)/4·SR²)·(z / (SR − SR*))², equation 11 of Bailey & López de Prado
    (2012), z the normal quantile at `level` percent. nan where `sharpe` is not above `against`.
    """
    if not sharpe > against:
        return math.nan
    quantile = NORMAL.inv_cdf(level / 100)
    variance = _estimator_variance(sharpe, skewness, kurtosis)
    return 1.0 + variance * (quantile / (sharpe - against)) ** 2


def expected_best(trials: int, deviation: float) -> float:
    """Sharpe ratio that the best of `trials` without skill is expected to reach.

    √V·((1 − γ)·Φ⁻¹(1 − 1/N) + γ·Φ⁻¹(1 − 1/(N·e))), γ Euler's constant, V the variance of the
    trials' ratios: Bailey & López de Prado (2014). 0 for a single trial. In the units of
    `deviation`, which is √V. Trials that resemble each other make the true figure smaller.
    """
    if trials == 1:
        return 0.0
    gamma = float(np.euler_gamma)
    return deviation * (
        (1.0 - gamma) * NORMAL.inv_cdf(1.0 - 1.0 / trials)
        + gamma * NORMAL.inv_cdf(1.0 - 1.0 / (trials * math.e))
    )


def _estimator_variance(sharpe: float, skewness: float, kurtosis: float) -> float:
    """Variance of the estimated ratio times D − 1 (Mertens 2002); positive for real moments."""
    return 1.0 - skewness * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2


def _known(sharpes: ArrayLike) -> Float:
    found = np.asarray(sharpes, dtype=np.float64).ravel()
    if not np.isfinite(found).all():
        raise DataError("significance: a trial's Sharpe ratio is not a number; leave that one out")
    return found


def _spread(sharpes: Float) -> float:
    return float(np.std(sharpes, ddof=1)) if len(sharpes) > 1 else 0.0
