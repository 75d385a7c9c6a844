"""Epochs by value and by backtest: correlation by hand, words, files, and pretraining runs."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import run_files, tiny_settings
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.errors import ArtefactError
from finflow_sb3.evaluation.ranking import RankedEpoch, Ranking, rank_correlation, ranking
from finflow_sb3.pipeline import Pretrained, Watch, evaluate, finetune, pretrain
from finflow_sb3.pretrain.choosing import best_by_value
from finflow_sb3.pretrain.course import Course, Epoch
from finflow_sb3.resuming import continue_training, resume_pretraining
from finflow_sb3.runs.checkpoints import CheckpointStore
from finflow_sb3.runs.folder import RunFolder

# ------------------------------------------------------------------- figures


def pairs(first: list[float], second: list[float]) -> np.ndarray:
    return np.array([first, second], dtype=np.float64).T


def test_correlation_by_hand() -> None:
    """1 − 6·Σd²/(n·(n² − 1)) with d = (0, 1, −1, 0): 1 − 12/60 = 0.8."""
    found, p_value = rank_correlation(pairs([1, 2, 3, 4], [10, 30, 20, 99]))
    assert found == pytest.approx(0.8)
    every = [
        1 - 6 * sum((a - b) ** 2 for a, b in zip(range(4), order, strict=True)) / 60
        for order in itertools.permutations(range(4))
    ]
    # Twice the smaller tail, as scipy has it.
    tail = sum(value >= 0.8 - 1e-9 for value in every) / 24
    assert p_value == pytest.approx(2 * tail)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("count", [5, 20])
def test_perfect_agreement(sign: float, count: int) -> None:
    values = np.arange(count, dtype=float)
    found, p_value = rank_correlation(pairs(list(values), list(sign * np.exp(values))))
    assert found == pytest.approx(sign)
    assert p_value == pytest.approx(2 / 120 if count == 5 else 2e-4)


@pytest.mark.parametrize(
    "given",
    [
        pairs([1, 2], [1, 2]),
        pairs([1, 2, 3], [7, 7, 7]),
        pairs([1, 2, math.nan], [1, 2, 3]),
        np.zeros((0, 2)),
    ],
    ids=["two", "constant", "nan", "none"],
)
def test_what_has_no_correlation(given: np.ndarray) -> None:
    assert rank_correlation(given) == (None, None)


def ranked(*sharpes: float | None) -> Ranking:
    """Values that fall as epochs go on."""
    epochs = [RankedEpoch(i + 1, 1.0 - i, 0.1, s) for i, s in enumerate(sharpes)]
    return ranking(epochs, steps=10, gamma=0.9)


def test_words_are_honest() -> None:
    few = ranked(1.1, 1.3, 1.2)
    assert few.correlation == pytest.approx(-0.5)
    assert "over 3 epochs: −0.50, as chance may do as well (p\u00a0=\u00a01.00)" in few.sentence()
    many = ranked(*np.linspace(1.0, 0.5, 6))
    assert "1.00, more than chance explains (p\u00a0=\u00a00.00)" in many.sentence()
    assert "Over 2 epochs no rank correlation" in ranked(1.0, 1.1).sentence()
    none = ranked(None, None, None, None)
    assert none.correlation is None
    assert "No backtest judged these 4 epochs" in none.sentence()


def test_without_a_market_the_highest_value_is_chosen() -> None:
    found = ranking(
        [RankedEpoch(n, v, None, None) for n, v in ((1, 0.2), (2, 0.7), (3, 0.7), (4, -1.0))],
        steps=1,
        gamma=0.9,
    )
    assert found.best.epoch == 2
    broken = dataclasses.replace(found.epochs[0], value=math.nan)
    assert dataclasses.replace(found, epochs=(broken, *found.epochs[1:])).best.epoch == 2
    course = Course()
    for number in (1, 2, 3, 4):
        epoch = Epoch(number, {}, {"sharpe": -float(number)})
        course.keep(
            epoch,
            lambda n=number: {"policy.x": torch.tensor(n)},
            4,
            lambda e: e.validation["sharpe"],
        )
    chosen = best_by_value(course.kept, found)
    assert (chosen.epoch.number, int(chosen.weights["policy.x"])) == (2, 2)
    course.put_first(chosen)
    assert [each.epoch.number for each in course.kept] == [2, 1, 3, 4]
    assert course.best is chosen.epoch


@pytest.mark.parametrize("room", [1, 3])
def test_the_best_epochs_are_kept(room: int) -> None:
    course, taken = Course(), []
    sharpes = [0.5, 0.9, 0.9, 0.1, 1.2, 0.7]
    for number, sharpe in enumerate(sharpes, start=1):
        epoch = Epoch(number, {}, {"sharpe": sharpe})
        course.keep(
            epoch, lambda n=number: taken.append(n) or {}, room, lambda e: e.validation["sharpe"]
        )
    assert [each.epoch.number for each in course.kept] == [5, 2, 3][:room]
    assert taken == ([1, 2, 5] if room == 1 else [1, 2, 3, 5]), "others are not copied"
    assert course.best is course.kept[0].epoch


def test_json_round_trip() -> None:
    found = ranked(1.0, None, 0.5)
    plain = json.loads(json.dumps(found.as_dict()))
    assert Ranking.from_dict(plain, "fqe.json") == found
    del plain["epochs"][0]["value"]
    with pytest.raises(ArtefactError, match=r"fqe\.json: is not whole"):
        Ranking.from_dict(plain, "fqe.json")


# ------------------------------------------------------------------- runs


def settings_of(folder: Path) -> Settings:
    return tiny_settings(folder).replace(iql={"epochs": 4, "fqe_epochs": 3, "fqe_steps": 4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranking")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Pretrained:
    return pretrain(settings_of(folder))


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_a_run_has_it_everywhere(whole: Pretrained) -> None:
    found = whole.fqe
    assert found is not None and whole.finished
    sharpes = {line["epoch"]: line["validation_sharpe"] for line in lines_of(whole.run, "pretrain")}
    best = sorted(sharpes, key=lambda epoch: -sharpes[epoch])[:3]
    assert [each.epoch for each in found.epochs] == best
    assert [each.sharpe for each in found.epochs] == [sharpes[epoch] for epoch in best]
    assert found.epochs[0].epoch == whole.best_epoch
    assert len({each.value for each in found.epochs}) == 3
    logged = [(x["step"], x["epoch"], x["value"]) for x in lines_of(whole.run, "fqe")]
    assert logged == [(20, each.epoch, each.value) for each in found.epochs]
    noted = Ranking.from_dict(json.loads((whole.run / "fqe.json").read_text()), "fqe.json")
    assert noted == found


def test_without_it_the_same_is_learned(folder: Path, whole: Pretrained) -> None:
    plain = pretrain(settings_of(folder).replace(iql={"fqe_epochs": 0}))
    assert plain.fqe is None
    assert not (plain.run / "fqe.json").exists()
    assert lines_of(plain.run, "pretrain") == lines_of(whole.run, "pretrain")
    assert run_files(plain.run).best == run_files(whole.run).best


class StopWhile(Watch):
    """Stops at a step of a stage, as SIGTERM does."""

    def __init__(self, stage: str, step: int):
        self.stage, self.step = stage, step

    def progress(self, stage: str, done: int, total: int) -> None:
        if (stage, done) == (self.stage, self.step):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("stage", "step"), [("pretraining", 12), ("judging", 1), ("judging", 7)], ids=str
)
def test_stop_and_resume_is_one_go(folder: Path, whole: Pretrained, stage: str, step: int) -> None:
    stopped = pretrain(settings_of(folder), watch=StopWhile(stage, step))
    assert not stopped.finished and stopped.fqe is None
    assert not (stopped.run / "fqe.json").exists()
    torch.manual_seed(12345)
    done = resume_pretraining(stopped.run)
    assert (done.finished, done.fqe) == (True, whole.fqe)
    mine, theirs = run_files(done.run), run_files(whole.run)
    assert (mine.metrics, mine.best) == (theirs.metrics, theirs.best)
    assert mine.checkpoint == theirs.checkpoint


def test_kept_weights_are_in_the_checkpoint(whole: Pretrained) -> None:
    checkpoint = CheckpointStore(whole.run / "checkpoints").newest_whole(print)
    assert checkpoint is not None and whole.fqe is not None
    assert checkpoint.state["kept"] == [each.epoch for each in whole.fqe.epochs]
    names = [set(checkpoint.tensors[f"kept_{place}"]) for place in range(3)]
    assert names[0] == names[1] == names[2]
    assert any(name.startswith("policy.") for name in names[0])


def test_train_comes_back_to_it(folder: Path) -> None:
    """Learned to the end but not judged yet: `train --resume` does that first."""
    stopped = pretrain(settings_of(folder), watch=StopWhile("judging", 2), plan="offline")
    done = continue_training(stopped.run)
    assert done.pretrained is not None and done.pretrained.fqe is not None
    again = continue_training(stopped.run)
    assert again.pretrained is None


def test_what_was_not_kept_cannot_be_judged(folder: Path) -> None:
    run = pretrain(settings_of(folder).replace(iql={"fqe_epochs": 0})).run

    class Listening(Watch):
        remarks: tuple[str, ...] = ()

        def remark(self, text: str) -> None:
            self.remarks += (text,)

    watch = Listening()
    done = resume_pretraining(run, settings=settings_of(folder), watch=watch)
    assert done.fqe is not None and len(done.fqe.epochs) == 1
    assert any(text.startswith("Judged 1 of 3 epochs") for text in watch.remarks)


def test_the_reports_have_it(folder: Path, whole: Pretrained) -> None:
    settings = settings_of(folder).replace(cqsac={"n_timesteps": 40, "learning_starts": 20})
    tuned = finetune(settings, whole.run)
    assert whole.fqe is not None
    for run in (whole.run, tuned.run):
        page = evaluate(run).report.read_text()
        assert "<h2>Pretraining</h2>" in page
        assert f"Epoch {whole.fqe.epochs[2].epoch}" in page
        assert f"{whole.fqe.epochs[1].sharpe:.3f}".replace("-", "−") in page
        content = json.loads((run / "report" / "metrics.json").read_text())
        assert content["pretraining"]["epochs"][0]["epoch"] == whole.best_epoch


def test_a_damaged_file_is_named(folder: Path) -> None:
    run = pretrain(settings_of(folder)).run
    (run / "fqe.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"fqe\.json: is not whole"):
        evaluate(run)


def test_the_command_shows_it(folder: Path) -> None:
    config = pretrain(settings_of(folder)).run / "config.yml"
    done = CliRunner().invoke(app, ["pretrain", "-c", str(config), "-p", "fqe_epochs:2"])
    assert done.exit_code == 0, done.output
    assert "Fitted Q evaluation, 4 steps each" in done.stdout
    assert "Over 2 epochs no rank correlation" in done.stdout


def test_results_are_plain(whole: Pretrained) -> None:
    assert whole.fqe is not None
    assert json.loads(json.dumps(dataclasses.asdict(whole.fqe)))["steps"] == 4


@pytest.mark.parametrize(
    "change",
    [{"epochs": []}, {"steps": None}, {"epochs": [{"epoch": 1, "value": None}]}, {"gamma": "x"}],
)
def test_files_that_are_not_whole(change: dict[str, Any]) -> None:
    content = {**ranked(1.0, 1.1, 1.2).as_dict(), **change}
    with pytest.raises(ArtefactError, match=r"fqe\.json: is not whole"):
        Ranking.from_dict(json.loads(json.dumps(content)), "fqe.json")


def test_fewer_epochs_are_judged_where_fewer_are_asked_for(whole: Pretrained) -> None:
    run = Path(shutil.copytree(whole.run, whole.run.with_name("fewer")))
    settings = RunFolder.open(run).settings().replace(iql={"fqe_epochs": 1})
    again = resume_pretraining(run, settings=settings)
    assert again.fqe is not None and len(again.fqe.epochs) == 1
