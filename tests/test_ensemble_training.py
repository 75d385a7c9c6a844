"""Training of ensembles: stops at moments that leave little, failures, and damaged plans."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from pipeline_fixtures import tiny_settings

from finflow_sb3 import ensemble_training
from finflow_sb3.config import Settings
from finflow_sb3.ensemble_training import continue_ensemble, train_ensemble
from finflow_sb3.ensembles import new_ensemble
from finflow_sb3.errors import ArtefactError, ConfigError, FinflowError
from finflow_sb3.pipeline import Mode
from finflow_sb3.results import Watch


@pytest.fixture(autouse=True)
def _not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation takes longer than all else here, and has its own tests."""
    monkeypatch.setattr(ensemble_training, "evaluate", lambda *_, **__: None)


def validated_often(folder: Path, **monitor: Any) -> Settings:
    """Settings by which fine-tuning validates after every episode."""
    often = {"evaluate_interval": 1}
    return tiny_settings(folder, monitor=monitor, run=often)


def killed_before_the_last_note(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, mode: Mode
) -> Path:
    """The folder of two members that are both trained; the plan does not say so of the second."""
    write = ensemble_training.write_json

    def note(path: Path, content: dict[str, Any]) -> None:
        if all(member["finished"] for member in content["members"]):
            raise KeyError("killed")
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(ensemble_training, "write_json", note)
        with pytest.raises(KeyError, match="killed"):
            train_ensemble(settings, 2, mode)
    (folder,) = (Path(settings.run.log_dir) / "ensemble").iterdir()
    return folder


def written(settings: Settings) -> dict[str, str]:
    """Hashes of what all runs have learned, and of all that they told of it on the way."""
    logs = Path(settings.run.log_dir)
    files = sorted([*logs.rglob("metrics.jsonl"), *logs.rglob("best/weights.safetensors")])
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("mode", ["full", "offline", "online"])
def test_a_stop_after_the_last_member_has_ended_changes_nothing(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path)
    folder = killed_before_the_last_note(monkeypatch, settings, mode)
    before = written(settings)
    found = continue_ensemble(folder)
    assert found.finished
    assert written(settings) == before
    assert continue_ensemble(folder) == found


class Stops(Watch):
    """Ends the process's work in the middle of the second run, as a kill would."""

    runs = 0

    def started(self, run: Path) -> None:
        self.runs += 1

    def progress(self, stage: str, done: int, total: int) -> None:
        if self.runs == 2 and stage in ("pretraining", "fine-tuning") and done >= total / 2:
            raise KeyError("killed")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_stop_within_a_member_changes_nothing(mode: Mode, tmp_path: Path) -> None:
    """`tests/test_ensembles.py` has those of mode full."""
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, stopped = tiny_settings(tmp_path / "whole"), tiny_settings(tmp_path / "stopped")
    train_ensemble(whole, 2, mode)
    with pytest.raises(KeyError, match="killed"):
        train_ensemble(stopped, 2, mode, watch=Stops())
    (folder,) = (tmp_path / "stopped" / "logs" / "ensemble").iterdir()
    assert continue_ensemble(folder).finished
    assert list(written(stopped).values()) == list(written(whole).values())


def test_a_member_that_ended_early_is_not_trained_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"annual_return": 0.0, "max_drawdown": 0.0, "turnover": 0.0, "excess": 0.0}
    monkeypatch.setattr(
        "finflow_sb3.training.callbacks.validate", lambda *_: {"sharpe": 0.5, **figures}
    )
    settings = validated_often(tmp_path, patience=2)
    folder = killed_before_the_last_note(monkeypatch, settings, "online")
    before = written(settings)
    assert continue_ensemble(folder).finished
    assert written(settings) == before


def test_all_that_a_member_tells_is_passed_on(tmp_path: Path) -> None:
    watch = MagicMock(spec=Watch)
    train_ensemble(validated_often(tmp_path), 2, "online", watch=watch)
    assert watch.validated.called
    member: Any = None
    noting = ensemble_training._Noting(watch, tmp_path, member, member)
    for name in dir(Watch):
        if not name.startswith("_") and name != "started":
            assert getattr(noting, name) is getattr(watch, name)


class TestNothingIsLeft:
    """Of what failed before a member began there is nothing to go on from."""

    def test_of_prices_that_are_not_there(self, tmp_path: Path) -> None:
        settings = tiny_settings(tmp_path, market={"prices": str(tmp_path / "none.csv")})
        with pytest.raises(FinflowError, match=r"none\.csv"):
            train_ensemble(settings, 2)
        assert list(tmp_path.glob("logs/*/*")) == []

    def test_of_a_dataset_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ArtefactError, match=r"none\.h5"):
            train_ensemble(tiny_settings(tmp_path), 2, dataset=tmp_path / "none.h5")
        assert list(tmp_path.glob("logs/*/*")) == []

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"combination": "mode"}, "--combine: 'mode'"), ({"shrinkage": -1.0}, "--shrink: -1.0")],
    )
    def test_of_what_could_not_be_combined(
        self, arguments: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            train_ensemble(tiny_settings(tmp_path), 2, **arguments)
        assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "fast"}, "mode: 'fast' is not one of demo, full, offline, online"),
        ({"mode": None}, "mode: None"),
        ({"offline_algo": "cql"}, "offline_algo: 'cql' is not one of iql, td3bc"),
        ({"dataset": 3}, "dataset: 3 is no path"),
        ({"combination": "mode"}, "combination: 'mode' is not one of mean, median, validation"),
        ({"shrinkage": "x"}, "shrinkage: 'x' is not a number from 0 on"),
        ({"members": []}, "members: is no list of seeds"),
        ({"members": [{"seed": "0"}]}, "members: is no list of seeds"),
        ({"members": [{"seed": 0, "runs": None}]}, "members: is no list of seeds"),
        ({"members": [{"seed": 0, "finished": True}]}, "members: is no list of seeds"),
        ({"members": None}, "not iterable"),
    ],
)
def test_a_plan_that_is_not_sound_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    members = [ensemble_training._Member(seed) for seed in (0, 1)]
    folder = new_ensemble(tiny_settings(tmp_path)).path
    ensemble_training._Plan("full", "iql", None, "mean", 0.0, members).write(folder)
    plan = json.loads((folder / "ensemble.json").read_text())
    (folder / "ensemble.json").write_text(json.dumps({**plan, **changes}))
    with pytest.raises(ArtefactError, match=f"ensemble.json: is not whole .*{message}"):
        continue_ensemble(folder)
