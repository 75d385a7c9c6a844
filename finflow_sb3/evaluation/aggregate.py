"""What several seeds on several tasks say together: rliable's method, with a seed.

Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (2021):
interquartile means, intervals that resample runs within each task, probability of improvement
and performance profiles. Scores are arrays [runs, tasks]: one row a seed, one column a task
(market, fold), higher is better. Runs of different tasks need not belong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.bootstrap import Interval

__all__ = [
    "Profile",
    "interquartile_mean",
    "performance_profile",
    "probability_of_improvement",
    "stratified_interval",
]

Float = NDArray[np.float64]
Statistic = Callable[[Float], Float]
"""Scores [..., runs, tasks] → a figure for each, [...]."""


@dataclass(frozen=True)
class Profile:
    """Share of runs whose score lies above each threshold, averaged over tasks.

    Attributes
    ----------
    thresholds, share, low, high : shape [M]; the band holds pointwise, and is nan for one run
    level : probability of the band at each threshold, in percent
    """

    thresholds: Float
    share: Float
    low: Float
    high: Float
    level: int


def interquartile_mean(scores: ArrayLike) -> Float:
    """Mean of the middle half of all runs of all tasks, as `scipy.stats.trim_mean` at 0.25.

    Parameters
    ----------
    scores : shape [..., runs, tasks]

    Returns
    -------
    shape [...]; of few runs the plain mean, as a quarter of fewer than four scores is none
    """
    values = np.asarray(scores, dtype=np.float64)
    flat = np.sort(values.reshape(*values.shape[:-2], -1), axis=-1)
    count = flat.shape[-1]
    cut = int(0.25 * count)
    return np.asarray(flat[..., cut : count - cut].mean(axis=-1))


def stratified_interval(
    scores: ArrayLike,
    statistic: Statistic = interquartile_mean,
    level: int = 95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """A statistic of all runs with its percentile interval.

    Runs are drawn again within each task, tasks are not: the interval says what other seeds
    would do to the figure, not what other markets would. Percentile intervals of three or four
    runs are too narrow; rliable's authors ask for more.

    Parameters
    ----------
    scores : shape [runs, tasks]

    Returns
    -------
    Interval
        nan ends for a single run, which says nothing about others.

    Raises
    ------
    DataError
        If the shape is another or a score is not a number.
    """
    values = _checked(scores)
    found = float(statistic(values))
    if len(values) == 1:
        return Interval(found, math.nan, math.nan, level)
    drawn = statistic(_resampled(values, draws, np.random.default_rng(seed)))
    return _percentile(found, drawn, level)


def probability_of_improvement(
    first: ArrayLike, second: ArrayLike, level: int = 95, draws: int = 1000, seed: int = 0
) -> Interval:
    """How often a run of `first` scores higher than one of `second`, averaged over tasks.

    Pairs of equal scores count half (Mann & Whitney 1947), so that two equal algorithms have
    0.5. Runs of both are drawn again within each task.

    Parameters
    ----------
    first, second : shape [runs, tasks]; numbers of runs may differ, a rule that needs no seed
        has one

    Returns
    -------
    Interval
        nan ends where each has a single run.

    Raises
    ------
    DataError
        If tasks differ in number, or as for `stratified_interval`.
    """
    ours, theirs = _checked(first), _checked(second)
    if ours.shape[1] != theirs.shape[1]:
        raise DataError(
            f"probability_of_improvement: {ours.shape[1]} and {theirs.shape[1]} tasks; compare "
            "the same tasks"
        )
    found = float(_improvement(ours, theirs))
    if len(ours) == len(theirs) == 1:
        return Interval(found, math.nan, math.nan, level)
    rng = np.random.default_rng(seed)
    drawn = _improvement(_resampled(ours, draws, rng), _resampled(theirs, draws, rng))
    return _percentile(found, drawn, level)


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    level: int = 95,
    draws: int = 1000,
    seed: int = 0,
) -> Profile:
    """Share of runs above each of `thresholds`, shape [M], with a pointwise band.

    Raises
    ------
    DataError
        As `stratified_interval`.
    """
    values, marks = _checked(scores), np.asarray(thresholds, dtype=np.float64)
    share = _above(values, marks)
    if len(values) == 1:
        nothing = np.full(len(marks), np.nan)
        return Profile(marks, share, nothing, nothing, level)
    drawn = _above(_resampled(values, draws, np.random.default_rng(seed)), marks)
    tail = (100 - level) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    return Profile(marks, share, low, high, level)


def _checked(scores: ArrayLike) -> Float:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise DataError(f"scores have shape {values.shape}; give [runs, tasks], at least one each")
    if not np.isfinite(values).all():
        run, task = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise DataError(
            f"score of run {run} on task {task} is {values[run, task]}; repeat that run, or leave "
            "it out of every algorithm"
        )
    return values


def _resampled(values: Float, draws: int, rng: np.random.Generator) -> Float:
    """`draws` times as many runs of each task, each task by itself: [draws, runs, tasks]."""
    runs, tasks = values.shape
    rows = rng.integers(runs, size=(draws, runs, tasks))
    return np.asarray(values[rows, np.arange(tasks)])


def _improvement(first: Float, second: Float) -> Float:
    """[..., runs, tasks] twice → [...]."""
    ours, theirs = first[..., :, None, :], second[..., None, :, :]
    wins = (ours > theirs) + 0.5 * (ours == theirs)
    return np.asarray(wins.mean(axis=(-3, -2, -1)))


def _above(values: Float, thresholds: Float) -> Float:
    """[..., runs, tasks] → [..., M], one threshold after the other to spare memory."""
    return np.stack([(values > mark).mean(axis=(-2, -1)) for mark in thresholds], axis=-1)


def _percentile(found: float, drawn: Float, level: int) -> Interval:
    tail = (100 - level) / 2
    low, high = (float(q) for q in np.percentile(drawn, [tail, 100 - tail]))
    return Interval(found, low, high, level)
