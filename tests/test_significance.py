"""Probabilistic and deflated Sharpe ratios against their papers, simulation and hand."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import kurtosis, norm, skew

from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.significance import (
    expected_best,
    minimum_track_record,
    probabilistic_sharpe,
    significance,
)

Float = NDArray[np.float64]


@pytest.fixture(scope="module")
def luck() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "luck.py"))


def test_probabilistic_ratio_of_the_paper() -> None:
    """Bailey & López de Prado (2014): SR 2.5 a year, 1,250 days, skewness −3, kurtosis 10; the
    best of 100 trials of variance 0.5 is expected at 0.1132 a day, and the deflated ratio 0.90.
    """
    deviation = math.sqrt(0.5 / 250)
    best = expected_best(100, deviation)
    assert best == pytest.approx(0.1132, abs=5e-5)
    found = probabilistic_sharpe(2.5 / math.sqrt(250), 1250, -3.0, 10.0, best)
    assert found == pytest.approx(0.9004, abs=5e-5)


def test_track_record_reaches_its_level() -> None:
    days = minimum_track_record(0.06, -0.5, 8.0, level=95)
    assert probabilistic_sharpe(0.06, round(days), -0.5, 8.0) == pytest.approx(0.95, abs=1e-4)
    assert probabilistic_sharpe(0.06, 2 * round(days), -0.5, 8.0) > 0.97
    assert math.isnan(minimum_track_record(0.0, 0.0, 3.0))
    assert math.isnan(minimum_track_record(0.05, 0.0, 3.0, against=0.06))


@pytest.mark.parametrize("trials", [2, 10, 100, 1000])
def test_expected_best_is_what_the_best_of_normal_draws_reaches(trials: int) -> None:
    drawn = np.random.default_rng(0).normal(0.0, 0.7, (20_000, trials)).max(axis=1).mean()
    assert expected_best(trials, 0.7) == pytest.approx(drawn, abs=0.05)
    assert expected_best(1, 0.7) == 0.0


def test_moments_are_those_of_scipy() -> None:
    x = np.random.default_rng(1).standard_t(5, 800) * 0.01 + 0.0006
    found = significance(x)
    assert found.skewness == pytest.approx(skew(x))
    assert found.kurtosis == pytest.approx(kurtosis(x, fisher=False))
    assert found.sharpe == pytest.approx(x.mean() / x.std(ddof=1) * math.sqrt(252))
    daily = found.sharpe / math.sqrt(252)
    scale = math.sqrt(1 - skew(x) * daily + (kurtosis(x, fisher=False) - 1) / 4 * daily**2)
    assert found.probabilistic == pytest.approx(norm.cdf(daily * math.sqrt(799) / scale))
    assert found.deflated == found.probabilistic and found.expected_best == 0.0
    assert found.assumed and found.trials_deviation == pytest.approx(math.sqrt(252 / 799))


def test_trials_that_are_known_stand_for_their_number() -> None:
    x = np.random.default_rng(1).normal(0.0006, 0.01, 800)
    found = significance(x, trials=3, sharpes=[0.1, 0.5, 0.9, 1.3])
    assert found.trials == 4 and not found.assumed
    assert found.trials_deviation == pytest.approx(np.std([0.1, 0.5, 0.9, 1.3], ddof=1))
    assert found.expected_best == pytest.approx(expected_best(4, found.trials_deviation))
    assert found.deflated < found.probabilistic
    assert significance(x, sharpes=[0.9]).deflated == found.probabilistic


def test_more_trials_leave_less() -> None:
    x = np.random.default_rng(1).normal(0.0008, 0.01, 1500)
    left = [significance(x, trials=n).deflated for n in (1, 2, 10, 100, 10_000)]
    assert left == sorted(left, reverse=True) and left[0] - left[-1] > 0.3


@pytest.mark.parametrize("x", [np.zeros(0), np.array([0.01]), np.full(300, 0.001)])
def test_nothing_is_said_without_variation(x: Float) -> None:
    found = significance(x, trials=5)
    assert math.isnan(found.sharpe) and math.isnan(found.deflated)
    assert (found.days, found.trials, found.level) == (len(x), 5, 95)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"trials": 0}, "counts too"), ({"sharpes": [0.3, math.nan]}, "leave that one out")],
)
def test_refusals(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        significance(np.random.default_rng(0).normal(size=50), **changes)  # type: ignore[arg-type]


def test_luck_of_the_best_of_many_is_seen_through(luck: dict[str, Any]) -> None:
    found = luck["significant"](20)
    assert found["deflated"] <= 0.1 and found["deflated, spread assumed"] <= 0.1
    assert found["probabilistic"] >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_luck_of_the_best_of_100_is_seen_through_200_times(luck: dict[str, Any], seed: int) -> None:
    found = luck["significant"](200, seed=seed)
    assert found["deflated"] <= 0.07 and found["deflated, spread assumed"] <= 0.07
    assert found["probabilistic"] >= 0.9
