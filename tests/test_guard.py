"""Each intervention follows a provoked fault: it is seen, logged and acted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import TINY, run_files, tiny_settings

from finflow_sb3.config import Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.errors import DataError
from finflow_sb3.pipeline import finetune
from finflow_sb3.resuming import resume
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint


def settings_of(folder: Path, monitor: dict[str, Any], **changes: dict[str, Any]) -> Settings:
    return tiny_settings(folder, **changes).replace(monitor=monitor)


def lines(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def newest(run: Path) -> Any:
    return read_checkpoint(CheckpointStore(run / "checkpoints").pointed("latest"))


FAST = {"cqsac": {"learning_rate": 10.0, "n_timesteps": 100}}
"""A learning rate of 10: losses and Q leave their ranges within a few updates."""


def test_a_healthy_run_has_no_events(tmp_path: Path) -> None:
    done = finetune(settings_of(tmp_path, {"reward_window": 40}))
    assert lines(done.run, "event") == [] and done.stopped is None
    assert done.stability["critic_loss"]["level"] == "ok"
    assert done.stability["reward_outlier"]["worst"] > 1.0
    line = lines(done.run, "train")[-1]
    for name in ("policy_width", "effective_assets", "effective_experts", "no_trade_days"):
        assert np.isfinite(line[name]), name
    assert line["grad_norm_actor"] > 0.0 and line["grad_norm_critic"] > 0.0
    good = CheckpointStore(done.run / "checkpoints").pointed("good")
    assert good == CheckpointStore(done.run / "checkpoints").pointed("latest")


def test_warn_logs_and_changes_nothing(tmp_path: Path) -> None:
    """The same numbers as without a monitor, and the warnings beside them."""
    fast = {"cqsac": {"learning_rate": 0.5, "n_timesteps": 100}}
    watched = finetune(settings_of(tmp_path, {"cooldown": 16}, **fast))
    plain = finetune(settings_of(tmp_path, {"enabled": False}, **fast))
    events = lines(watched.run, "event")
    assert {"critic_loss", "q_value"} <= {event["check"] for event in events}
    assert {event["action"] for event in events} == {"warn"}
    first = next(event for event in events if event["check"] == "critic_loss")
    assert first["value"] > first["limit"] == 20.0
    assert first["message"].startswith("critic_loss ") and "limit of 20" in first["message"]
    assert watched.stability["critic_loss"]["actions"]["warn"] >= 1
    assert lines(plain.run, "event") == []
    assert run_files(watched.run).best == run_files(plain.run).best
    for name in ("policy.safetensors", "optimizer_actor.safetensors", "random.safetensors"):
        assert run_files(watched.run).checkpoint[name] == run_files(plain.run).checkpoint[name]


def test_cut_lr_halves_every_rate(tmp_path: Path) -> None:
    monitor = {"on_warning": {"critic_loss": "cut_lr"}, "cooldown": 16}
    done = finetune(settings_of(tmp_path, monitor, **FAST))
    cuts = [event for event in lines(done.run, "event") if event["action"] == "cut_lr"]
    assert len(cuts) >= 1
    stored = newest(done.run)
    assert stored.state["counters"]["lr_scale"] == 0.5 ** len(cuts)
    for groups in stored.state["optimizers"].values():
        assert groups[0]["lr"] == 10.0 * 0.5 ** len(cuts)
    assert lines(done.run, "train")[-1]["lr_scale"] == 0.5 ** len(cuts)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first updates after step 150 make the policy NaN, until the rate was cut twice."""
    real, hits = CQSAC.train, []

    def train(self: CQSAC, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.num_timesteps > 150 and self.lr_scale > 0.3:
            hits.append(self.num_timesteps)
            with torch.no_grad():
                next(iter(self.actor.parameters())).fill_(float("nan"))
            self.logger.record("train/actor_loss", float("nan"))

    monkeypatch.setattr(CQSAC, "train", train)
    return hits


def test_rollback_restores_the_last_good_checkpoint(tmp_path: Path, poisoned: list[int]) -> None:
    done = finetune(settings_of(tmp_path, {}))
    assert done.finished and done.stopped is None
    assert poisoned == [152, 152]  # the same updates again, and then with a quarter of the rate
    events = lines(done.run, "event")
    assert [(e["check"], e["action"]) for e in events] == [("not_finite", "rollback")] * 2
    good = max(s for s in range(0, 152, 20) if s % 20 == 0 and s >= 100)
    assert all(event["back_to"] <= good for event in events)
    assert events[0]["message"] == "actor_loss is not finite"
    assert newest(done.run).state["counters"]["lr_scale"] == 0.25
    steps = [line["step"] for line in lines(done.run, "train")]
    assert steps == sorted(set(steps)), "lines after the checkpoint were forgotten"
    for value in newest(done.run).tensors["policy"].values():
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(("step", "finished"), [(200, True), (240, False)])
def test_nan_where_a_validation_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, finished: bool
) -> None:
    """In the middle the run goes back; after the last update it stops, and keeps what was good."""
    real = CQSAC.train

    def train(self: CQSAC, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.num_timesteps == step and self.lr_scale == 1.0:
            with torch.no_grad():
                next(iter(self.actor.parameters())).fill_(float("nan"))
            self.logger.record("train/actor_loss", float("nan"))

    monkeypatch.setattr(CQSAC, "train", train)
    done = finetune(settings_of(tmp_path, {}))
    assert done.finished is finished
    if finished:
        assert done.steps == 240 and done.stopped is None
    else:
        assert done.stopped == "actor_loss is not finite; it came with the last step"
    assert [e["step"] for e in lines(done.run, "event")] == [step]
    assert newest(done.run).state["counters"]["num_timesteps"] == (240 if finished else 200)
    for value in newest(done.run).tensors["policy"].values():
        assert torch.isfinite(value).all()


def test_a_run_that_is_stopped_after_a_rollback_goes_on_exactly(
    tmp_path: Path, poisoned: list[int]
) -> None:
    whole = finetune(settings_of(tmp_path, {}))
    first = finetune(settings_of(tmp_path, {}), stop_at=200)
    assert not first.finished
    last = resume(first.run)
    assert run_files(last.run).metrics == run_files(whole.run).metrics
    assert run_files(last.run).checkpoint == run_files(whole.run).checkpoint


def test_rollbacks_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = CQSAC.train

    def train(self: CQSAC, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        if self.num_timesteps > 150:
            self.logger.record("train/critic_loss", float("inf"))

    monkeypatch.setattr(CQSAC, "train", train)
    done = finetune(settings_of(tmp_path, {"max_rollbacks": 2}))
    assert not done.finished
    assert done.stopped == "critic_loss is not finite; after 2 rollbacks the run stops"
    assert [e["action"] for e in lines(done.run, "event")] == ["rollback", "rollback", "stop"]
    # What is left to go on from is from before it went wrong.
    assert newest(done.run).state["counters"]["num_timesteps"] <= 152
    monkeypatch.undo()
    assert resume(done.run).finished


def test_no_checkpoint_to_roll_back_to(tmp_path: Path, poisoned: list[int]) -> None:
    done = finetune(settings_of(tmp_path, {}, run={"save_latest": False, "save_best": False}))
    assert done.stopped == "actor_loss is not finite; there is no checkpoint to roll back to"
    assert not (done.run / "checkpoints").exists()


def test_reward_outliers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One portfolio earns forty deviations more than ever, once."""
    real, calls = PortfolioBatch._reward, []

    def reward(self: PortfolioBatch, growth: Any) -> Any:
        out = real(self, growth)
        if not self.evaluation:
            calls.append(0)
            if len(calls) == 50:
                out = out.copy()
                out[2] += 40.0
        return out

    monkeypatch.setattr(PortfolioBatch, "_reward", reward)
    monitor = {"reward_window": 100, "on_warning": {"reward_outlier": "stop"}}
    done = finetune(settings_of(tmp_path, monitor))
    (event,) = lines(done.run, "event")
    assert (event["check"], event["step"]) == ("reward_outlier", 200)
    assert done.stopped is not None and done.stopped.startswith("reward_outlier ")
    assert (done.finished, done.steps) == (False, 200)


def test_a_constant_gate_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One expert takes the whole gate from the start: its bias outweighs everything."""
    real = CQSAC._setup_model

    def setup(self: CQSAC) -> None:
        real(self)
        head: Any = self.actor.experts.gate_head
        with torch.no_grad():
            head.weight.zero_()
            head.bias[:5] = torch.tensor([3.0, -3.0, -3.0, -3.0, -3.0])

    monkeypatch.setattr(CQSAC, "_setup_model", setup)
    monitor = {"on_warning": {"effective_experts": "cut_lr"}}
    done = finetune(
        settings_of(tmp_path, monitor, cqsac={"policy_kwargs": TINY, "n_timesteps": 80})
    )
    events = lines(done.run, "event")
    assert events[0]["check"] == "effective_experts" and events[0]["value"] < 1.5
    assert newest(done.run).state["counters"]["lr_scale"] < 1.0


def test_patience_ends_a_run_that_no_longer_improves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharpes = iter([0.1, 0.5, *([0.4] * 50)])
    figures = {"annual_return": 0.0, "max_drawdown": 0.0, "turnover": 0.0, "excess": 0.0}
    monkeypatch.setattr(
        "finflow_sb3.training.callbacks.validate",
        lambda *_: {"sharpe": next(sharpes), **figures},
    )
    done = finetune(settings_of(tmp_path, {"patience": 3}, run={"evaluate_interval": 1}))
    assert done.stopped == "validation Sharpe was not better than 0.5 in 3 validations"
    assert done.best == 0.5 and done.steps == 80
    assert done.finished  # there is nothing to go on for: `train` goes on to the report
    (event,) = lines(done.run, "event")
    assert (event["check"], event["action"]) == ("patience", "stop")
    assert newest(done.run).state["counters"]["num_timesteps"] == 80


def test_nan_actions_are_caught_without_a_monitor_too(tmp_path: Path, poisoned: list[int]) -> None:
    with pytest.raises(DataError, match="diverged"):
        finetune(settings_of(tmp_path, {"enabled": False}))
