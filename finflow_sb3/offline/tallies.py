"""Sums and counts over more numbers than fit into memory, from which means and quantiles follow.

Quantiles come from counts in narrow bins of a known range: they are right to within a bin, and
the same whatever pieces the numbers came in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ActionTally", "Histogram", "Spread", "spread_of"]

Float = NDArray[np.float64]
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


@dataclass(frozen=True)
class Spread:
    """Mean, extremes and quantiles of many numbers."""

    mean: float
    minimum: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    maximum: float


def spread_of(values: ArrayLike) -> Spread:
    """Of numbers that are all there, with the exact quantiles; there has to be one."""
    found = np.asarray(values, dtype=np.float64)
    quantiles = {name: float(np.quantile(found, share)) for name, share in QUANTILES.items()}
    return Spread(
        mean=float(found.mean()),
        minimum=float(found.min()),
        maximum=float(found.max()),
        **quantiles,
    )


class Histogram:
    """Counts of numbers in equal bins, for several series at a time.

    Parameters
    ----------
    series : S
    low, high : the range; what lies outside is counted in the outermost bins
    bins : how many
    """

    def __init__(self, series: int, low: float, high: float, bins: int):
        self.low, self.high, self.bins = low, high, bins
        self.counts = np.zeros((series, bins), dtype=np.int64)
        self.total = np.zeros(series)
        self.minimum = np.full(series, np.inf)
        self.maximum = np.full(series, -np.inf)

    def add(self, series: NDArray[np.integer], values: NDArray[np.floating]) -> None:
        """Count `values` [M], each for the series of that number in `series` [M]."""
        size = self.counts.shape[0]
        place = (values.astype(np.float64) - self.low) * (self.bins / (self.high - self.low))
        place = np.clip(place, 0, self.bins - 1).astype(np.int64)
        flat = np.bincount(series * self.bins + place, minlength=self.counts.size)
        self.counts += flat.reshape(self.counts.shape)
        self.total += np.bincount(series, weights=values, minlength=size)
        np.minimum.at(self.minimum, series, values)
        np.maximum.at(self.maximum, series, values)

    def number(self, series: int) -> int:
        """How many numbers a series has."""
        return int(self.counts[series].sum())

    def quantile(self, series: int, share: float) -> float:
        """The number that `share` of the series is below, to within a bin."""
        above = np.cumsum(self.counts[series])
        wanted = share * above[-1]
        at = int(np.searchsorted(above, wanted))
        inside = (wanted - (above[at] - self.counts[series, at])) / self.counts[series, at]
        width = (self.high - self.low) / self.bins
        found = self.low + (at + inside) * width
        return float(np.clip(found, self.minimum[series], self.maximum[series]))

    def spread(self, series: int) -> Spread:
        """Of one series, which has to have a number."""
        return Spread(
            mean=float(self.total[series] / self.number(series)),
            minimum=float(self.minimum[series]),
            maximum=float(self.maximum[series]),
            **{name: self.quantile(series, share) for name, share in QUANTILES.items()},
        )


class ActionTally:
    """What is counted of actions [N, A] that lie in [-1, 1].

    Parameters
    ----------
    size : A
    limit : actions of at least this size lie at the clip
    """

    FINE = 2000

    def __init__(self, size: int, limit: float):
        self.limit = np.float32(limit)
        self.histogram = Histogram(size, -1.0, 1.0, self.FINE)
        self.at_limit = np.zeros(size, dtype=np.int64)
        self.products = np.zeros((size, size))
        self.count = 0

    def add(self, actions: NDArray[np.float32]) -> None:
        """Count a piece, [B, A]."""
        series = np.broadcast_to(np.arange(actions.shape[1]), actions.shape)
        self.histogram.add(series.ravel(), actions.ravel())
        self.at_limit += (np.abs(actions) >= self.limit).sum(axis=0)
        wide = actions.astype(np.float64)
        self.products += wide.T @ wide
        self.count += len(actions)

    def variances(self) -> Float:
        """Variances along the principal axes, falling; shape [A]."""
        mean = self.histogram.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        found = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
        # What is left by cancellation is no variance.
        return np.where(found > 1e-12, found, 0.0)

    def coarse(self, bins: int) -> NDArray[np.int64]:
        """Counts in fewer bins, [A, bins]."""
        size = len(self.histogram.counts)
        fine = self.histogram.counts.reshape(size, bins, self.FINE // bins)
        return np.asarray(fine.sum(axis=2))
