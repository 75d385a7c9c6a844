"""Trackers: W&B and MLflow on real runs, offline; what happens without them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from learning_fixtures import tiny_settings
from test_metrics_log import hparams_of, read_events

from finflow_sb3.config import Settings
from finflow_sb3.config_files import read_config
from finflow_sb3.errors import ConfigError, MissingExtraError
from finflow_sb3.pipeline import finetune, pretrain
from finflow_sb3.resuming import resume


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"needs the extra {name}")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes out, and what is written lands in the test's folder."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)


def settings_of(folder: Path, **run: Any) -> Settings:
    return tiny_settings(folder).replace(run={"tensorboard": True, **run})


def note_of(run: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((run / "tracker.json").read_text())
    return found


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    settings = settings_of(tmp_path, track=name)
    for verb in (pretrain, finetune):
        with pytest.raises(MissingExtraError, match=rf'pip install "finflow-sb3\[{name}\]"'):
            verb(settings)


def test_wandb_without_tensorboard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set tensorboard to true"):
        finetune(settings_of(tmp_path, track="wandb", tensorboard=False))


def test_what_tensorboard_has_of_a_run(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    done = finetune(settings)
    events = read_events(done.run / "tensorboard")
    lines = [json.loads(line) for line in (done.run / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "validation"]
    drawn = [(e.step, e.value) for e in events.Scalars("validation/sharpe")]
    assert drawn == [(v["step"], pytest.approx(v["sharpe"])) for v in validations]
    held = settings.cqsac.n_envs * 6  # weights of five assets and cash
    for name, count in (("weights", held), ("gates", settings.cqsac.n_envs * 5)):
        found = events.Histograms(f"portfolios/{name}")
        assert [h.step for h in found] == [v["step"] for v in validations]
        assert {h.histogram_value.num for h in found} == {count}
        assert found[-1].histogram_value.max <= 1.0 and found[-1].histogram_value.min >= 0.0
    assert hparams_of(events) == read_config(done.run / "config.yml").flat()
    assert json.loads(str(settings.flat()["cqsac.policy_kwargs"])) == settings.cqsac.policy_kwargs
    (final,) = events.Scalars("final/sharpe")
    assert (final.step, final.value) == (done.steps, pytest.approx(done.validation["sharpe"]))


@needs("wandb")
def test_wandb_records_a_run_and_changes_no_figure(tmp_path: Path) -> None:
    import wandb

    plain = finetune(settings_of(tmp_path))
    first = finetune(settings_of(tmp_path, track="wandb"), stop_at=100)
    note = note_of(first.run)
    last = resume(first.run)
    assert last.finished and note_of(last.run) == note
    assert (last.run / "metrics.jsonl").read_bytes() == (plain.run / "metrics.jsonl").read_bytes()
    records = sorted(last.run.glob(f"wandb/offline-run-*/run-{note['id']}.wandb"))
    assert len(records) == 2  # offline, each part is a file of the same run
    wandb.teardown()  # its own process writes the files to their ends
    content = b"".join(record.read_bytes() for record in records)
    for name in ("validation/sharpe", "train/actor_loss", "portfolios/weights", "final/sharpe"):
        assert name.encode() in content, name
    assert b"n_timesteps" in content and b"CQSAC" in content


@needs("mlflow")
def test_mlflow_records_a_run_and_changes_no_figure(tmp_path: Path) -> None:
    import mlflow

    plain = finetune(settings_of(tmp_path))
    first = finetune(settings_of(tmp_path, track="mlflow"), stop_at=100)
    client = mlflow.MlflowClient()
    record = note_of(first.run)["id"]
    last = resume(first.run)
    assert last.finished and note_of(last.run)["id"] == record
    assert (last.run / "metrics.jsonl").read_bytes() == (plain.run / "metrics.jsonl").read_bytes()
    found, written = client.get_run(record), read_config(last.run / "config.yml")
    assert found.info.status == "FINISHED"
    assert found.data.params == {k: str(v) for k, v in written.flat().items()}
    history = client.get_metric_history(record, "validation/sharpe")
    lines = [json.loads(line) for line in (last.run / "metrics.jsonl").read_text().splitlines()]
    wanted = {line["step"]: line["sharpe"] for line in lines if line["kind"] == "validation"}
    assert {m.step: m.value for m in history} == wanted


@needs("mlflow")
def test_mlflow_is_told_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    from finflow_sb3.training.callbacks import TrainingCallback

    def fail(*_: Any) -> bool:
        raise RuntimeError("broken")

    monkeypatch.setattr(TrainingCallback, "_on_step", fail)
    with pytest.raises(RuntimeError, match="broken"):
        finetune(settings_of(tmp_path, track="mlflow"))
    (run,) = mlflow.MlflowClient().search_runs(["1"])
    assert run.info.status == "FAILED"
