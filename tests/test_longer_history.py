"""A run goes on with prices that reach further, and with settings that may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from learning_fixtures import run_files, tiny_settings, write_prices
from markets import random_prices

from finflow_sb3.config_files import read_config
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.pipeline import Finetuned, Pretrained, Watch, finetune, pretrain
from finflow_sb3.resuming import resume, resume_pretraining
from finflow_sb3.training.build import build_env

ADDED = 60


class Notebook(Watch):
    def __init__(self) -> None:
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        self.remarks.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prices of 600 days, and of 60 more; the same once more adjusted; and others."""
    path = tmp_path_factory.mktemp("longer")
    table = random_prices(5, 600 + ADDED, seed=0)
    # `random_prices` of another length is another market: the shorter file is cut from it.
    write_prices(table.rows(0, 600), path / "prices.csv")
    write_prices(table, path / "longer.csv")
    frame = pd.read_csv(path / "longer.csv", index_col=0)
    factors = pd.Series([1.0, 0.97, 0.5, 0.991, 1.0], index=frame.columns)
    (frame * factors).to_csv(path / "adjusted.csv")
    other = frame.copy()
    other.iloc[100, 2] *= 1.05
    other.to_csv(path / "other.csv")
    frame.rename(columns={frame.columns[0]: "ZZZ"}).to_csv(path / "universe.csv")
    return path


@pytest.fixture(scope="module")
def runs(folder: Path) -> tuple[Pretrained, Finetuned]:
    settings = tiny_settings(folder)
    pretrained = pretrain(settings, stop_at=7)
    return pretrained, finetune(settings, stop_at=120)


def copy(run: Path, name: str) -> Path:
    target = run.with_name(name)
    shutil.copytree(run, target)
    return target


def config(run: Path) -> Any:
    return read_config(run / "config.yml")


@pytest.mark.parametrize("prices", ["longer.csv", "adjusted.csv"])
def test_training_moves_on_with_the_days(
    folder: Path,
    runs: tuple[Pretrained, Finetuned],
    prices: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    envs = []

    def spy(*args: Any) -> Any:
        envs.append(build_env(*args))
        return envs[-1]

    monkeypatch.setattr("finflow_sb3.training.finetune.build_env", spy)
    run = copy(runs[1].run, f"moved-{prices}_1")
    before, watch = config(run).market, Notebook()
    done = resume(run, watch=watch, prices=str(folder / prices))
    assert done.finished and done.steps == 240
    after, dates = config(run).market, random_prices(5, 600 + ADDED).dates.astype(str).tolist()
    for name in ("train_end", "validation_end"):
        shift = dates.index(getattr(after, name)) - dates.index(getattr(before, name))
        assert shift == ADDED
    assert after.prices == str(folder / prices)
    said = f"new from {dates[600]} on ({ADDED} days); training now ends on {after.train_end}"
    assert any(said in remark for remark in watch.remarks)
    # It draws its episodes from the longer split, and knows the features by the old scaler.
    assert envs[0].batch.span.stop - 1 == dates.index(after.train_end) - 1
    scaler = json.loads((run / "best" / "scaler.json").read_text())
    assert scaler == json.loads((runs[1].run / "best" / "scaler.json").read_text())


def test_going_on_once_more_is_exact(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    """After the longer history has come, stopping and going on is as before."""
    whole, parts = copy(runs[1].run, "once_1"), copy(runs[1].run, "once_2")
    prices = str(folder / "longer.csv")
    resume(whole, prices=prices)
    resume(parts, prices=prices, stop_at=180)
    watch = Notebook()
    resume(parts, watch=watch)
    assert watch.remarks == ["Resuming at step 180 of 240."]
    mine, theirs = run_files(parts), run_files(whole)
    assert mine.metrics == theirs.metrics and mine.best == theirs.best
    assert mine.checkpoint == theirs.checkpoint


def test_the_best_is_measured_anew(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    run = copy(runs[1].run, "anew_1")
    resume(run, prices=str(folder / "longer.csv"))
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    later = [x for x in lines if x["kind"] == "validation" and x["step"] > 120]
    assert later[0]["best"] is True


def test_dates_that_are_given_hold(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    run = copy(runs[1].run, "given_1")
    end = config(run).market.train_end
    later = str(np.datetime64(end) + 14)
    settings = config(run).replace(market={"train_end": later})
    resume(run, settings=settings, prices=str(folder / "longer.csv"))
    assert np.datetime64(config(run).market.train_end) <= np.datetime64(later)
    assert config(run).market.train_end > end


def test_pretraining_too(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    run = copy(runs[0].run, "pretraining_1")
    watch = Notebook()
    done = resume_pretraining(run, watch=watch, prices=str(folder / "longer.csv"))
    assert done.finished and done.best_epoch == 2  # epoch 1 was judged on another split
    assert any(f"({ADDED} days)" in remark for remark in watch.remarks)


def test_finished_pretraining_is_not_judged_anew(
    folder: Path, runs: tuple[Pretrained, Finetuned]
) -> None:
    """No epoch is left that could be: `best/` would be of another validation."""
    run = copy(runs[0].run, "finished_1")
    resume_pretraining(run)
    before = (run / "config.yml").read_bytes()
    with pytest.raises(ConfigError, match="validation would begin anew; say with --epochs"):
        resume_pretraining(run, prices=str(folder / "longer.csv"))
    assert (run / "config.yml").read_bytes() == before


def test_no_new_days(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    run = copy(runs[1].run, "same_1")
    moved = folder / "moved.csv"
    shutil.copy(folder / "prices.csv", moved)
    watch = Notebook()
    resume(run, watch=watch, prices=str(moved))
    assert any("has no days after" in remark for remark in watch.remarks)
    assert config(run).market.train_end == config(runs[1].run).market.train_end


@pytest.mark.parametrize(
    ("prices", "part"),
    [
        ("other.csv", "was trained on other prices"),
        ("universe.csv", "lacks S00 and adds ZZZ"),
        ("none.csv", "no such file"),
    ],
)
def test_what_is_no_longer_history_is_refused(
    folder: Path, runs: tuple[Pretrained, Finetuned], prices: str, part: str
) -> None:
    run = runs[1].run
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(Exception, match=part) as caught:
        resume(run, prices=str(folder / prices))
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_shorter_history_is_refused(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    frame = pd.read_csv(folder / "prices.csv", index_col=0)
    frame.head(590).to_csv(folder / "shorter.csv")
    with pytest.raises(ArtefactError, match="other prices"):
        resume(runs[1].run, prices=str(folder / "shorter.csv"))


def test_a_finished_run_needs_more_steps(folder: Path, runs: tuple[Pretrained, Finetuned]) -> None:
    run = copy(runs[1].run, "finished_1")
    resume(run)
    with pytest.raises(ConfigError, match="--n-timesteps"):
        resume(run, prices=str(folder / "longer.csv"))
    more = resume(run, prices=str(folder / "longer.csv"), n_timesteps=300)
    assert more.finished and more.steps == 300


def test_every_setting_that_differs_is_named(runs: tuple[Pretrained, Finetuned]) -> None:
    run = copy(runs[1].run, "differs_1")
    changes = {"batch_size": 8, "critic_lr": 1e-3, "cql_alpha": 0.5}
    monitor = {"warning_limits": {"critic_loss": 30.0}}
    settings = config(run).replace(cqsac=changes, env_kwargs={"fee": 0.002}, monitor=monitor)
    watch = Notebook()
    assert resume(run, settings=settings, watch=watch).finished
    named = {remark.split(" is ")[0] for remark in watch.remarks if " from here on" in remark}
    limit = "monitor.warning_limits.critic_loss"
    assert named == {"env_kwargs.fee", limit, *(f"cqsac.{name}" for name in changes)}
    assert config(run).cqsac.batch_size == 8
