"""At which fee what a policy earns above equal weight is gone.

Real backtests: the policy acts anew at every fee, as its observations follow its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.backtest import Policy, backtests, lagged
from finflow_sb3.evaluation.baselines import equal_weight
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import annual_return, sharpe
from finflow_sb3.market.splits import Span

__all__ = ["CAP", "BreakEven", "break_even", "next_fees"]

Measure = Literal["annual_return", "sharpe"]
MEASURES: tuple[Measure, ...] = ("annual_return", "sharpe")
NAMES = {"annual_return": "annual return", "sharpe": "Sharpe ratio"}

CAP = 0.02
TOLERANCE = 1e-5
Edges = dict[float, float]
"""Policy's measure less equal weight's, by fee."""


@dataclass(frozen=True)
class BreakEven:
    """The proportional fee at which a policy's edge over equal weight is gone, both paying it.

    Attributes
    ----------
    measure : what the edge is measured by
    execution_lag : of the backtests
    outcome : "found"; "no edge" where there is none even at a fee of zero; "above the cap" where
        it is still there at `cap`
    fee : as a fraction of traded value, to a tenth of a basis point; None unless it was found
    free_edge : edge at a fee of zero
    cap : largest fee that was tried
    backtests : passes of the policy that it took
    """

    measure: Measure
    execution_lag: int
    outcome: Literal["found", "no edge", "above the cap"]
    fee: float | None
    free_edge: float
    cap: float
    backtests: int

    def fact(self) -> tuple[str, str]:
        """Name and answer, for tables."""
        return f"break-even fee by {NAMES[self.measure]}, lag {self.execution_lag}", self.phrase()

    def phrase(self) -> str:
        """The answer in a few words, as in "12.3 bps"."""
        if self.outcome == "no edge":
            return "no edge at zero cost"
        if self.fee is None:
            return f"edge remains at the cap of {self.cap * 1e4:g} bps"
        return f"{self.fee * 1e4:.1f} bps"


def break_even(
    market: ObservedMarket,
    span: Span,
    env: EnvSettings,
    act: Policy,
    rebalance: int = 21,
    lags: Sequence[int] = (0, 1),
    cap: float = CAP,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[BreakEven, ...]:
    """Break-even fees of a policy at each lag, by annual return and by Sharpe ratio above cash.

    Brackets of every lag and measure are narrowed together, so that the policy is asked once a
    day for all of them. Where the edge comes back at a higher fee, the lowest crossing that the
    bracket holds is the answer.

    Parameters
    ----------
    env : its `fee` is replaced, for every asset; everything else, other costs included, stays
    rebalance : days between two rebalancings of equal weight
    cap : largest fee that is tried
    on_progress : called with (searches done, searches) after each round
    """
    edges: dict[tuple[int, Measure], Edges] = {(lag, m): {} for lag in lags for m in MEASURES}
    wanted = [(lag, fee) for lag in lags for fee in (0.0, cap)]
    rounds = 0
    while wanted:
        for point, found in _measured(market, span, env, act, rebalance, wanted).items():
            lag, fee = point
            for measure in MEASURES:
                edges[lag, measure][fee] = found[measure]
        rounds += 1
        asked = {key: next_fees(known, thirds=rounds % 3 == 0) for key, known in edges.items()}
        wanted = sorted({(lag, fee) for (lag, _), fees in asked.items() for fee in fees})
        if on_progress is not None:
            on_progress(sum(not fees for fees in asked.values()), len(asked))
    return tuple(_answer(lag, measure, known, cap) for (lag, measure), known in edges.items())


def next_fees(known: Mapping[float, float], thirds: bool = False) -> list[float]:
    """Fees to try next; none where the edge's sign changes nowhere, or within the tolerance.

    Costs are nearly proportional to the fee: the answer is looked for close to where a straight
    line between the ends of the bracket meets zero, on both sides of it.

    Parameters
    ----------
    known : edges by fee
    thirds : cut the bracket evenly instead; now and then that keeps it falling whatever the
        edges' course is
    """
    pair = _bracket(known)
    if pair is None:
        return []
    low, high = pair
    width = high - low
    if width <= TOLERANCE:
        return []
    if thirds:
        return [low + width / 3, high - width / 3]
    # What a straight line misses by falls with the square of the bracket's width.
    step = max(width * width, 0.4 * TOLERANCE)
    guess = _crossing(known, low, high)
    return sorted(
        {float(np.clip(x, low + step / 4, high - step / 4)) for x in (guess - step, guess + step)}
    )


def _bracket(known: Mapping[float, float]) -> tuple[float, float] | None:
    """The lowest neighbouring fees between which the edge is lost."""
    fees = sorted(known)
    for low, high in pairwise(fees):
        if known[low] > 0.0 >= known[high]:
            return low, high
    return None


def _crossing(known: Mapping[float, float], low: float, high: float) -> float:
    return low + (high - low) * known[low] / (known[low] - known[high])


def _measured(
    market: ObservedMarket,
    span: Span,
    env: EnvSettings,
    act: Policy,
    rebalance: int,
    points: Sequence[tuple[int, float]],
) -> dict[tuple[int, float], dict[Measure, float]]:
    """The edge by each measure at these lags and fees."""
    envs = [dataclasses.replace(lagged(env, lag), fee=fee, fees={}) for lag, fee in points]
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    found: dict[tuple[int, float], dict[Measure, float]] = {}
    ours = backtests(market, span, envs, act, "policy")
    for point, paid, curve in zip(points, envs, ours, strict=True):
        theirs = equal_weight(market, span, paid, rebalance, point[0])
        both = [_figures(each, cash) for each in (curve, theirs)]
        found[point] = {m: both[0][m] - both[1][m] for m in MEASURES}
    return found


def _figures(curve: Curve, cash: NDArray[np.float64]) -> dict[Measure, float]:
    return {"annual_return": annual_return(curve.returns), "sharpe": sharpe(curve.returns - cash)}


def _answer(lag: int, measure: Measure, known: Edges, cap: float) -> BreakEven:
    pair = _bracket(known)
    if not known[0.0] > 0.0:
        return BreakEven(measure, lag, "no edge", None, known[0.0], cap, len(known))
    if pair is None:
        return BreakEven(measure, lag, "above the cap", None, known[0.0], cap, len(known))
    fee = _crossing(known, *pair)
    return BreakEven(measure, lag, "found", fee, known[0.0], cap, len(known))
