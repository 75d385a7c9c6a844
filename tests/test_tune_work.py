"""A worker of a study, with trials that take no time: pruned, failed, stopped, given up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from pipeline_fixtures import tiny_settings
from tuning_fixtures import ONE, space, told, trials_of

from finflow_sb3.config import Settings
from finflow_sb3.errors import FinflowError
from finflow_sb3.tuning import outcome, work, workers
from finflow_sb3.tuning.outcome import Tuned
from finflow_sb3.tuning.study import TrialEvent, tune
from finflow_sb3.tuning.trials import Diverged, _Telling

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(tmp_path_factory.mktemp("tune"))


@pytest.fixture
def study(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Tuned]:
    """A study whose trials are `run`, by default with the value of gamma as their score."""
    monkeypatch.setattr(outcome, "draw_study", lambda *_: [])
    monkeypatch.setattr(work, "WAIT", 0.01)

    def run_study(n_trials: int, run: Run = gamma, out: str = "out", **asked: Any) -> Tuned:
        monkeypatch.setattr(work, "run_trial", run)
        asked = {"space": space(tmp_path, ONE), "algo": "iql", **asked}
        return tune(settings, n_trials, tmp_path / out, **asked)

    return run_study


def gamma(plan: Any, values: dict[str, Any], judge: Any, watch: Any = None) -> Any:
    judge(0, values["iql.gamma"])
    judge(1, values["iql.gamma"])
    return (values["iql.gamma"],), [{"sharpe": values["iql.gamma"]}]


class Times:
    """Runs a trial, but for those whose turn has an end of its own."""

    def __init__(self, ends: dict[int, Callable[[], Any]], run: Run = gamma):
        self.ends, self.run, self.count = ends, run, 0
        self.seen: list[dict[str, Any]] = []

    def __call__(self, plan: Any, values: dict[str, Any], *rest: Any) -> Any:
        self.count += 1
        self.seen.append(values)
        if self.count in self.ends:
            self.ends[self.count]()
        return self.run(plan, values, *rest)


def raises(error: type[BaseException], *words: str) -> Callable[[], Any]:
    def end() -> None:
        raise error(*words)

    return end


def test_what_is_far_below_the_others_is_pruned(study: Callable[..., Tuned]) -> None:
    """Each trial is worse than all before it: after the first five the pruner ends each."""
    count = 0

    def worse(plan: Any, values: dict[str, Any], judge: Any, watch: Any = None) -> Any:
        nonlocal count
        count += 1
        for step in range(3):
            judge(step, -float(count))
        return (-float(count),), [{"sharpe": -float(count)}]

    found = study(8, worse)
    states = [t.state for t in trials_of(found)]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED] * 3
    assert (found.finished, found.pruned, found.failed) == (8, 3, 0)
    assert found.best == 0
    assert found.values == found.default == {"sharpe": -1.0}
    # It was ended where it was judged.
    assert list(trials_of(found)[-1].intermediate_values) == [0, 1]
    count = 0
    assert study(8, worse, "other", pruner="none").pruned == 0


def test_trials_have_values_of_their_own(study: Callable[..., Tuned], settings: Settings) -> None:
    run = Times({})
    found = study(6, run)
    assert [values["iql.gamma"] for values in run.seen] == [t.values[0] for t in trials_of(found)]
    assert len({values["iql.gamma"] for values in run.seen}) == 6
    assert run.seen[0] == {"iql.gamma": settings.iql.gamma}


def test_failures_are_counted_and_come_to_an_end(study: Callable[..., Tuned]) -> None:
    def fails(*_: Any) -> Any:
        raise Diverged("gone")

    events: list[TrialEvent] = []
    with pytest.raises(FinflowError, match=r"5 trials in a row had no score, the last as gone"):
        study(3, fails, listen=events.append)
    assert [e.what for e in events] == ["failed"] * 5
    assert {e.finished for e in events} == {0}


class TestStops:
    def test_ctrl_c_keeps_the_trial_for_later(self, study: Callable[..., Tuned]) -> None:
        with pytest.raises(KeyboardInterrupt):
            study(3, Times({2: raises(KeyboardInterrupt)}))
        found = study(3)
        trials = trials_of(found)
        assert [t.state for t in trials].count(TrialState.FAIL) == 1
        assert (trials[1].state, trials[2].params) == (TrialState.FAIL, trials[1].params)
        assert found.finished == 3

    def test_the_default_is_tried_however_often_it_is_stopped(
        self, study: Callable[..., Tuned], settings: Settings
    ) -> None:
        for _ in range(workers.RETRIES + 2):
            with pytest.raises(KeyboardInterrupt):
                study(2, Times({1: raises(KeyboardInterrupt)}))
        found = study(2)
        assert found.default == {"sharpe": settings.iql.gamma}

    def test_a_stop_changes_no_later_trial(self, study: Callable[..., Tuned]) -> None:
        whole = trials_of(study(5, out="whole"))
        with pytest.raises(KeyboardInterrupt):
            study(5, Times({3: raises(KeyboardInterrupt)}))
        stopped = [t for t in trials_of(study(5)) if t.state == TrialState.COMPLETE]
        assert [t.params for t in stopped] == [t.params for t in whole]
        assert [each[2:] for each in told(stopped)] == [each[2:] for each in told(whole)]


class TestGivenUp:
    """Another worker took this one to be gone."""

    def taken(self, out: Path) -> Callable[[], Any]:
        def take() -> None:
            (name,) = optuna.get_all_study_names(f"sqlite:///{out}/study.db")
            study = optuna.load_study(study_name=name, storage=f"sqlite:///{out}/study.db")
            (running,) = [t for t in study.trials if t.state == TrialState.RUNNING]
            assert workers.ask_again(study, running.number, "stood still")

        return take

    @pytest.mark.parametrize("fails", [False, True])
    def test_while_it_ran(self, study: Callable[..., Tuned], tmp_path: Path, fails: bool) -> None:
        take = self.taken(tmp_path / "out")

        def silent(plan: Any, values: dict[str, Any], judge: Any, watch: Any = None) -> Any:
            if fails and run.count == 2:
                raise Diverged("gone")
            return (values["iql.gamma"],), [{"sharpe": values["iql.gamma"]}]

        run, events = Times({2: take}, silent), []
        found = study(4, run, listen=events.append)
        assert (found.finished, found.failed) == (4, 1)
        assert [e.what for e in events] == ["complete", "again", *["complete"] * 3]
        assert run.seen[1] == run.seen[2]

    def test_before_it_reports(self, study: Callable[..., Tuned], tmp_path: Path) -> None:
        found = study(4, Times({2: self.taken(tmp_path / "out")}))
        assert (found.finished, found.failed) == (4, 1)

    def test_the_default_stays_the_default(
        self, study: Callable[..., Tuned], tmp_path: Path, settings: Settings
    ) -> None:
        found = study(2, Times({1: self.taken(tmp_path / "out")}))
        assert found.default == {"sharpe": settings.iql.gamma}


def test_steps_of_a_training_do_not_hang_on_those_before() -> None:
    """Trials whose first training was short or long are compared at the same step."""
    steps: list[int] = []
    for done, count in (([], 2), ([0.5], 9), ([0.5, 0.5], 1)):
        telling = _Telling(None, lambda step, _: steps.append(step), done, 4)
        for _ in range(count):
            telling.validated(0, {"sharpe": 1.0})
    assert steps == [0, 1, 4, 5, 6, 7, 8]
