"""Stopping and going on changes nothing: parameters, optimisers, replay, metrics, best."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fixtures import TINY, replayed, run_files, tiny_settings

from finflow_sb3.config import Settings
from finflow_sb3.errors import ConfigError
from finflow_sb3.pipeline import Finetuned, Watch, finetune, pretrain
from finflow_sb3.resuming import resume
from finflow_sb3.runs.checkpoints import read_checkpoint

SEEDED = {
    "cal_ql": True,
    "offline_fraction": 0.25,
    "warmup_steps": 60,
    "target_entropy": "seeded",
    "alpha_init": 0.05,
    "balance_coef": 0.01,
    "backup_entropy": False,
}
FLAT = {"critic_hidden", "token_hidden", "expert_hidden", "gate_hidden"}
MLP = {k: v for k, v in TINY.items() if k not in FLAT} | {"net_arch": [8]}
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "seeded": {"cqsac": SEEDED},
    "scratch": {},
    "scratch-lagged": {
        "env_kwargs": {"execution_lag": 1, "reward": "differential_sharpe", "max_turnover": 0.3},
        "cqsac": {"train_freq": 3, "gradient_steps": 2, "learning_rate": "lin_3e-4"},
    },
    "scratch-options": {
        "cqsac": {
            "policy_kwargs": {**TINY, "mixture": "full", "dropout": 0.1, "layer_norm": True},
            "cql_alpha": 1.0,
            "cql_alpha_final": None,
            "cql_target_action_gap": 0.5,
            "n_steps": 3,
            "utd_ratio": 2,
            "policy_delay": 2,
            "obs_noise_std": 0.1,
            "risk_measure": "wang:0.5",
            "mixed_precision": "bf16",
            "prefetch": True,
        },
    },
    "scratch-mlp": {
        "env_kwargs": {"action_base": "drift"},
        "cqsac": {"policy": "MlpPolicy", "policy_kwargs": MLP, "ent_coef": 0.1},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def artefact(folder: Path) -> Path:
    return pretrain(tiny_settings(folder)).run


def settings_of(folder: Path, kind: str, **run: Any) -> Settings:
    return tiny_settings(folder, **KINDS[kind]).replace(run=run)


def start(folder: Path, kind: str, artefact: Path, stop_at: int | None = None) -> Finetuned:
    settings = settings_of(folder, kind)
    return finetune(settings, artefact if kind == "seeded" else None, stop_at=stop_at)


@pytest.fixture(scope="module")
def whole(folder: Path, artefact: Path) -> dict[str, Finetuned]:
    """A run of each kind in one go."""
    return {kind: start(folder, kind, artefact) for kind in KINDS}


def assert_same(first: Path, second: Path) -> None:
    mine, theirs = run_files(first), run_files(second)
    assert mine.metrics == theirs.metrics
    assert mine.best == theirs.best
    assert set(mine.checkpoint) == set(theirs.checkpoint)
    for name, content in mine.checkpoint.items():
        assert content == theirs.checkpoint[name], name


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("seeded", (8,)),  # in the warm-up, before the first update
        ("seeded", (101, 180)),
        ("scratch", (160,)),
        ("scratch-lagged", (101, 180)),
        ("scratch-mlp", (101,)),
    ],
    ids=str,
)
def test_stop_and_resume_is_one_go(
    folder: Path, artefact: Path, whole: dict[str, Finetuned], kind: str, stops: tuple[int, ...]
) -> None:
    assert whole[kind].finished and whole[kind].steps >= 240
    first = start(folder, kind, artefact, stop_at=stops[0])
    assert not first.finished
    assert stops[0] <= first.steps < stops[0] + 12
    for stop in stops[1:]:
        torch.manual_seed(12345)  # a new process starts with other random states
        assert not resume(first.run, stop_at=stop).finished
    last = resume(first.run)
    assert last.finished and last.steps == whole[kind].steps
    assert last.best == whole[kind].best
    assert last.validation == whole[kind].validation
    assert_same(first.run, whole[kind].run)


def test_a_seed_gives_the_same_run(
    folder: Path, artefact: Path, whole: dict[str, Finetuned]
) -> None:
    again = start(folder, "seeded", artefact)
    assert_same(again.run, whole["seeded"].run)


def test_another_seed_gives_another_run(folder: Path, whole: dict[str, Finetuned]) -> None:
    other = finetune(settings_of(folder, "scratch", seed=1), stop_at=80)
    assert (other.run / "metrics.jsonl").read_bytes() not in run_files(whole["scratch"].run).metrics


def test_the_checkpoint_holds_what_training_moved(whole: dict[str, Finetuned]) -> None:
    """Comparing checkpoints proves something only if all of it is in them, and has moved."""
    run = whole["seeded"].run
    folders = sorted((run / "checkpoints").glob("step_*"))
    stored = [read_checkpoint(path) for path in folders if path.name != "step_000000000000"]
    first, last = stored[0], stored[-1]
    assert set(last.tensors) >= {
        "policy",
        "environment",
        "random",
        "entropy",
        "optimizer_actor",
        "optimizer_critic",
        "optimizer_entropy",
    }
    for name in ("policy", "optimizer_actor", "optimizer_critic", "random", "entropy"):
        before, after = first.tensors[name], last.tensors[name]
        assert any(
            before[k].shape != v.shape or not torch.equal(before[k], v) for k, v in after.items()
        ), name
    rows = replayed(last.path)["replay/row"]
    assert len(rows) == 20 * 4 * 8, "the buffer has wrapped"
    assert rows != replayed(first.path)["replay/row"]
    assert last.state["counters"]["num_timesteps"] == whole["seeded"].steps


@pytest.mark.parametrize("kind", ["seeded", "scratch"])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    folder: Path, whole: dict[str, Finetuned], kind: str
) -> None:
    """A copy of a finished run, put back to a checkpoint: later lines are written anew."""
    run = folder / "logs" / "cqsac" / f"killed-{kind}_1"
    shutil.copytree(whole[kind].run, run)
    named = sorted((run / "checkpoints").glob("step_*"))[1]
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 9999, "half a li')
    shutil.rmtree(run / "best")
    shutil.copytree(whole[kind].run / "best", run / "best")
    last = resume(named)
    assert last.finished
    assert run_files(run).metrics == run_files(whole[kind].run).metrics
    assert run_files(run).checkpoint == run_files(whole[kind].run).checkpoint


class Interrupt(Watch):
    """Sends this process a signal once fine-tuning has come to a step."""

    def __init__(self, step: int, number: signal.Signals):
        self.step, self.number, self.sent = step, number, False

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "fine-tuning" and done >= self.step and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(
    folder: Path, whole: dict[str, Finetuned], number: signal.Signals
) -> None:
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stopped = finetune(settings_of(folder, "scratch"), watch=Interrupt(120, number))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not stopped.finished
    assert 120 <= stopped.steps <= 140
    last = resume(stopped.run)
    assert last.finished
    assert_same(stopped.run, whole["scratch"].run)


def test_resuming_a_finished_run_does_nothing(folder: Path, whole: dict[str, Finetuned]) -> None:
    run = folder / "logs" / "cqsac" / "finished_1"
    shutil.copytree(whole["scratch"].run, run)
    last = resume(run)
    assert last.finished and last.steps == whole["scratch"].steps
    assert_same(run, whole["scratch"].run)


def test_a_finished_run_can_go_further(folder: Path, whole: dict[str, Finetuned]) -> None:
    run = folder / "logs" / "cqsac" / "further_1"
    shutil.copytree(whole["scratch"].run, run)
    last = resume(run, n_timesteps=280)
    assert last.finished and last.steps == 280
    before, after = run_files(whole["scratch"].run).metrics, run_files(run).metrics
    assert after.startswith(before) and len(after) > len(before)


def test_other_settings_are_refused(folder: Path, whole: dict[str, Finetuned]) -> None:
    run = folder / "logs" / "cqsac" / "other_1"
    shutil.copytree(whole["scratch"].run, run)
    config = run / "config.yml"
    text = config.read_text()
    assert "n_quantiles: 5" in text
    config.write_text(
        text.replace("n_quantiles: 5", "n_quantiles: 6").replace(
            "n_timesteps: 240", "n_timesteps: 500"
        )
    )
    with pytest.raises(ConfigError, match=r"policy_kwargs.n_quantiles: .* can't change") as caught:
        resume(run)
    assert "\n" not in str(caught.value)
