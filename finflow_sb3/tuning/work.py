"""One worker of a study: asks for trials, runs them and tells what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from finflow_sb3.errors import FinflowError
from finflow_sb3.messages import one_line
from finflow_sb3.results import Watch
from finflow_sb3.tuning.spaces import Space, Values
from finflow_sb3.tuning.storage import StudyStore
from finflow_sb3.tuning.trials import Stopped, TrialPlan, run_trial
from finflow_sb3.tuning.workers import (
    DEFAULT,
    ENDED,
    GIVEN_UP,
    WORKER,
    Onlooker,
    ask_again,
    this_worker,
    working,
)

__all__ = ["Listener", "TrialEvent", "Work"]

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# As many trials in a row without a score are no chance.
FAILURES = 5
WAIT = 2.0


@dataclass(frozen=True)
class TrialEvent:
    """What became of a trial: its number, "complete", "pruned", "failed" or "again", its values,
    why it has none, and how many of how many have finished; `best` of the first objective.
    """

    number: int
    what: str
    values: tuple[float, ...] | None
    why: str
    finished: int
    wanted: int
    best: float | None


Listener = Callable[[TrialEvent], None]


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # What others are at counts as bad meanwhile: workers do not try the same.
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class Work:
    """One worker of a study."""

    def __init__(
        self,
        store: StudyStore,
        study: optuna.Study,
        plan: TrialPlan,
        ranges: Space,
        sampler: str,
        n_trials: int,
        watch: Watch | None,
        listen: Listener | None,
    ):
        self.store, self.study, self.plan, self.ranges = store, study, plan, ranges
        self.sampler, self.n_trials = sampler, n_trials
        self.watch, self.listen = watch, listen or (lambda event: None)
        self.onlooker = Onlooker()

    def run(self, first: Values) -> None:
        """Work until as many trials have finished as are wanted, by this worker or others."""
        failures = 0
        while (trial := self._ask(first)) is not None:
            if isinstance(trial, str):  # others are at what is missing
                time.sleep(WAIT)
                continue
            why = self._run(trial)
            failures = failures + 1 if why else 0
            if failures == FAILURES:
                raise FinflowError(
                    f"{self.study.study_name}: {failures} trials in a row had no score, the last "
                    f"as {why}; narrow the space, or see trials.csv"
                )

    def _ask(self, first: Values) -> optuna.Trial | str | None:
        """The next trial; None where all are done, and "wait" where others may come back."""
        with self.store.alone():
            for number in self.onlooker.take_back(self.study):
                self._tell(number, "again", None, "its worker ended")
            trials = self.study.get_trials(deepcopy=False)
            finished = sum(trial.state in FINISHED for trial in trials)
            running = sum(trial.state == TrialState.RUNNING for trial in trials)
            if finished >= self.n_trials:
                return None
            if finished + running >= self.n_trials:
                return "wait"
            if not trials:
                self.study.enqueue_trial(first, user_attrs={DEFAULT: True})
            self.study.sampler = _sampler(self.sampler, self._seed(trials))
            trial = self.study.ask()
            trial.set_user_attr(WORKER, this_worker())
            # Drawn here, so that what another worker sees of this trial is whole.
            self.ranges.suggest(trial)
            return trial

    def _seed(self, trials: list[optuna.trial.FrozenTrial]) -> int:
        """Of its own for each trial: what it draws hangs neither on who asked before, nor on
        trials that were begun in vain.
        """
        begun = sum(
            GIVEN_UP not in each.user_attrs and each.state != TrialState.WAITING for each in trials
        )
        return self.plan.folds[0].run.seed * 1_000_003 + begun

    def _run(self, trial: optuna.Trial) -> str:
        """Run a trial to its end; why it has no score, empty where it has one or was pruned."""
        try:
            with working(trial):
                values, found = run_trial(
                    self.plan, dict(trial.params), self._judge(trial), self.watch
                )
        except optuna.TrialPruned:
            self._end(trial, "pruned", TrialState.PRUNED)
            return ""
        except optuna.exceptions.UpdateFinishedTrialError:
            self._taken(trial)
            return ""
        except (KeyboardInterrupt, Stopped):
            with self.store.alone():
                ask_again(self.study, trial.number, "stopped by hand", by_hand=True)
            raise KeyboardInterrupt from None
        except FinflowError as error:
            why = one_line(str(error))
            return why if self._end(trial, "failed", TrialState.FAIL, why=why) else ""
        self._end(trial, "complete", TrialState.COMPLETE, values, cells=found)
        return ""

    def _end(
        self,
        trial: optuna.Trial,
        what: str,
        state: TrialState,
        values: tuple[float, ...] | None = None,
        **notes: Any,
    ) -> bool:
        """End a trial; False where another worker has given it up meanwhile."""
        try:
            with self.store.alone():
                for name, note in notes.items():
                    trial.set_user_attr(name, note)
                self.study.tell(trial, None if values is None else list(values), state)
        except ENDED:
            self._taken(trial)
            return False
        self._tell(trial.number, what, values, notes.get("why", ""))
        return True

    def _taken(self, trial: optuna.Trial) -> None:
        """Another worker has asked for the trial again, as this one stood still for long."""
        self._tell(trial.number, "again", None, "another worker has given it up")

    def _judge(self, trial: optuna.Trial) -> Callable[[int, float], None]:
        def judge(step: int, sharpe: float) -> None:
            if len(self.plan.objectives) > 1:
                return
            trial.report(sharpe, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        return judge

    def _tell(self, number: int, what: str, values: tuple[float, ...] | None, why: str) -> None:
        trials = self.study.get_trials(deepcopy=False)
        complete = [t.values[0] for t in trials if t.state == TrialState.COMPLETE]
        finished = sum(trial.state in FINISHED for trial in trials)
        best = max(complete, default=None)
        self.listen(TrialEvent(number, what, values, why, finished, self.n_trials, best))
