"""Seeds together: what an algorithm comes to on a market, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.config import EvaluationSettings
from finflow_sb3.config_evaluation import AUTO
from finflow_sb3.evaluation.aggregate import (
    interquartile_mean,
    probability_of_improvement,
    stratified_interval,
)
from finflow_sb3.evaluation.bootstrap import Interval, optimal_block, sharpe_gap
from finflow_sb3.market.prices import PriceTable

__all__ = ["EQUAL_WEIGHT", "Summary", "median_seed", "summarise"]

EQUAL_WEIGHT = "equal_weight"
Float = NDArray[np.float64]
MEANS = ("annual_return", "max_drawdown", "turnover", "cost_drag")


@dataclass(frozen=True)
class Summary:
    """One algorithm on one market, net of costs.

    Attributes
    ----------
    seeds : how many cells; 1 of a rule
    sharpe : interquartile mean over seeds at lag 0, with the interval that other seeds would give
    sharpe_lag_1 : the same figure at lag 1
    gap : Sharpe ratio of the median seed minus equal weight's, with the interval that other days
        would give; None of equal weight itself
    better : how often a seed has a higher Sharpe ratio than equal weight
    better_than_cqsac : how often a seed has one higher than a seed of cqsac; None without it
    means : mean over seeds of return, drawdown, turnover and cost, by name of the measure
    reward, reward_deviation : mean and standard deviation over seeds of the summed reward of one
        pass through the test split, without penalties
    validation : mean Sharpe ratio on the validation split, by which checkpoints are chosen; None
        of a rule
    env_steps, gradient_steps, offline_transitions, seconds : mean over seeds of what it took
    days : of the backtest
    """

    algo: str
    market: str
    seeds: int
    sharpe: Interval
    sharpe_lag_1: float
    gap: Interval | None
    better: Interval | None
    better_than_cqsac: Interval | None
    means: dict[str, float]
    reward: float
    reward_deviation: float
    validation: float | None
    env_steps: float
    gradient_steps: float
    offline_transitions: float
    seconds: float
    days: int

    @property
    def verdict(self) -> str:
        """Whether it beats equal weight on these days."""
        if self.gap is None:
            return ""
        if self.gap.low > 0.0:
            return "better"
        return "worse" if self.gap.high < 0.0 else "cannot be told"


def summarise(
    results: Sequence[CellResult],
    tables: Mapping[str, PriceTable],
    evaluation: EvaluationSettings,
) -> tuple[Summary, ...]:
    """A summary of each algorithm on each market, the best Sharpe ratio first.

    Parameters
    ----------
    tables : prices by market, for the cash rate that Sharpe ratios are in excess of
    """
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for result in results:
        groups.setdefault((result.market, result.algo), []).append(result)
    found = [_summary(g, groups, tables[g[0].market], evaluation) for g in groups.values()]
    order = list(dict.fromkeys(market for market, _ in groups))
    return tuple(sorted(found, key=lambda s: (order.index(s.market), -s.sharpe.value)))


def median_seed(results: Sequence[CellResult]) -> CellResult:
    """The cell whose Sharpe ratio is the (lower) median of its seeds."""
    ranked = sorted(results, key=lambda r: (r.measures["lag_0"]["sharpe"], r.seed))
    return ranked[(len(ranked) - 1) // 2]


def _summary(
    group: Sequence[CellResult],
    groups: dict[tuple[str, str], list[CellResult]],
    prices: PriceTable,
    evaluation: EvaluationSettings,
) -> Summary:
    first = group[0]
    seeded = {"level": evaluation.level, "draws": evaluation.draws}
    equal = groups[first.market, EQUAL_WEIGHT]
    own = groups.get((first.market, "cqsac"))
    scores = _sharpes(group)
    others = first.algo != EQUAL_WEIGHT
    sharpes = [r.facts["validation"]["sharpe"] for r in group if r.facts.get("validation")]
    return Summary(
        algo=first.algo,
        market=first.market,
        seeds=len(group),
        sharpe=stratified_interval(scores, level=seeded["level"], draws=seeded["draws"]),
        sharpe_lag_1=float(interquartile_mean(_sharpes(group, "lag_1"))),
        gap=_gap(median_seed(group), equal[0], prices, evaluation) if others else None,
        better=probability_of_improvement(scores, _sharpes(equal), **seeded) if others else None,
        better_than_cqsac=(
            None
            if own is None or first.algo == "cqsac"
            else probability_of_improvement(scores, _sharpes(own), **seeded)
        ),
        means={name: _mean([r.measures["lag_0"][name] for r in group]) for name in MEANS},
        reward=_mean([r.facts["reward"] for r in group]),
        reward_deviation=float(np.std([r.facts["reward"] for r in group])),
        validation=_mean(sharpes) if sharpes else None,
        days=len(first.curve()),
        **{
            name: _mean([r.facts.get(name, 0) for r in group])
            for name in ("env_steps", "gradient_steps", "offline_transitions", "seconds")
        },
    )


def _sharpes(group: Sequence[CellResult], lag: str = "lag_0") -> Float:
    return np.array([[r.measures[lag]["sharpe"]] for r in group])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _gap(
    ours: CellResult, equal: CellResult, prices: PriceTable, evaluation: EvaluationSettings
) -> Interval:
    first, second = ours.curve(), equal.curve()
    cash = prices.cash_rate[np.searchsorted(prices.dates, first.dates)]
    given = evaluation.block
    block = optimal_block(first.returns - second.returns) if given == AUTO else int(given)
    excess = (first.returns - cash, second.returns - cash)
    return sharpe_gap(*excess, evaluation.level, block, evaluation.draws)
