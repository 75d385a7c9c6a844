"""One trial: train with its settings on every fold with every seed, and judge on validation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.pretrained import pretrained_for
from finflow_sb3.benchmark.tasks import table_key
from finflow_sb3.config import OFFLINE_ALGORITHMS, Settings
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.errors import FinflowError
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.opening import open_market, open_prices
from finflow_sb3.pipeline import finetune, pretrain
from finflow_sb3.plain_training import train_plain
from finflow_sb3.pretrain.run import Epoch
from finflow_sb3.results import Finetuned, Pretrained, Watch
from finflow_sb3.training.trained import load_policy
from finflow_sb3.tuning.objectives import scores
from finflow_sb3.tuning.spaces import Values, with_values

__all__ = [
    "Diverged",
    "Judge",
    "Stopped",
    "TrialPlan",
    "run_trial",
    "validation_measures",
    "validations",
]

Judge = Callable[[int, float], None]
"""Told a step and the validation Sharpe so far; may raise to end the trial."""


class Diverged(FinflowError):
    """A trial has no score: an objective is no number, or the training stopped itself."""


class Stopped(FinflowError):
    """A signal ended the training of a trial."""


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a study have in common.

    Attributes
    ----------
    algo : cqsac, iql, td3bc or one of SB3's
    folds : settings of each fold
    seeds : how many, from the settings' own on
    pretrained : run that CQSAC is seeded by; it is pretrained in the trial if None
    arguments : of one of SB3's algorithms
    shared : whether no setting of the space changes the offline phase
    validations : at most in one training; those beyond it prune nothing
    """

    algo: str
    folds: tuple[Settings, ...]
    seeds: int
    objectives: tuple[str, ...]
    pretrained: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = True
    validations: int = 1_000_000

    def cells(self, values: Values) -> Iterator[tuple[Settings, dict[str, Any]]]:
        """Settings and plain arguments of every training of a trial."""
        for fold in self.folds:
            for seed in range(fold.run.seed, fold.run.seed + self.seeds):
                own, arguments = with_values(fold, values, self.algo, self.arguments)
                yield own.replace(run={"seed": seed}), arguments


def run_trial(
    plan: TrialPlan, values: Values, judge: Judge, watch: Watch | None = None
) -> tuple[tuple[float, ...], list[dict[str, float]]]:
    """Mean objectives over seeds and folds, and the measures of each training.

    Parameters
    ----------
    judge : called after each validation with the mean Sharpe ratio of the trainings that have
        ended and the best so far of the present one

    Raises
    ------
    Diverged
        If an objective is no finite number.
    Stopped
        If a signal ended it.
    """
    found: list[dict[str, float]] = []
    for settings, arguments in plan.cells(values):
        done = [each["sharpe"] for each in found]
        telling = _Telling(watch or Watch(), judge, done, plan.validations)
        with tempfile.TemporaryDirectory(prefix="finflow-trial-") as scratch:
            found.append(_trained(plan, settings, arguments, Path(scratch), telling))
        if scores(found[-1], plan.objectives) is None:
            raise Diverged(f"seed {settings.run.seed}: an objective is no number")
    each_of = [scores(each, plan.objectives) for each in found]
    return tuple(float(x) for x in np.mean(np.array(each_of, dtype=float), axis=0)), found


def _trained(
    plan: TrialPlan,
    settings: Settings,
    arguments: dict[str, Any],
    scratch: Path,
    watch: Watch,
) -> dict[str, float]:
    """Train once, and the measures of what was kept."""
    quick = {"log_dir": str(scratch), "tensorboard": False, "save_latest": False, "track": "off"}
    # One thread: workers share the processors, and numbers do not hang on how many there are.
    settings = settings.replace(run={**quick, "threads": 1})
    trained: Finetuned | Pretrained
    if plan.algo in PLAIN_ALGORITHMS:
        trained = train_plain(settings, plan.algo, arguments, watch=watch)
    elif plan.algo in OFFLINE_ALGORITHMS:
        trained = pretrain(settings, watch=watch, algo=plan.algo)
    else:
        start = _start(plan, settings, scratch, watch)
        trained = finetune(settings, start, watch=watch)
    if not trained.finished:
        why = getattr(trained, "stopped", None)
        if why is None:
            raise Stopped("a signal ended the training")
        raise Diverged(why)
    return validation_measures(trained.run)


def _start(plan: TrialPlan, settings: Settings, scratch: Path, watch: Watch) -> Path:
    """What seeds CQSAC: the run that is given, or one that is pretrained with these settings."""
    if plan.pretrained is not None:
        return plan.pretrained
    if plan.shared:  # one for all trials of this fold and seed
        key = table_key(open_prices(settings))
        cell = Cell("cqsac", "tuned", settings, key)
        return pretrained_for(cell, "iql", scratch, Watch()).folder
    done = pretrain(settings, watch=Watch())
    if not done.finished:
        raise Stopped("a signal ended the pretraining")
    return done.run


def validation_measures(run: Path) -> dict[str, float]:
    """Measures of a run's chosen policy on its validation split, net of costs."""
    from finflow_sb3.runs.folder import RunFolder

    policy = load_policy(run)
    settings = RunFolder.open(run).settings()
    market = open_market(settings, policy.scaler)
    span = market.splits.validation
    curve = backtest(market, span, settings.env_kwargs, policy.act, policy.name)
    return measures(curve, market.prices.cash_rate[span.start + 1 : span.stop])


def validations(settings: Settings, algo: str, arguments: Mapping[str, Any]) -> int:
    """How many validations one training has at most, the start's and the end's among them."""
    offline = next((name for name in OFFLINE_ALGORITHMS if name == algo), None)
    if offline is not None:
        return settings.offline(offline).epochs + 1
    steps = arguments["n_timesteps"] if algo in PLAIN_ALGORITHMS else settings.cqsac.n_timesteps
    between = settings.run.evaluate_interval * settings.env_kwargs.episode_length
    return int(steps) // between + 2


class _Telling(Watch):
    """Tells a judge of each validation; bars are the other watch's.

    A training's steps begin where they begin in every trial, however long those before it were:
    trials are compared at the same step.
    """

    def __init__(self, watch: Watch, judge: Judge, done: list[float], most: int):
        self.watch, self.judge, self.done, self.most = watch, judge, done, most
        self.count, self.best = 0, -np.inf

    def progress(self, stage: str, done: int, total: int) -> None:
        self.watch.progress(stage, done, total)

    def epoch(self, epoch: Epoch) -> None:
        self._tell(epoch.validation["sharpe"])

    def validated(self, step: int, figures: dict[str, float]) -> None:
        self._tell(figures["sharpe"])

    def _tell(self, sharpe: float) -> None:
        if np.isfinite(sharpe):
            self.best = max(self.best, sharpe)
        if np.isfinite(self.best) and self.count < self.most:
            step = len(self.done) * self.most + self.count
            self.judge(step, float(np.mean([*self.done, self.best])))
        self.count += 1
