"""How often the best of many strategies without skill passes for skilled.

    python benchmarks/luck.py

20 assets with a common part and fat tails earn nothing on average. Each strategy holds random
long and short weights, drawn anew every 21 days; the one with the highest Sharpe ratio is shown,
and counts as significant where a probability passes 95 %: the probabilistic Sharpe ratio, which
knows nothing of the others, and the deflated one, with the spread of all ratios or with the one
that is assumed where they are not known. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.evaluation.curve import TRADING_DAYS
from finflow_sb3.evaluation.significance import significance

Float = NDArray[np.float64]

ASSETS = 20
HOLD = 21
PASS = 0.95


def best_of_random(strategies: int, days: int, rng: np.random.Generator) -> tuple[Float, Float]:
    """Daily returns [days] of the luckiest strategy, and all annual Sharpe ratios [strategies]."""
    common, own = rng.standard_t(5, (days, 1)), rng.standard_t(5, (days, ASSETS))
    assets = 0.005 * common + 0.01 * own
    weights = rng.normal(size=(-(-days // HOLD), strategies, ASSETS))
    weights /= np.abs(weights).sum(axis=2, keepdims=True)
    returns = np.einsum("dsn,dn->sd", np.repeat(weights, HOLD, axis=0)[:days], assets)
    sharpes = returns.mean(axis=1) / returns.std(axis=1, ddof=1) * math.sqrt(TRADING_DAYS)
    return returns[int(np.argmax(sharpes))], sharpes


def significant(
    repetitions: int, strategies: int = 100, days: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Share of repetitions, 0 to 1, in which the best strategy passes, for each probability."""
    rng = np.random.default_rng(seed)
    passed = {"probabilistic": 0, "deflated": 0, "deflated, spread assumed": 0}
    for _ in range(repetitions):
        best, sharpes = best_of_random(strategies, days, rng)
        known, assumed = significance(best, sharpes=sharpes), significance(best, strategies)
        passed["probabilistic"] += known.probabilistic > PASS
        passed["deflated"] += known.deflated > PASS
        passed["deflated, spread assumed"] += assumed.deflated > PASS
    return {name: count / repetitions for name, count in passed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--strategies", type=int, default=100)
    parser.add_argument("--days", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = significant(options.repetitions, options.strategies, options.days, options.seed)
    print("| Sharpe ratio | best of them significant at 95 % |")
    print("|---|---:|")
    for name, share in found.items():
        print(f"| {name} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
