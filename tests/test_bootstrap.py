"""The stationary bootstrap: its resamples, its errors, and how often its intervals hold."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arch.bootstrap import StationaryBootstrap
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from finflow_sb3.evaluation import bootstrap
from finflow_sb3.evaluation.bootstrap import (
    Blocks,
    Interval,
    Resampled,
    optimal_block,
    resampled_sharpe,
    sharpe_gap,
    sharpe_interval,
    stationary_blocks,
    studentised,
)
from finflow_sb3.evaluation.metrics import sharpe

Float = NDArray[np.float64]
ANNUAL = math.sqrt(252.0)


@pytest.fixture(scope="module")
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "coverage.py"))


def returns(days: int = 500, seed: int = 0) -> Float:
    return np.random.default_rng(seed).standard_t(5, days) * 0.01 + 0.0005


def walk(days: int, carry: float, seed: int = 0) -> Float:
    """An AR(1)."""
    noise = np.random.default_rng(seed).normal(0.0, 0.01, days)
    for day in range(1, days):
        noise[day] += carry * noise[day - 1]
    return noise


def days_of(blocks: Blocks, days: int) -> NDArray[np.int64]:
    """The days that the blocks stand for, [draws, days]."""
    rows = [
        np.concatenate([start + np.arange(length) for start, length in zip(s, n, strict=True)])
        for s, n in zip(blocks.starts, blocks.lengths, strict=True)
    ]
    return np.stack(rows) % days


@pytest.mark.parametrize("block", [1, 2, 21, 252])
def test_blocks_fill_the_days(block: int) -> None:
    blocks = stationary_blocks(200, block, 300, np.random.default_rng(0))
    assert blocks.lengths.min() >= 0
    assert (blocks.lengths.sum(axis=1) == 200).all()
    assert blocks.starts.min() >= 0 and blocks.starts.max() < 200
    if block == 1:
        assert (blocks.lengths <= 1).all()


@pytest.mark.parametrize("block", [1, 5, 21])
def test_resamples_are_distributed_as_arch_has_them(block: int) -> None:
    x = walk(250, 0.4)
    ours = days_of(stationary_blocks(250, block, 3000, np.random.default_rng(1)), 250)
    arch = StationaryBootstrap(block, x, seed=2)
    theirs = np.stack([arch.update_indices() for _ in range(3000)])
    follows = [np.mean(np.diff(index, axis=1) % 250 == 1) for index in (ours, theirs)]
    assert follows[0] == pytest.approx(follows[1], abs=0.004)
    assert follows[0] == pytest.approx(1.0 - 1.0 / block + 1.0 / block / 250, abs=0.004)
    for statistic in (np.mean, np.std, np.max):
        found = ks_2samp(statistic(x[ours], axis=1), statistic(x[theirs], axis=1))
        assert found.pvalue > 0.01
    counts = [np.bincount(index.ravel(), minlength=250) for index in (ours, theirs)]
    assert np.abs(counts[0] / 3000 - 1.0).max() < 0.15 > np.abs(counts[1] / 3000 - 1.0).max()


def slope(series: Float, index: NDArray[np.int64]) -> Float:
    """Influence of each resampled day on the daily ratio, by differences instead of calculus."""
    x = series[index]

    def ratio(mean: float, square: float) -> float:
        return mean / math.sqrt((square - mean**2) * len(x) / (len(x) - 1))

    mean, square, step = float(x.mean()), float((x**2).mean()), 1e-9
    by_mean = (ratio(mean + step, square) - ratio(mean - step, square)) / (2 * step)
    by_square = (ratio(mean, square + step) - ratio(mean, square - step)) / (2 * step)
    return np.asarray(by_mean * (x - mean) + by_square * (x**2 - square))


@pytest.mark.parametrize("pair", [False, True])
def test_sums_over_blocks_equal_resampling_day_by_day(pair: bool) -> None:
    days, block, draws = 90, 10, 40
    series = np.stack([returns(days, 1), returns(days, 2)])[: 1 + pair]
    found = resampled_sharpe(series, block, draws, seed=5)
    blocks = stationary_blocks(days, block, draws, np.random.default_rng(5))
    signs = (1.0, -1.0)
    for draw, index in enumerate(days_of(blocks, days)):
        parts = list(zip(signs, series, strict=False))
        value = sum(sign * sharpe(x[index]) for sign, x in parts)
        assert found.values[draw] == pytest.approx(value, rel=1e-9)
        influence = sum(sign * slope(x, index) for sign, x in parts)
        edges = np.cumsum(blocks.lengths[draw])
        sums = [part.sum() for part in np.split(influence, edges[:-1])]
        error = math.sqrt(sum(s**2 for s in sums)) / days * ANNUAL
        assert found.errors[draw] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("carry", [-0.2, 0.0, 0.3])
def test_error_is_the_deviation_of_the_resamples(carry: float) -> None:
    series = walk(2000, carry)[None] + 0.0004
    found = resampled_sharpe(series, 21, 4000, seed=0)
    assert found.error == pytest.approx(found.values.std(), rel=0.05)


@pytest.mark.parametrize("count", [1, 2])
def test_batches_do_not_leave_draws_out(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "BATCH", 300)
    series = np.stack([returns(300, 1), returns(300, 2)])[:count]
    found = resampled_sharpe(series, 21, 50, seed=0)
    assert len(np.unique(found.values)) == 50
    assert found.values.mean() == pytest.approx(found.value, abs=3 * found.error)


def test_studentised_interval_by_hand() -> None:
    values, errors = np.array([1.5, 0.5, 2.0, 1.1]), np.array([0.25, 0.5, 0.25, 0.1])
    # Roots 2, 1, 4, 1: half of them lie at 1 or below, three quarters at 2, all at 4.
    assert studentised(Resampled(1.0, 0.3, values, errors), 50).high == pytest.approx(1.6)
    found = studentised(Resampled(1.0, 0.3, values, errors), 95)
    assert (found.low, found.high) == pytest.approx((-0.2, 2.2))
    assert (found.value, found.level) == (1.0, 95)


def test_a_seed_gives_the_same_interval() -> None:
    one, two = returns(), returns(seed=1)
    assert sharpe_gap(one, two, seed=3) == sharpe_gap(one, two, seed=3)
    assert sharpe_gap(one, two, seed=3) != sharpe_gap(one, two, seed=4)
    gap, back = sharpe_gap(one, two), sharpe_gap(two, one)
    assert (gap.low, gap.high) == pytest.approx((-back.high, -back.low))


def test_interval_does_not_depend_on_the_size_of_returns() -> None:
    found, tenth = sharpe_interval(returns()), sharpe_interval(returns() / 10)
    assert (found.low, found.high) == pytest.approx((tenth.low, tenth.high), rel=1e-9)
    assert found.value == pytest.approx(sharpe(returns()))


def test_a_higher_level_is_wider() -> None:
    widths = [found.high - found.low for found in (sharpe_interval(returns(), n) for n in (80, 99))]
    assert widths[0] < widths[1]


@pytest.mark.parametrize("days", [0, 1, 2, 62])
def test_few_days_have_no_interval(days: int) -> None:
    found = sharpe_interval(returns(days))
    assert math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("low", "high", "sign"),
    [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0), (math.nan, math.nan, 0)],
)
def test_sign(low: float, high: float, sign: int) -> None:
    assert Interval(0.0, low, high, 95).sign == sign


def test_optimal_block_follows_dependence() -> None:
    found = [optimal_block(walk(2000, carry)) for carry in (0.0, 0.5, 0.9)]
    assert 1 <= found[0] < found[1] < found[2] <= 252
    assert optimal_block(np.zeros(500)) == 1


def test_coverage_on_simulated_returns(benchmark: dict[str, Any]) -> None:
    """About 95 of 100; the margin is three standard errors of 200 trials."""
    process = benchmark["PROCESSES"][1]
    found = benchmark["coverage"](process, 1000, trials=200, block=21, draws=300)
    assert 90.5 <= found["studentised"] <= 99.5
    assert 90.5 <= found["difference, studentised"] <= 99.5


@pytest.mark.parametrize("carry", [0.0, 0.1])
def test_simulated_returns_have_the_moments_they_say(
    benchmark: dict[str, Any], carry: float
) -> None:
    process = benchmark["Process"]("x", carry=carry, freedom=5, garch=(0.05, 0.9))
    noise = process.simulate(40, 2520, np.random.default_rng(0))
    assert noise.std() == pytest.approx(1.0, abs=0.03)
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1] == pytest.approx(
        0.9, abs=0.01
    )


@pytest.mark.slow
@pytest.mark.parametrize("days", [1000, 2520])
@pytest.mark.parametrize("case", range(5))
def test_coverage_is_what_is_promised(benchmark: dict[str, Any], case: int, days: int) -> None:
    process = benchmark["PROCESSES"][case]
    found = benchmark["coverage"](process, days, 1000, block=21, draws=1000, seed=case)
    for name in ("studentised", "difference, studentised"):
        assert 93.0 <= found[name] <= 97.0, (process.name, name, found[name])
