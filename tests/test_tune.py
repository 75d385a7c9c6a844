"""Studies: exact numbers of trials, the same ones twice, spaces, refusals, what is written."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState
from pipeline_fixtures import tiny_settings, write_prices, write_tiny
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.config_files import resolve
from finflow_sb3.config_keys import ALGORITHMS
from finflow_sb3.errors import ConfigError, FinflowError, StorageError
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.opening import open_market
from finflow_sb3.pipeline import pretrain
from finflow_sb3.tuning import study as studies
from finflow_sb3.tuning import workers
from finflow_sb3.tuning.folds import folds_of
from finflow_sb3.tuning.objectives import MEASURES, scores
from finflow_sb3.tuning.outcome import Tuned
from finflow_sb3.tuning.spaces import defaults, read_space, with_values
from finflow_sb3.tuning.storage import open_store
from finflow_sb3.tuning.study import TrialEvent, tune
from finflow_sb3.tuning.trials import Diverged
from finflow_sb3.zoo_values import parse_yaml

POSTGRES = os.environ.get("TEST_POSTGRES_URL", "")
TWO = "cqsac.alpha_init: {low: 0.001, high: 0.3, log: true}\ncqsac.gamma: {low: 0.9, high: 0.99}\n"


@pytest.fixture(autouse=True)
def alone() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def two(folder: Path) -> Path:
    path = folder / "space.yml"
    path.write_text(TWO)
    return path


def trials_of(tuned: Tuned) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=tuned.study, storage=tuned.storage).trials


def told(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in trials]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def settings(work: Path) -> Settings:
    return tiny_settings(work)


@pytest.fixture(scope="module")
def pretrained(settings: Settings) -> Path:
    return pretrain(settings).run


@pytest.fixture(scope="module")
def tuned(work: Path, pretrained: Path, settings: Settings) -> Tuned:
    return tune(settings, 6, work / "six", pretrained=pretrained, space=two(work))


class TestStudy:
    def test_ends_with_what_was_asked_for(self, tuned: Tuned) -> None:
        assert tuned.finished == 6
        states = [t.state for t in trials_of(tuned)]
        assert len(states) == 6
        assert states.count(TrialState.PRUNED) == tuned.pruned
        assert tuned.values["sharpe"] >= tuned.default["sharpe"]
        assert {path.name for path in tuned.files} >= {"trials.csv", "best.yml", "history.png"}
        assert len(pd.read_csv(tuned.out / "trials.csv")) == 6

    def test_the_first_trial_is_the_settings_as_they_are(
        self, tuned: Tuned, settings: Settings
    ) -> None:
        first = trials_of(tuned)[0]
        assert first.params["cqsac.gamma"] == settings.cqsac.gamma
        assert first.state == TrialState.COMPLETE

    def test_a_stop_and_another_worker_change_no_trial(
        self, tuned: Tuned, work: Path, pretrained: Path, settings: Settings
    ) -> None:
        """The same seed gives the same trials, in one go or in two."""
        asked: dict[str, Any] = {"pretrained": pretrained, "space": two(work)}
        part = tune(settings, 2, work / "parts", **asked)
        assert part.finished == 2
        whole = tune(settings, 6, work / "parts", **asked)
        assert told(trials_of(whole)) == told(trials_of(tuned))
        again = tune(settings, 6, work / "parts", **asked)
        assert told(trials_of(again)) == told(trials_of(tuned))

    def test_the_best_is_a_file_for_train(self, tuned: Tuned, settings: Settings) -> None:
        found = resolve(algo="cqsac", base=settings, files=[tuned.out / "best.yml"], environ={})
        best = next(t for t in trials_of(tuned) if t.number == tuned.best)
        assert found.cqsac.gamma == best.params["cqsac.gamma"]
        assert found.cqsac.alpha_init == best.params["cqsac.alpha_init"]
        assert found.evaluation.trials == 6
        assert (
            found.replace(
                cqsac={"gamma": settings.cqsac.gamma, "alpha_init": settings.cqsac.alpha_init},
                evaluation={"trials": 1},
            )
            == settings
        )

    def test_test_days_have_no_part_in_it(
        self, tuned: Tuned, work: Path, pretrained: Path, settings: Settings, tmp_path: Path
    ) -> None:
        """Other prices after validation, and every trial has the same values."""
        prices = pd.read_csv(settings.market.prices, index_col=0)
        market = open_market(settings)
        cut = market.splits.test.start
        prices.iloc[cut:] *= np.linspace(1.0, 3.0, len(prices) - cut)[:, None] ** 2
        prices.iloc[cut:, ::2] = prices.iloc[cut:, ::2].to_numpy()[::-1]
        prices.to_csv(tmp_path / "prices.csv")
        other = settings.replace(market={"prices": str(tmp_path / "prices.csv")})
        found = tune(other, 6, tmp_path / "out", pretrained=pretrained, space=two(work))
        assert told(trials_of(found)) == told(trials_of(tuned))

    def test_other_settings_are_refused_by_name(
        self, tuned: Tuned, work: Path, pretrained: Path, settings: Settings
    ) -> None:
        asked: dict[str, Any] = {"pretrained": pretrained, "space": two(work)}
        other = settings.replace(cqsac={"tau": 0.01})
        with pytest.raises(ConfigError, match="other settings of cqsac"):
            tune(other, 6, tuned.out, **asked)
        with pytest.raises(ConfigError, match="other seeds"):
            tune(settings, 6, tuned.out, seeds=2, **asked)
        with pytest.raises(ConfigError, match="other objectives"):
            tune(settings, 6, tuned.out, objectives=["cvar"], **asked)

    def test_several_objectives_make_a_front(
        self, work: Path, pretrained: Path, settings: Settings
    ) -> None:
        names = ("return", "cvar", "calmar")
        found = tune(
            settings,
            5,
            work / "front",
            objectives=names,
            pretrained=pretrained,
            space=two(work),
            sampler="random",
        )
        values = {t.number: t.values for t in trials_of(found)}
        assert found.pruned == 0
        for number, own in values.items():
            beaten = any(
                all(a >= b for a, b in zip(other, own, strict=True)) and other != own
                for other in values.values()
            )
            assert (number in found.front) == (not beaten)
        assert values[found.best][0] == max(values[n][0] for n in found.front)
        files = {p.name for p in (found.out / "front").iterdir()}
        assert files == {f"trial_{n}.yml" for n in found.front}

    @pytest.mark.parametrize(("sampler", "pruner"), [("gp", "hyperband"), ("random", "none")])
    def test_samplers_and_pruners(
        self, work: Path, pretrained: Path, settings: Settings, sampler: Any, pruner: Any
    ) -> None:
        found = tune(
            settings,
            3,
            work / sampler,
            pretrained=pretrained,
            space=two(work),
            sampler=sampler,
            pruner=pruner,
        )
        assert found.finished == 3

    @pytest.mark.parametrize("algo", ["cqsac", "iql", "td3bc", "ppo"])
    def test_algorithms(self, work: Path, settings: Settings, algo: str) -> None:
        """Of the whole pipeline, of one phase, and of SB3's; over seeds and folds."""
        arguments = {"n_timesteps": 160, "n_steps": 10, "batch_size": 40} if algo == "ppo" else None
        found = tune(settings, 2, work / algo, algo=algo, seeds=2, top=2, arguments=arguments)
        cells = [t.user_attrs["cells"] for t in trials_of(found) if t.values]
        assert all(len(each) == 2 for each in cells)
        mean = np.mean([cell["sharpe"] for cell in cells[0]])
        assert trials_of(found)[0].values == [pytest.approx(mean)]

    def test_failures_are_counted_and_come_to_an_end(
        self, work: Path, settings: Settings, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: Any) -> Any:
            raise Diverged("gone")

        monkeypatch.setattr(studies, "run_trial", fails)
        events: list[TrialEvent] = []
        with pytest.raises(FinflowError, match=r"5 trials in a row had no score, the last as gone"):
            tune(
                settings,
                3,
                work / "failing",
                pretrained=pretrained,
                space=two(work),
                listen=events.append,
            )
        assert [e.what for e in events] == ["failed"] * 5
        assert {e.finished for e in events} == {0}

    def test_ctrl_c_keeps_the_trial_for_later(
        self, work: Path, settings: Settings, pretrained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = studies.run_trial
        count = 0

        def stops(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == 2:
                raise KeyboardInterrupt
            return run(*args)

        monkeypatch.setattr(studies, "run_trial", stops)
        asked: dict[str, Any] = {"pretrained": pretrained, "space": two(work)}
        with pytest.raises(KeyboardInterrupt):
            tune(settings, 3, work / "stopped", **asked)
        found = tune(settings, 3, work / "stopped", **asked)
        trials = trials_of(found)
        assert [t.state for t in trials].count(TrialState.FAIL) == 1
        assert (trials[1].state, trials[2].params) == (TrialState.FAIL, trials[1].params)
        assert found.finished == 3


class TestFolds:
    def test_each_is_judged_before_the_next(self, settings: Settings) -> None:
        market = open_market(settings)
        found = folds_of(settings, market, 3)
        markets = [open_market(each) for each in found]
        spans = [each.splits for each in markets]
        assert spans[-1] == market.splits
        for before, after in itertools.pairwise(spans):
            assert before.test.start == after.validation.start
        assert max(s.validation.stop for s in spans) <= market.splits.test.start
        assert len({s.train.start for s in spans}) == 1

    def test_too_many_are_refused(self, settings: Settings) -> None:
        with pytest.raises(ConfigError, match="--folds: 9 do not fit"):
            folds_of(settings, open_market(settings), 9)


class TestSpaces:
    @pytest.mark.parametrize("algo", ALGORITHMS)
    def test_packaged_ones_hold_the_defaults(self, algo: str) -> None:
        from finflow_sb3.config_arguments import algorithm_arguments
        from finflow_sb3.config_keys import PLAIN_ALGORITHMS

        settings = resolve(algo=algo, params=[], environ={})
        own = algorithm_arguments(algo, environ={}) if algo in PLAIN_ALGORITHMS else None
        space = read_space(algo, settings)
        assert set(defaults(space, settings, own)) == set(space.ranges)
        assert len(space.first(2).ranges) == 2

    def test_pretrained_leaves_the_offline_phase_out(self, settings: Settings) -> None:
        names = read_space("cqsac", settings, pretrained=True).ranges
        assert names
        assert all(name.startswith("cqsac.") for name in names)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("cqsac.gama: {low: 0, high: 1}", "gama.*gamma"),
            ("market.max_gap: {low: 1, high: 5}", "no setting of cqsac's training"),
            ("cqsac.gamma: {low: 0.5, high: 2.0}", "gamma.*2"),
            ("cqsac.gamma: {low: 0.9, high: 0.1}", "cqsac.gamma"),
            ("cqsac.tau: {low: 0.0, high: 0.1, log: true}", "cqsac.tau"),
            ("cqsac.tau: 0.1", "neither"),
            ("cqsac.tau: {low: 0.1, hihg: 0.2}", "neither"),
            ("cqsac.tau: {low: a, high: 0.2}", "have to be numbers"),
            ("cqsac.batch_size: {choices: [64]}", "two values or more"),
            ("cqsac.batch_size: {choices: [64, 1]}", "batch_size"),
            ("- cqsac.tau", "no mapping"),
            ("{}", "names no setting"),
        ],
    )
    def test_refused(self, settings: Settings, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "space.yml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            read_space("cqsac", settings, path)
        assert "space.yml" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_setting_of_pretraining_is_refused_after_it(
        self, settings: Settings, tmp_path: Path
    ) -> None:
        path = tmp_path / "space.yml"
        path.write_text("iql.expectile: {low: 0.5, high: 0.9}")
        with pytest.raises(ConfigError, match="--pretrained has done"):
            read_space("cqsac", settings, path, pretrained=True)

    def test_the_one_of_the_docs_is_one(self, settings: Settings, tmp_path: Path) -> None:
        page = (Path(__file__).parent.parent / "docs" / "tuning.md").read_text("utf-8")
        path = tmp_path / "space.yml"
        path.write_text(page.partition("```text\n")[2].partition("```")[0])
        assert len(read_space("cqsac", settings, path).ranges) == 3

    def test_values_are_put_where_they_belong(self, settings: Settings) -> None:
        found, _ = with_values(settings, {"cqsac.gamma": 0.5, "iql.tau": 0.1}, "cqsac")
        assert (found.cqsac.gamma, found.iql.tau) == (0.5, 0.1)
        _, arguments = with_values(settings, {"sac.gamma": 0.5}, "sac", {"tau": 0.2})
        assert (arguments["gamma"], arguments["tau"]) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_trials": 0}, "--n-trials: 0 is less than one"),
        ({"seeds": 0}, "--seeds"),
        ({"objectives": ["sharp"]}, "--objective: 'sharp' is not known.*sharpe"),
        ({"objectives": ["cvar", "cvar"]}, "each objective once"),
        ({"sampler": "grid"}, "--sampler"),
        ({"pruner": "all"}, "--pruner"),
        ({"algo": "iql", "pretrained": "run"}, "--pretrained: seeds cqsac"),
        ({"pretrained": "run", "folds": 2}, "--folds: earlier folds"),
        ({"storage": "mysql://here"}, "--storage"),
    ],
)
def test_refused(settings: Settings, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(settings, **{"n_trials": 1, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


def test_objectives_are_measures_that_rise() -> None:
    assert scores(dict.fromkeys(MEASURES.values(), 1.0), list(MEASURES)) == (1.0,) * 5
    assert scores({"sharpe": float("nan")}, ["sharpe"]) is None
    assert set(MEASURES.values()) <= set(measures.__doc__.replace("`", " ").split())


class TestStorage:
    @pytest.mark.parametrize("kind", ["sqlite:///{}/a/study.db", "journal:{}/b/study.log"])
    def test_a_dashboard_reads_it(self, tmp_path: Path, kind: str) -> None:
        from optuna_dashboard import wsgi

        store = open_store(kind.format(tmp_path))
        study = optuna.create_study(storage=store.storage, study_name="ours")
        study.add_trial(
            optuna.trial.create_trial(
                params={"x": 0.5},
                distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
                value=1.0,
            )
        )
        answers: list[str] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/api/studies",
            "SERVER_NAME": "here",
            "SERVER_PORT": "80",
            "wsgi.input": None,
            "wsgi.errors": sys.stderr,
            "wsgi.url_scheme": "http",
        }
        body = wsgi(store.storage)(environ, lambda status, *_: answers.append(status))
        content = json.loads(b"".join(body))
        assert answers == ["200 OK"]
        assert [each["study_name"] for each in content["study_summaries"]] == ["ours"]

    def test_what_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StorageError) as caught:
            open_store(f"sqlite:///{tmp_path}/file/study.db")
        assert "\n" not in str(caught.value)

    def test_a_password_is_not_shown(self) -> None:
        with pytest.raises(StorageError) as caught:
            open_store("postgresql://me:secret@127.0.0.1:1/none")
        assert "secret" not in str(caught.value)
        assert "me@127.0.0.1:1" in str(caught.value)


class TestOnlooker:
    def study(self, tmp_path: Path) -> optuna.Study:
        store = open_store(f"sqlite:///{tmp_path}/study.db")
        return optuna.create_study(storage=store.storage, direction="maximize")

    def test_a_worker_that_is_gone_is_replaced(self, tmp_path: Path) -> None:
        study = self.study(tmp_path)
        ended = subprocess.Popen([sys.executable, "-c", "pass"])
        ended.wait()
        lost, mine = study.ask(), study.ask()
        lost.suggest_float("x", 0, 1)
        lost.set_user_attr(workers.WORKER, {**workers.this_worker(), "pid": ended.pid})
        mine.set_user_attr(workers.WORKER, workers.this_worker())
        assert workers.Onlooker().take_back(study) == [0]
        again = study.ask()
        assert again.suggest_float("x", 0, 1) == lost.params["x"]
        assert again.user_attrs[workers.TRIES] == 1
        states = [t.state for t in study.trials]
        assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.RUNNING]

    def test_a_number_that_came_again_is_another_process(self, tmp_path: Path) -> None:
        study = self.study(tmp_path)
        study.ask().set_user_attr(workers.WORKER, {**workers.this_worker(), "began": "1"})
        assert workers.Onlooker().take_back(study) == [0]

    def test_one_of_another_machine_is_given_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        study, now = self.study(tmp_path), 0.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        trial = study.ask()
        trial.set_user_attr(workers.WORKER, {"host": "elsewhere", "pid": 1, "began": ""})
        onlooker = workers.Onlooker()
        assert onlooker.take_back(study) == []
        now = workers.GRACE - 1.0
        assert onlooker.take_back(study) == []
        trial.set_user_attr(workers.ALIVE, 7)
        now = workers.GRACE + 10.0
        assert onlooker.take_back(study) == []
        now += workers.GRACE + 1.0
        assert onlooker.take_back(study) == [0]

    def test_a_trial_that_ends_its_workers_is_left(self, tmp_path: Path) -> None:
        study = self.study(tmp_path)
        for _ in range(workers.RETRIES + 1):
            trial = study.ask()
            trial.set_user_attr(workers.WORKER, {**workers.this_worker(), "began": "1"})
            workers.Onlooker().take_back(study)
        assert [t.state for t in study.trials] == [TrialState.FAIL] * (workers.RETRIES + 1)


SLOWLY = """
import sys, time
from finflow_sb3.tuning import study
from finflow_sb3.tuning.study import tune
from pathlib import Path
sys.path.insert(0, {tests!r})
from pipeline_fixtures import tiny_settings

def slow(plan, values, judge, watch=None):
    Path(sys.argv[2], str(time.time_ns())).touch()
    time.sleep(0.4)
    judge(0, values["cqsac.gamma"])
    return (values["cqsac.gamma"],), [{{"sharpe": values["cqsac.gamma"]}}]

study.run_trial = slow
settings = tiny_settings(Path({folder!r}))
found = tune(settings, 12, sys.argv[1], storage=sys.argv[3], space={space!r},
             pretrained={pretrained!r}, pruner="none", study_name="shared")
print(found.finished)
"""


def shared_study(
    storage: str, work: Path, pretrained: Path, settings: Settings, tmp_path: Path
) -> None:
    """Two processes on one study, one killed in the middle of a trial: still exactly 12."""
    code = SLOWLY.format(
        tests=str(Path(__file__).parent),
        folder=str(work),
        space=str(two(work)),
        pretrained=str(pretrained),
    )
    begun = tmp_path / "begun"
    begun.mkdir()

    def worker(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / name), str(begun), storage],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first, second = worker("one"), worker("two")
    deadline = time.monotonic() + 120.0
    while len(list(begun.iterdir())) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    printed, errors = second.communicate(timeout=120.0)
    assert printed.strip() == "12", errors
    study = optuna.load_study(study_name="shared", storage=open_store(storage).storage)
    trials = study.trials
    finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    lost = [t for t in trials if t.state == TrialState.FAIL]
    assert len(finished) == 12
    assert len(trials) == 12 + len(lost)
    for each in lost:
        assert any(t.params == each.params for t in finished)
    hosts = {t.user_attrs["worker"]["pid"] for t in trials}
    assert hosts == {first.pid, second.pid}


@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "journal:{}/study.log"])
def test_workers_share_a_study(
    kind: str, work: Path, pretrained: Path, settings: Settings, tmp_path: Path
) -> None:
    shared_study(kind.format(tmp_path), work, pretrained, settings, tmp_path)


@pytest.mark.services
def test_workers_share_a_study_on_postgresql(
    work: Path, pretrained: Path, settings: Settings, tmp_path: Path
) -> None:
    assert POSTGRES, "run it with nox -s services, which starts a server"
    shared_study(POSTGRES, work, pretrained, settings, tmp_path)


class TestCommand:
    def run(self, *words: object) -> Any:
        return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
            app, [str(w) for w in words]
        )

    def test_prints_and_goes_on(self, tmp_path: Path, pretrained: Path, work: Path) -> None:
        command = [
            "tune",
            "--pretrained",
            pretrained,
            "--space",
            two(work),
            "--out",
            tmp_path / "o",
        ]
        first = self.run(*command, "--n-trials", 2, "--json")
        assert first.exit_code == 0, first.stderr
        found = json.loads(first.stdout)
        assert found["finished"] == 2
        assert "trial   0 complete" in first.stderr
        more = self.run(*command, "--n-trials", 3)
        assert more.exit_code == 0, more.stderr
        assert "3 trials finished" in more.stdout
        assert f"finflow train -c {tmp_path / 'o' / 'best.yml'}" in more.stdout
        best = parse_yaml((tmp_path / "o" / "best.yml").read_text(), "best")
        assert list(best) == ["finflow/US20-v0"]

    def test_plain_algorithms(self, tmp_path: Path) -> None:
        prices = write_prices(tmp_path / "prices.csv")
        file = write_tiny(tmp_path / "tiny.yml", prices, tmp_path / "logs")
        done = self.run(
            "tune", "--algo", "a2c", "-c", file, "--n-timesteps", 200, "--n-trials", 1, "--top", 1
        )
        assert done.exit_code == 0, done.stderr
        (out,) = (tmp_path / "logs" / "tune").iterdir()
        assert "learning_rate" in (out / "best.yml").read_text()

    def test_errors_are_one_line(self, tmp_path: Path) -> None:
        done = self.run("tune", "--objective", "sharp", "--out", tmp_path / "o")
        assert done.exit_code == 1
        assert "error: --objective: 'sharp' is not known" in done.stderr
