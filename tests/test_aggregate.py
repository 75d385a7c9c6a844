"""Several seeds together: against hand-computed values, SciPy, and simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.aggregate import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)

SCORES = np.random.default_rng(0).normal(size=(6, 4)) + np.arange(4)


def test_interquartile_mean_by_hand() -> None:
    # Of eight scores the two lowest and the two highest go.
    assert interquartile_mean([[9.0, 1.0], [2.0, 100.0], [3.0, 4.0], [5.0, -50.0]]) == 3.5
    assert interquartile_mean([[1.0], [2.0], [6.0]]) == 3.0


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 1), (4, 3), (7, 2), (10, 10)])
def test_interquartile_mean_is_that_of_scipy(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(1).standard_t(2, shape)
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))
    both = np.stack([scores, scores + 1.0])
    assert interquartile_mean(both) == pytest.approx([trim_mean(s, 0.25, axis=None) for s in both])


def test_probability_of_improvement_by_hand() -> None:
    # First task: of 2 × 3 pairs, 3 wins and 1 tie; second: all 6 lost.
    first = [[3.0, 0.0], [1.0, 0.0]]
    second = [[1.0, 1.0], [2.0, 1.0], [2.5, 1.0]]
    assert probability_of_improvement(first, second).value == pytest.approx(3.5 / 6 / 2)


def test_probability_of_improvement_is_mann_and_whitneys() -> None:
    other = np.random.default_rng(2).normal(size=(9, 4)) + np.arange(4)
    found = probability_of_improvement(SCORES, other)
    u = [mannwhitneyu(SCORES[:, i], other[:, i]).statistic / (6 * 9) for i in range(4)]
    assert found.value == pytest.approx(np.mean(u))
    assert found.low < found.value < found.high
    assert probability_of_improvement(SCORES, SCORES).value == 0.5


def test_a_rule_without_seeds_is_compared_with_runs() -> None:
    rule = np.full((1, 4), -10.0)
    found = probability_of_improvement(SCORES, rule)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    lone = probability_of_improvement(SCORES[:1], rule)
    assert lone.value == 1.0 and math.isnan(lone.low)


def test_profile_by_hand() -> None:
    scores = [[0.0, 1.0], [2.0, 3.0]]
    found = performance_profile(scores, [-1.0, 0.0, 1.5, 3.0])
    assert found.share == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert (found.low <= found.share).all() and (found.share <= found.high).all()
    assert found.low[0] == found.high[0] == 1.0
    assert np.isnan(performance_profile([[1.0, 2.0]], [0.0]).low).all()


def test_runs_are_drawn_within_their_task() -> None:
    """Scores that differ between tasks alone leave nothing to draw."""
    scores = np.tile([1.0, 50.0, 200.0], (5, 1))
    found = stratified_interval(scores)
    assert found.low == found.value == found.high
    spread = stratified_interval(SCORES)
    pooled = np.random.default_rng(0).choice(SCORES.ravel(), (1000, 6, 4))
    assert spread.high - spread.low < np.ptp(np.percentile(interquartile_mean(pooled), [2.5, 97.5]))


def test_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    scores = np.random.default_rng(3).normal(size=(200, 3))
    found = stratified_interval(scores, lambda s: s.mean(axis=(-2, -1)), draws=4000)
    error = math.sqrt(scores.var(axis=0).mean() / 600)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * error, found.value + 1.96 * error), abs=0.1 * error
    )


def test_interval_holds_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for trial in range(200):
        found = stratified_interval(rng.normal(size=(10, 5)), draws=300, seed=trial)
        held += found.low <= 0.0 <= found.high
    assert 0.86 <= held / 200 <= 0.99


@pytest.mark.parametrize(
    "compute",
    [
        lambda seed: stratified_interval(SCORES, seed=seed),
        lambda seed: probability_of_improvement(SCORES, SCORES[:, ::-1], seed=seed),
        lambda seed: performance_profile(SCORES, np.linspace(-1, 4, 20), seed=seed).low.tolist(),
    ],
)
def test_a_seed_gives_the_same(compute: Any) -> None:
    assert compute(1) == compute(1)
    assert len({str(compute(seed)) for seed in range(5)}) > 1


def test_a_single_run_says_nothing_of_others() -> None:
    found = stratified_interval(SCORES[:1])
    assert found.value == pytest.approx(interquartile_mean(SCORES[:1]))
    assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(3), "runs, tasks"),
        (np.zeros((0, 3)), "at least one"),
        ([[1.0, math.nan], [0.0, 0.0]], "score of run 0 on task 1"),
    ],
)
def test_refusals(scores: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        stratified_interval(scores)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="the same tasks"):
        probability_of_improvement(SCORES, SCORES[:, :2])
