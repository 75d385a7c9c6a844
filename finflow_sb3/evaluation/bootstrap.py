"""Intervals of Sharpe ratios by the stationary bootstrap.

The interval is the symmetric studentised one of Ledoit & Wolf (2008), with the stationary
bootstrap of Politis & Romano (1994) in the place of fixed blocks: each resample's ratio is
compared with the true one in units of its own standard error, so that an error that is itself
estimated from few blocks widens the interval as it should. `benchmarks/coverage.py` measures how
often it holds, beside percentile and basic intervals.

Everything is computed from sums over blocks, which are differences of cumulative sums: no
resample is ever written out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config_evaluation import AUTO
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.curve import TRADING_DAYS

__all__ = [
    "Blocks",
    "Interval",
    "Resampled",
    "block_days",
    "optimal_block",
    "resampled_sharpe",
    "sharpe_gap",
    "sharpe_interval",
    "stationary_blocks",
    "studentised",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

LONGEST_BLOCK = 252
# Fewer blocks of days than this are rotations of the same few days: chance would look certain.
FEWEST_BLOCKS = 3
# Blocks that are worked on at once, of all draws together: some 40 MB.
BATCH = 400_000
# A constant series has a computed variance of about 1e-36, not of zero.
FLAT = 1e-28


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


@dataclass(frozen=True)
class Blocks:
    """Resamples of D days as blocks of days that follow each other, the first after the last.

    Attributes
    ----------
    starts : int64 [draws, K], first day of each block, 0 to D − 1
    lengths : int64 [draws, K], days in it; each row sums to D, a block that is not needed has 0
    """

    starts: Int
    lengths: Int


@dataclass(frozen=True)
class Resampled:
    """A statistic and what the bootstrap made of it, in annual units.

    Attributes
    ----------
    value, error : of the data itself; the error is the statistic's standard error
    values, errors : shape [draws], the same of each resample
    """

    value: float
    error: float
    values: Float
    errors: Float


def stationary_blocks(days: int, block: float, draws: int, rng: np.random.Generator) -> Blocks:
    """Blocks of geometric length with mean `block`, from uniform days on.

    A day is followed by the next one with probability 1 − 1/block and by any day otherwise
    (Politis & Romano 1994). The last block is cut where the days are full.
    """
    chance = 1.0 / block
    width = math.ceil(days * chance + 5.0 * math.sqrt(days * chance)) + 1
    lengths = rng.geometric(chance, (draws, width))
    while lengths.sum(axis=1).min() < days:
        lengths = np.concatenate([lengths, rng.geometric(chance, (draws, width))], axis=1)
    ends = np.minimum(np.cumsum(lengths, axis=1), days)
    ends = ends[:, : int((ends < days).sum(axis=1).max()) + 1]
    lengths = np.diff(ends, axis=1, prepend=0)
    return Blocks(rng.integers(days, size=lengths.shape), lengths)


def optimal_block(series: Float) -> int:
    """Mean block length that Politis & White (2004) choose for the mean of `series`, shape [D].

    Corrected as by Patton, Politis & White (2009), computed by arch, rounded, 1 to 252.
    """
    from arch.bootstrap import optimal_block_length

    if len(series) < 10 or float(np.var(series)) <= FLAT:
        return 1
    found = float(optimal_block_length(series)["stationary"].iloc[0])
    return min(max(round(found), 1), LONGEST_BLOCK) if math.isfinite(found) else 1


def block_days(setting: int | str, series: Float) -> int:
    """Days of the setting `block`: as it says, or `optimal_block` of `series` for auto."""
    return optimal_block(series) if setting == AUTO else int(setting)


def sharpe_interval(
    excess: Float, level: int = 95, block: int = 21, draws: int = 1000, seed: int = 0
) -> Interval:
    """Annual Sharpe ratio of excess returns, shape [D], and its interval.

    The ratio is nan for constant returns and a single day. The interval is nan where the ratio
    is, and below three blocks of days.
    """
    return studentised(resampled_sharpe(excess[None], block, draws, seed), level)


def sharpe_gap(
    first: Float,
    second: Float,
    level: int = 95,
    block: int = 21,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Annual Sharpe ratio of `first` minus that of `second`, and its interval.

    Parameters
    ----------
    first, second : excess returns on the same days, shape [D] each. Days are drawn from both at
        once, which keeps what the two share on a day.

    Raises
    ------
    DataError
        If the two differ in length.
    """
    if len(first) != len(second):
        raise DataError(f"sharpe_gap: {len(first)} and {len(second)} days; compare the same days")
    return studentised(resampled_sharpe(np.stack([first, second]), block, draws, seed), level)


def studentised(found: Resampled, level: int) -> Interval:
    """The symmetric interval value ± q·error.

    q is the quantile at `level` of |resample's value − value| / resample's error.
    """
    if not math.isfinite(found.value) or len(found.values) == 0:
        return Interval(found.value, math.nan, math.nan, level)
    distance = np.abs(found.values - found.value)
    # Two equal curves differ by 0 with error 0, in every resample.
    roots = np.divide(
        distance, found.errors, out=np.where(distance > 0.0, np.inf, 0.0), where=found.errors > 0.0
    )
    reach = float(np.quantile(roots, level / 100, method="higher")) * found.error
    if not math.isfinite(reach):
        return Interval(found.value, math.nan, math.nan, level)
    return Interval(found.value, found.value - reach, found.value + reach, level)


def resampled_sharpe(series: Float, block: int, draws: int, seed: int) -> Resampled:
    """Sharpe ratio of one series, or the difference of two, with its resamples.

    Parameters
    ----------
    series : excess returns, shape [1, D] or [2, D]

    Returns
    -------
    Resampled
        Without resamples where the value is undefined or there are fewer than three blocks.
    """
    days = series.shape[1]
    nothing = np.zeros(0)
    if days < 2 or np.any(series.var(axis=1) <= FLAT):
        return Resampled(math.nan, math.nan, nothing, nothing)
    sums = _Sums(series)
    value, gradient = sums.ratio(sums.moments)
    annual = math.sqrt(TRADING_DAYS)
    if days < FEWEST_BLOCKS * block:
        return Resampled(float(value) * annual, math.nan, nothing, nothing)
    error = _standard_error(np.asarray(gradient @ sums.centred), block)
    values, errors = np.empty(draws), np.empty(draws)
    for part, blocks in _batches(days, block, draws, seed):
        values[part], errors[part] = sums.resample(blocks)
    return Resampled(float(value) * annual, error * annual, values * annual, errors * annual)


def _batches(days: int, block: int, draws: int, seed: int) -> Iterator[tuple[slice, Blocks]]:
    rng = np.random.default_rng(seed)
    step = max(BATCH * block // days, 1)
    for start in range(0, draws, step):
        part = slice(start, min(start + step, draws))
        yield part, stationary_blocks(days, block, part.stop - part.start, rng)


class _Sums:
    """Cumulative sums of a series' first two moments, wrapped round once.

    Attributes
    ----------
    shift : mean of each series, shape [S]; subtracted first, so that squares do not cancel
    centred : shape [2S, D], series and squares, each minus its mean
    moments : means of series and of squares, shape [2S], after the shift
    """

    def __init__(self, series: Float):
        self.days = series.shape[1]
        self.shift = series.mean(axis=1)
        around = series - self.shift[:, None]
        rows = np.concatenate([around, around**2])
        self.moments = rows.mean(axis=1)
        self.centred = rows - self.moments[:, None]
        twice = np.concatenate([self.centred, self.centred], axis=1)
        self.total = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(twice, axis=1)], axis=1)

    def ratio(self, moments: Float) -> tuple[Float, Float]:
        """Daily Sharpe ratio (ddof 1; of two series their difference) and its gradient.

        Parameters
        ----------
        moments : [..., 2S], means of series and squares

        Returns
        -------
        ratio [...] and gradient [..., 2S]
        """
        count = len(self.shift)
        mean, square = moments[..., :count], moments[..., count:]
        scale = self.days / (self.days - 1)
        deviation = np.sqrt(np.maximum((square - mean**2) * scale, FLAT))
        ratios = (mean + self.shift) / deviation
        half = ratios * scale / (2.0 * deviation**2)
        signs = np.array([1.0, -1.0])[:count]
        by_mean, by_square = 1.0 / deviation + 2.0 * half * mean, -half
        gradient = np.concatenate([signs * by_mean, signs * by_square], axis=-1)
        return np.asarray((signs * ratios).sum(axis=-1)), gradient

    def resample(self, blocks: Blocks) -> tuple[Float, Float]:
        """Ratio and its standard error of each resample, shape [draws] each.

        The error is that of Götze & Künsch (1996): blocks are independent given the data, so
        that the variance is the sum of squares of the blocks' sums.
        """
        sums = self.total[:, blocks.starts + blocks.lengths] - self.total[:, blocks.starts]
        means = sums.sum(axis=2) / self.days
        ratio, gradient = self.ratio(means.T + self.moments)
        centred = sums - means[:, :, None] * blocks.lengths
        parts = np.einsum("dm,mdk->dk", gradient, centred)
        return ratio, np.sqrt((parts**2).sum(axis=1)) / self.days


def _standard_error(influence: Float, block: int) -> float:
    """Standard error of the mean of `influence`, shape [D], under the stationary bootstrap.

    Lemma 1 of Politis & Romano (1994): autocovariances, weighted by how often two days stay
    together; exact, where the resamples of a mean only estimate it.
    """
    days = len(influence)
    size = 2 ** math.ceil(math.log2(2 * days))
    spectrum = np.abs(np.fft.rfft(influence, size)) ** 2
    autocovariance = np.fft.irfft(spectrum, size)[:days] / days
    lag = np.arange(1, days)
    stay = 1.0 - 1.0 / block
    weight = (1.0 - lag / days) * stay**lag + lag / days * stay ** (days - lag)
    variance = autocovariance[0] + 2.0 * float(weight @ autocovariance[1:])
    return math.sqrt(max(variance, 0.0) / days)
