"""What cells come to: for each algorithm its figures over seeds, and against equal weight.

Two kinds of doubt are kept apart. Other seeds would have given another figure: the interval of the
Sharpe ratio draws runs again within each market (`aggregate.stratified_interval`). Other days would
have, too: the interval of the excess over equal weight draws days and runs again, the same days
for the algorithm and for equal weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.config_evaluation import EvaluationSettings
from finflow_sb3.evaluation.aggregate import (
    Profile,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)
from finflow_sb3.evaluation.bootstrap import (
    Interval,
    Resampled,
    block_days,
    resampled_sharpe,
    studentised,
)

__all__ = ["Group", "Row", "groups_of", "median_run", "profiles", "row_of"]

Float = NDArray[np.float64]
LAG = "lag_0"
THRESHOLDS = 201


@dataclass(frozen=True)
class Group:
    """Runs of one algorithm: on each market those of every seed, with the cash rate of its days.

    Attributes
    ----------
    runs : by market one result a seed; the same number on each
    cash : by market the simple daily rate, shape [D]
    """

    algo: str
    runs: Mapping[str, tuple[CellResult, ...]]
    cash: Mapping[str, Float]

    @property
    def seeds(self) -> int:
        return min(len(runs) for runs in self.runs.values())

    @property
    def results(self) -> list[CellResult]:
        return [run for runs in self.runs.values() for run in runs]

    def scores(self, measure: str = "sharpe", lag: str = LAG) -> Float:
        """A measure of every run, shape [seeds, markets]."""
        columns = [[r.measures[lag][measure] for r in runs] for runs in self.runs.values()]
        return np.array(columns, dtype=np.float64).T

    def excess(self, market: str, run: int) -> Float:
        """Daily returns above cash at lag 0, shape [D]."""
        return np.asarray(self.runs[market][run].curve(0).returns - self.cash[market])

    def mean(self, measure: str) -> float:
        return float(self.scores(measure).mean())

    def fact(self, name: str) -> float:
        """Mean over runs of what they took."""
        return float(np.mean([run.facts[name] for run in self.results]))


@dataclass(frozen=True)
class Row:
    """Figures of one algorithm on one market, or on all of them together.

    Attributes
    ----------
    mean_reward, std_reward : of episodes of the test split, over all seeds; nan of an index
    n_timesteps : environment steps that it trained
    eval_timesteps, eval_episodes : that the rewards are of
    sharpe : interquartile mean over runs at lag 0, net of costs; other seeds' interval
    excess : of runs' Sharpe ratio over that of equal weight; other days' and seeds' interval
    sharpe_lag_1 : interquartile mean at execution lag 1
    over_equal_weight, over_cqsac : probability that a run has the higher Sharpe ratio; None of
        itself, and where cqsac is not there
    max_drawdown, turnover, cost_drag, gradient_steps, offline_transitions, seconds : means
    """

    algo: str
    market: str
    seeds: int
    learns: bool
    mean_reward: float
    std_reward: float
    n_timesteps: int
    eval_timesteps: int
    eval_episodes: int
    sharpe: Interval
    excess: Interval
    sharpe_lag_1: float
    annual_return: float
    max_drawdown: float
    turnover: float
    cost_drag: float
    gradient_steps: int
    offline_transitions: int
    seconds: float
    over_equal_weight: Interval | None
    over_cqsac: Interval | None


def groups_of(
    results: Mapping[str, Sequence[CellResult]], markets: Sequence[str], cash: Mapping[str, Float]
) -> list[Group]:
    """Algorithms with at least one run on every market, as many seeds on each as on the poorest.

    Parameters
    ----------
    results : by algorithm
    """
    found = []
    for algo, each in results.items():
        runs = {m: tuple(r for r in each if r.market == m) for m in markets}
        least = min(len(of_market) for of_market in runs.values())
        if least:
            found.append(Group(algo, {m: r[:least] for m, r in runs.items()}, cash))
    return found


def row_of(
    group: Group,
    reference: Group,
    cqsac: Group | None,
    market: str,
    learns: bool,
    episode_length: int,
    evaluation: EvaluationSettings,
) -> Row:
    """Figures of a group.

    Parameters
    ----------
    reference : equal weight on the same markets
    market : what the row is of, one market or a word for all
    """
    level, draws = evaluation.level, evaluation.draws
    scores = group.scores()

    def over(other: Group | None) -> Interval | None:
        if other is None or other.algo == group.algo:
            return None
        return probability_of_improvement(scores, other.scores(), level, draws)

    rewards = [x for run in group.results for x in run.facts["episodes"][LAG]]
    days = min(len(run.curve(0)) for run in group.results)
    return Row(
        algo=group.algo,
        market=market,
        seeds=group.seeds,
        learns=learns,
        mean_reward=float(np.mean(rewards)) if rewards else math.nan,
        std_reward=float(np.std(rewards)) if rewards else math.nan,
        n_timesteps=round(group.fact("env_steps")),
        eval_timesteps=len(rewards) * min(episode_length, days),
        eval_episodes=len(rewards),
        sharpe=stratified_interval(scores, interquartile_mean, level, draws),
        excess=_excess(group, reference, evaluation),
        sharpe_lag_1=float(interquartile_mean(group.scores(lag="lag_1"))),
        annual_return=group.mean("annual_return"),
        max_drawdown=group.mean("max_drawdown"),
        turnover=group.mean("turnover"),
        cost_drag=group.mean("cost_drag"),
        gradient_steps=round(group.fact("gradient_steps")),
        offline_transitions=round(group.fact("offline_transitions")),
        seconds=group.fact("seconds"),
        over_equal_weight=over(reference),
        over_cqsac=over(cqsac),
    )


def _excess(group: Group, reference: Group, evaluation: EvaluationSettings) -> Interval:
    """Interquartile mean over runs of the Sharpe ratio above equal weight's.

    Each draw has days (the same for all runs of a market) and runs within each market drawn again.
    The interval is studentised as that of `sharpe_gap`, which it is where all runs are the same.
    """
    if group.algo == reference.algo:
        return Interval(0.0, math.nan, math.nan, evaluation.level)
    drawn = [
        _gaps(group, reference, market, seed, evaluation) for seed, market in enumerate(group.runs)
    ]
    value = float(interquartile_mean(np.array([[g.value for g in runs] for runs in drawn]).T))
    if any(len(gap.values) == 0 for runs in drawn for gap in runs):
        return Interval(value, math.nan, math.nan, evaluation.level)
    values = np.array([[g.values for g in runs] for runs in drawn]).transpose(2, 1, 0)
    errors = np.array([[g.errors for g in runs] for runs in drawn]).transpose(2, 1, 0)
    error = np.array([[[g.error for g in runs] for runs in drawn]]).transpose(0, 2, 1)
    # [draws, seeds, markets]: other runs of each market, each draw with days of its own.
    rows = np.random.default_rng(0).integers(group.seeds, size=values.shape)
    mixed = interquartile_mean(np.take_along_axis(values, rows, axis=1))
    joint = Resampled(value, float(_joint_error(error)[0]), mixed, _joint_error(errors))
    return studentised(joint, evaluation.level)


def _gaps(
    group: Group, reference: Group, market: str, seed: int, evaluation: EvaluationSettings
) -> list[Resampled]:
    """Each run's Sharpe ratio above equal weight's, all resampled on the same days."""
    equal = reference.excess(market, 0)
    runs = [group.excess(market, i) for i in range(group.seeds)]
    block = block_days(evaluation.block, np.mean(runs, axis=0) - equal)
    # The same seed, block and number of days draw the same days.
    return [resampled_sharpe(np.stack([run, equal]), block, evaluation.draws, seed) for run in runs]


def _joint_error(errors: Float) -> Float:
    """Standard error of a mean over markets, from those of runs: [..., seeds, markets] → [...].

    Runs of a market share their days, and have about the same error; markets are taken to be
    independent.
    """
    return np.asarray(np.sqrt((errors.mean(axis=-2) ** 2).sum(axis=-1)) / errors.shape[-1])


def median_run(group: Group, market: str) -> CellResult:
    """The run whose Sharpe ratio is the median of its seeds', the lower of the middle two."""
    ordered = sorted(group.runs[market], key=lambda run: run.measures[LAG]["sharpe"])
    return ordered[(len(ordered) - 1) // 2]


def profiles(groups: Sequence[Group], evaluation: EvaluationSettings) -> dict[str, Profile]:
    """By algorithm the share of runs above each Sharpe ratio."""
    every = np.concatenate([group.scores().ravel() for group in groups])
    room = 0.05 * max(float(np.ptp(every)), 0.1)
    marks = np.linspace(every.min() - room, every.max() + room, THRESHOLDS)
    return {
        group.algo: performance_profile(group.scores(), marks, evaluation.level, evaluation.draws)
        for group in groups
    }
