"""Pretraining that stops or is killed goes on to the same end, and `train` with it."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from learning_fixtures import run_files, tiny_settings

from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.errors import ArtefactError, CheckpointError, ConfigError
from finflow_sb3.pipeline import Pretrained, Watch, pretrain, train
from finflow_sb3.pretrain.artefact import read_artefact
from finflow_sb3.resuming import continue_training, resume, resume_pretraining


def settings_of(folder: Path) -> Settings:
    """Four epochs of five steps, of either algorithm."""
    return tiny_settings(folder).replace(iql={"epochs": 4}, td3bc={"epochs": 4})


@pytest.fixture(scope="module", params=OFFLINE_ALGORITHMS)
def algo(request: pytest.FixtureRequest) -> OfflineAlgorithm:
    name: OfflineAlgorithm = request.param
    return name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretraining")


@pytest.fixture(scope="module")
def whole(folder: Path, algo: OfflineAlgorithm) -> Pretrained:
    return pretrain(settings_of(folder), algo=algo)


def copy_of(whole: Pretrained, name: str) -> Path:
    """The whole run once more, beside it."""
    run = whole.run.parent / name
    shutil.copytree(whole.run, run)
    return run


def assert_same(first: Path, second: Path) -> None:
    mine, theirs = run_files(first), run_files(second)
    assert mine.metrics == theirs.metrics
    assert mine.best == theirs.best
    assert mine.checkpoint == theirs.checkpoint


@pytest.mark.parametrize("stops", [(1,), (5,), (7, 13)], ids=str)
def test_stop_and_resume_is_one_go(
    folder: Path, algo: OfflineAlgorithm, whole: Pretrained, stops: tuple[int, ...]
) -> None:
    assert whole.finished and whole.steps == 20
    first = pretrain(settings_of(folder), stop_at=stops[0], algo=algo)
    assert first.run.parent.name == algo
    assert (first.finished, first.steps) == (False, stops[0])
    assert (first.best_epoch is None) == (stops[0] < 5)
    for stop in stops[1:]:
        torch.manual_seed(12345)
        assert resume_pretraining(first.run, stop_at=stop).steps == stop
    last = resume_pretraining(first.run)
    assert (last.finished, last.best_epoch) == (True, whole.best_epoch)
    assert last.validation == whole.validation
    assert_same(first.run, whole.run)


def test_going_on_from_a_named_checkpoint(whole: Pretrained) -> None:
    run = copy_of(whole, "named_1")
    last = resume_pretraining(run / "checkpoints" / "step_000000000005")
    assert last.finished
    assert_same(run, whole.run)


def test_what_best_holds_may_be_from_after_the_checkpoint(whole: Pretrained) -> None:
    """A process was killed between a better epoch and its checkpoint; then it learns otherwise."""
    run = copy_of(whole, "ahead_1")
    first = run / "checkpoints" / "step_000000000005"
    stopped = resume_pretraining(first, stop_at=6)
    assert stopped.best_epoch == 1
    assert read_artefact(run / "best").facts["epoch"] == 1


class Interrupt(Watch):
    def __init__(self, step: int, number: signal.Signals):
        self.step, self.number = step, number
        self.remarks: list[str] = []

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "pretraining" and done == self.step:
            os.kill(os.getpid(), self.number)

    def remark(self, text: str) -> None:
        self.remarks.append(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_stops(
    folder: Path, algo: OfflineAlgorithm, whole: Pretrained, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    stopped = pretrain(settings_of(folder), watch=Interrupt(8, number), algo=algo)
    assert signal.getsignal(number) == before
    assert (stopped.finished, stopped.steps) == (False, 8)
    assert resume_pretraining(stopped.run).finished
    assert_same(stopped.run, whole.run)


def test_the_one_before_a_damaged_checkpoint(whole: Pretrained) -> None:
    run = copy_of(whole, "damaged_1")
    file = run / "checkpoints" / "step_000000000020" / "q_funcs.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    watch = Interrupt(0, signal.SIGINT)
    assert resume_pretraining(run, watch=watch).finished
    assert watch.remarks[0].startswith(f"{file}: has ")
    assert "Resuming at gradient step 15 of 20." in watch.remarks
    assert_same(run, whole.run)


def test_settings_may_change_but_not_all(
    folder: Path, algo: OfflineAlgorithm, whole: Pretrained
) -> None:
    run = copy_of(whole, "changed_1")
    watch = Interrupt(0, signal.SIGINT)
    settings = settings_of(folder)
    longer = settings.replace(**{algo: {"epochs": 5, "actor_lr": 1e-5}})
    done = resume_pretraining(run, settings=longer, watch=watch)
    assert (done.finished, done.steps) == (True, 25)
    assert {
        f"{algo}.epochs is 5 from here on; it was 4.",
        f"{algo}.actor_lr is 1e-05 from here on; it was 0.0003.",
    } <= set(watch.remarks)
    fixed: list[dict[str, dict[str, Any]]] = [
        {algo: {"n_quantiles": 9}},
        {"run": {"seed": 3}},
        {"market": {"anchor_cap": 0.3}},
    ]
    for changes in fixed:
        with pytest.raises(ConfigError, match="can't change"):
            resume_pretraining(run, settings=longer.replace(**changes))
    with pytest.raises(ArtefactError, match="is a pretraining run"):
        resume(run)


def test_train_goes_through_what_is_left(folder: Path, algo: OfflineAlgorithm) -> None:
    settings = settings_of(folder).replace(cqsac={"n_timesteps": 40, "learning_starts": 20})
    whole = train(settings, offline_algo=algo)
    stopped = train(settings, watch=Interrupt(8, signal.SIGTERM), offline_algo=algo)
    assert stopped.finetuned is None and stopped.evaluated is None
    assert stopped.pretrained is not None and not stopped.pretrained.finished
    done = continue_training(stopped.pretrained.run)
    assert done.pretrained is not None and done.pretrained.finished
    assert done.finetuned is not None and done.finetuned.steps == 40
    assert done.evaluated is not None and whole.evaluated is not None
    assert done.evaluated.measures == whole.evaluated.measures
    again = continue_training(stopped.pretrained.run)  # what is done is not done again
    assert again.pretrained is None and again.finetuned is not None


def test_train_offline_ends_offline(folder: Path) -> None:
    stopped = train(settings_of(folder), "offline", watch=Interrupt(8, signal.SIGINT))
    assert stopped.pretrained is not None
    done = continue_training(stopped.pretrained.run)
    assert done.finetuned is None and done.evaluated is not None
    assert done.evaluated.policy == "iql"


def test_a_run_of_before_there_were_others_is_of_iql(folder: Path) -> None:
    """`plan.txt` had the plan alone."""
    run = pretrain(settings_of(folder), stop_at=6).run
    (run / "plan.txt").write_text("full\n")
    assert resume_pretraining(run, stop_at=7).steps == 7
    (run / "plan.txt").write_text("full\nsarsa\n")
    with pytest.raises(ArtefactError, match=r"plan\.txt: 'sarsa' is no algorithm"):
        resume_pretraining(run)


def test_a_run_that_was_killed_before_it_began(whole: Pretrained) -> None:
    run = copy_of(whole, "early_1")
    shutil.rmtree(run / "checkpoints")
    assert resume_pretraining(run).finished  # begins again
    assert_same(run, whole.run)
    (run / "market.json").unlink()
    with pytest.raises(ArtefactError, match="before its training began"):
        resume_pretraining(run)


def test_a_checkpoint_of_other_networks(
    folder: Path, algo: OfflineAlgorithm, whole: Pretrained
) -> None:
    run = copy_of(whole, "networks_1")
    for path in (run / "checkpoints").glob("step_*"):
        shutil.rmtree(path)
    wider = settings_of(folder).replace(**{algo: {"n_quantiles": 7}})
    other = pretrain(wider, stop_at=5, algo=algo)
    shutil.copytree(other.run / "checkpoints", run / "checkpoints", dirs_exist_ok=True)
    with pytest.raises((CheckpointError, ConfigError), match="n_quantiles"):
        resume_pretraining(run)
