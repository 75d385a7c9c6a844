"""Storages of studies, and workers that share one."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from pipeline_fixtures import tiny_settings
from tuning_fixtures import ONE, space

from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.tuning import workers
from finflow_sb3.tuning.storage import open_store, without_password

POSTGRES = os.environ.get("TEST_POSTGRES_URL", "")


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


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

    @pytest.mark.parametrize(
        ("url", "readable"),
        [
            ("postgresql://me:secret@host/db", "postgresql://me@host/db"),
            ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me"),
            ("postgresql://host/db?sslpassword=secret", "postgresql://host/db"),
            ("postgresql://me:sec@ret@host/db", "postgresql://…"),
            ("postgresql://me:secret@host:port/db", "postgresql://…"),
            ("https://me:secret@host/prices.csv", "https://me@host/prices.csv"),
            ("sqlite:////home/me@work/study.db", "sqlite:////home/me@work/study.db"),
        ],
    )
    def test_addresses_as_others_may_read_them(self, url: str, readable: str) -> None:
        assert without_password(url) == readable

    def test_what_is_no_address_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="no address of a database") as caught:
            open_store("postgresql://me:secret@host:port/db")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("content", ["hello\n", "[1]\n", '{"a": 1}\n', "x", "7\n"])
    def test_what_is_no_journal_is_refused_and_kept(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "notes.txt"
        path.write_text(content)
        with pytest.raises(StorageError, match=r"notes\.txt: is no journal of a study; name anoth"):
            open_store(f"journal:{path}")
        assert path.read_text() == content

    def test_a_damaged_journal_is_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "study.log"
        optuna.create_study(storage=open_store(f"journal:{path}").storage)
        path.write_text(path.read_text() + "hello\nthere\n")
        with pytest.raises(StorageError, match=r"study\.log: no study can be kept there"):
            open_store(f"journal:{path}")


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

    @pytest.mark.parametrize("ended", [True, False])
    def test_a_name_that_was_given_twice_is_another_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: bool
    ) -> None:
        """As of containers: the process of this number is another one here, or none."""
        study, worker = self.study(tmp_path), workers.this_worker()
        worker |= {"pid": 2**22 + 1} if ended else {"began": "1"}
        trial = study.ask()
        trial.set_user_attr(workers.WORKER, worker)
        monkeypatch.setattr(workers, "_machine", lambda: f"{platform.node()} started-again")
        assert workers.Onlooker().take_back(study) == []

    def test_a_worker_that_ended_while_it_asked_loses_no_value(self, tmp_path: Path) -> None:
        study = self.study(tmp_path)
        study.enqueue_trial({"x": 0.25, "y": 0.5}, user_attrs={workers.DEFAULT: True})
        study.ask().suggest_float("x", 0, 1)
        assert workers.ask_again(study, 0, "its worker ended")
        again = study.ask()
        assert (again.suggest_float("x", 0, 1), again.suggest_float("y", 0, 1)) == (0.25, 0.5)
        assert again.user_attrs[workers.DEFAULT]

    def test_an_onlooker_that_ends_meanwhile_loses_no_value(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed before the trial was ended: the next one ends it, and asks no second time."""
        study = self.study(tmp_path)
        study.ask().suggest_float("x", 0, 1)
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "tell", self.killed)
            with pytest.raises(SystemExit):
                workers.ask_again(study, 0, "its worker ended")
        assert workers.ask_again(study, 0, "its worker ended")
        assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]
        assert study.trials[1].system_attrs["fixed_params"] == study.trials[0].params

    def killed(self, *_: object, **__: object) -> None:
        raise SystemExit

    def test_what_has_ended_by_now_is_left_alone(self, tmp_path: Path) -> None:
        study = self.study(tmp_path)
        trial = study.ask()
        study.tell(trial, 1.0)
        assert not workers.ask_again(study, 0, "its worker ended")
        assert [t.state for t in study.trials] == [TrialState.COMPLETE]

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
from finflow_sb3.tuning import work
from finflow_sb3.tuning.study import tune
from pathlib import Path
sys.path.insert(0, {tests!r})
from pipeline_fixtures import tiny_settings

def slow(plan, values, judge, watch=None):
    Path(sys.argv[2], str(time.time_ns())).touch()
    time.sleep(0.3)
    judge(0, values["iql.gamma"])
    return (values["iql.gamma"],), [{{"sharpe": values["iql.gamma"]}}]

work.run_trial = slow
settings = tiny_settings(Path({folder!r}))
found = tune(settings, 12, sys.argv[1], storage=sys.argv[3], space={space!r}, algo="iql",
             pruner="none", study_name="shared")
print(found.finished)
"""


def shared_study(storage: str, tmp_path: Path) -> None:
    """Two processes on one study, one killed in the middle of a trial: still exactly 12."""
    tiny_settings(tmp_path)  # its files are there before both want them
    tests = str(Path(__file__).parent)
    code = SLOWLY.format(tests=tests, folder=str(tmp_path), space=str(space(tmp_path, ONE)))
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
    first.communicate()  # closes its pipes too
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
def test_workers_share_a_study(kind: str, tmp_path: Path) -> None:
    shared_study(kind.format(tmp_path), tmp_path)


@pytest.mark.services
def test_workers_share_a_study_on_postgresql(tmp_path: Path) -> None:
    assert POSTGRES, "run it with nox -s services, which starts a server"
    shared_study(POSTGRES, tmp_path)
