"""How often intervals of a Sharpe ratio hold the true one, on returns whose Sharpe is known.

    python benchmarks/coverage.py

Each trial simulates daily excess returns, takes 95 % intervals from the same resamples of the
stationary bootstrap, and looks whether the true ratio, or the true difference of two, lies
within. Prints a Markdown table: shares of trials in percent, for which 93 to 97 are asked of the
studentised interval, the one that the package takes. The standard error of a share of 1,000
trials is 0.7.
"""

from __future__ import annotations

import argparse
import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from finflow_sb3.evaluation.bootstrap import (  # noqa: E402
    Interval,
    Resampled,
    resampled_sharpe,
    studentised,
)
from finflow_sb3.evaluation.curve import TRADING_DAYS  # noqa: E402

Float = NDArray[np.float64]

LEVEL = 95
VOLATILITY = 0.01
SHARPES = (0.8, 0.5)
ALIKE = 0.9
BURN = 250
METHODS = ("percentile", "basic", "studentised")


@dataclass(frozen=True)
class Process:
    """Daily returns: an AR(1) of `carry` whose innovations are normal, or Student's t, with a
    constant variance, or a GARCH(1, 1)'s.
    """

    name: str
    carry: float = 0.0
    freedom: int | None = None
    garch: tuple[float, float] | None = None

    def simulate(self, trials: int, days: int, rng: np.random.Generator) -> Float:
        """Unit-variance, zero-mean series, two a trial that move together: [trials, 2, days]."""
        shape = (trials, 2, days + BURN)
        noise = self._noise(shape, rng)
        if self.garch is not None:
            noise = _clustered(noise, *self.garch)
        for day in range(1, shape[2]):
            noise[..., day] += self.carry * noise[..., day - 1]
        return np.asarray(noise[..., BURN:] * np.sqrt(1.0 - self.carry**2))

    def _noise(self, shape: tuple[int, int, int], rng: np.random.Generator) -> Float:
        common, own = rng.standard_normal((shape[0], 1, shape[2])), rng.standard_normal(shape)
        noise = np.sqrt(ALIKE) * common + np.sqrt(1.0 - ALIKE) * own
        if self.freedom is not None:
            # One mixing variable for both: a multivariate t, scaled to variance 1.
            mixing = rng.chisquare(self.freedom, (shape[0], 1, shape[2]))
            noise = noise * np.sqrt((self.freedom - 2) / mixing)
        return np.asarray(noise)


def _clustered(noise: Float, shock: float, memory: float) -> Float:
    """`noise` with GARCH(1, 1) variances of mean 1."""
    out = np.empty_like(noise)
    variance = np.ones(noise.shape[:2])
    for day in range(noise.shape[2]):
        out[..., day] = noise[..., day] * np.sqrt(variance)
        variance = 1.0 - shock - memory + shock * out[..., day] ** 2 + memory * variance
    return out


PROCESSES = (
    Process("normal"),
    Process("Student t(5)", freedom=5),
    Process("AR(1), 0.1", carry=0.1),
    Process("GARCH(0.08, 0.90)", garch=(0.08, 0.90)),
    Process("AR(1), 0.1, GARCH, t(5)", carry=0.1, freedom=5, garch=(0.05, 0.90)),
)


def interval(found: Resampled, method: str) -> Interval:
    """The interval of one method from these resamples."""
    if method == "studentised":
        return studentised(found, LEVEL)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(found.values, [tail, 100 - tail])
    if method == "basic":
        low, high = 2.0 * found.value - high, 2.0 * found.value - low
    return Interval(found.value, float(low), float(high), LEVEL)


def coverage(
    process: Process, days: int, trials: int, block: int, draws: int, seed: int = 0
) -> dict[str, float]:
    """Share of trials in percent whose interval holds the truth: one ratio, and a difference.

    Returns
    -------
    dict
        "percentile", "basic" and "studentised", and the same after "difference, "
    """
    rng = np.random.default_rng(seed)
    daily = np.array(SHARPES)[:, None] / np.sqrt(TRADING_DAYS)
    held = {f"{what}{m}": 0 for what in ("", "difference, ") for m in METHODS}
    for trial, noise in enumerate(process.simulate(trials, days, rng)):
        returns = VOLATILITY * (daily + noise)
        sides = {"": (returns[:1], SHARPES[0]), "difference, ": (returns, SHARPES[0] - SHARPES[1])}
        for what, (series, truth) in sides.items():
            found = resampled_sharpe(series, block, draws, seed=trial)
            for method in METHODS:
                ends = interval(found, method)
                held[what + method] += ends.low <= truth <= ends.high
    return {name: 100.0 * count / trials for name, count in held.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--block", type=int, default=21)
    parser.add_argument("--days", type=int, nargs="+", default=(1000, 2520))
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    columns = [f"{what}{m}" for what in ("", "difference, ") for m in METHODS]
    print(f"| returns | days | {' | '.join(columns)} |")
    print("|---|---:|" + "---:|" * len(columns))
    cases = [(process, days) for process in PROCESSES for days in options.days]
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [
            pool.submit(coverage, *case, options.trials, options.block, options.draws, seed)
            for seed, case in enumerate(cases)
        ]
        for (process, days), job in zip(cases, jobs, strict=True):
            figures = [f"{job.result()[name]:.1f}" for name in columns]
            print(f"| {process.name} | {days:,} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
