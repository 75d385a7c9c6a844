"""Every command that meets a pretraining run meets one of TD3+BC as well."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_fixtures import runs_in, write_prices, write_tiny
from safetensors.torch import load_file
from typer.testing import CliRunner

from finflow_sb3 import pipeline
from finflow_sb3.cli.app import app
from finflow_sb3.config_files import read_config
from finflow_sb3.pipeline import Trained


def run(*args: Any) -> Any:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    return runner.invoke(app, [str(arg) for arg in args])


def fine(*args: Any) -> Any:
    """The result of a command that has to end well."""
    result = run(*args)
    assert result.exit_code == 0, f"{result.stderr}{result.exception!r}"
    return result


@dataclass(frozen=True)
class Work:
    """A pretraining run of TD3+BC, and one of fine-tuning that it seeded."""

    config: Path
    pretrain: Any
    pretrained: Path
    finetune: Any
    finetuned: Path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("td3bc")
    config = write_tiny(folder / "tiny.yml", write_prices(folder / "prices.csv"), folder / "logs")
    flags = ["-p", "gamma:0.9", "-p", "td3bc.update_actor_interval:1", "--alpha", "1.5"]
    pretrain = fine("pretrain", "--algo", "td3bc", "-c", config, *flags)
    (pretrained,) = runs_in(folder / "logs")
    finetune = fine("finetune", "--pretrained", pretrained)
    finetuned = next(run for run in runs_in(folder / "logs") if run.parent.name == "cqsac")
    return Work(config, pretrain, pretrained, finetune, finetuned)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def test_pretrain_takes_its_flags(work: Work) -> None:
    settings = read_config(work.pretrained / "config.yml")
    assert (settings.td3bc.alpha, settings.td3bc.update_actor_interval) == (1.5, 1)
    assert (settings.td3bc.gamma, settings.iql.gamma) == (0.9, 0.99)
    assert work.pretrained.parent.name == "td3bc"


def test_pretrain_prints_the_losses_that_it_has(work: Work) -> None:
    heading, *epochs = work.pretrain.stderr.splitlines()[1:]
    assert heading.split()[:6] == ["epoch", "Q", "loss", "policy", "cloning", "Sharpe"]
    assert [line.split()[0] for line in epochs] == ["1", "2"]
    assert {len(line) for line in epochs} == {len(heading)}
    written = [json.loads(line) for line in (work.pretrained / "metrics.jsonl").open()]
    assert all({"q_loss", "policy_loss", "bc_loss"} <= set(line) for line in written)
    assert not any("v_loss" in line for line in written)
    assert f"finflow finetune --pretrained {work.pretrained}" in work.pretrain.stdout


def test_finetune_says_what_it_was_seeded_with(work: Work) -> None:
    said = " ".join(work.finetune.stderr.split())
    assert "cal_ql is off" in said
    assert "Seeded exactly, in parameters: policy mean " in said
    assert "Starts fresh: σ, optimisers, entropy coefficient, replay buffer." in said
    assert "Not pretrained, and left out: V." in said
    settings = read_config(work.finetuned / "config.yml")
    assert settings.cqsac.cal_ql is False
    assert settings.cqsac.target_entropy == "seeded"
    seed = load_file(work.finetuned / "seed" / "weights.safetensors")
    assert {name.partition(".")[0] for name in seed} == {
        "policy_mean",
        "critics",
        "target_critics",
    }


def test_finetune_without_the_floor_needs_no_remark(work: Work, logs: Path) -> None:
    args = ["-p", "cal_ql:false", "--n-timesteps", "16", "--log-dir", logs]
    assert "cal_ql" not in fine("finetune", "--pretrained", work.pretrained, *args).stderr


def test_a_floor_that_is_asked_for_later_is_refused(work: Work, tmp_path: Path) -> None:
    copy = tmp_path / "run_1"
    shutil.copytree(work.finetuned, copy)
    result = run("finetune", "--resume", copy, "-p", "cal_ql:true", "--n-timesteps", "700")
    assert result.exit_code == 1
    assert "cal_ql: floors Q at a pretrained V, and td3bc has none" in result.stderr


def test_resumed_runs_know_their_algorithm(work: Work, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(work.pretrained, copy)
    result = fine("pretrain", "--resume", copy, "--epochs", "3", "--alpha", "2")
    assert "td3bc.alpha is 2.0 from here on; it was 1.5." in result.stderr
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 3
    first, second = tmp_path / "a", tmp_path / "b"
    for place in (first, second):
        shutil.copytree(work.finetuned, place)
        fine("finetune", "--resume", place, "--n-timesteps", "700")
    latest = [max((place / "checkpoints").glob("step_*")) for place in (first, second)]
    states = [load_file(path / "policy.safetensors") for path in latest]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("which", ["pretrained", "finetuned"])
def test_evaluate(work: Work, which: str) -> None:
    result = fine("evaluate", getattr(work, which))
    name = "TD3+BC" if which == "pretrained" else "CQSAC"
    assert any(line.split()[:1] == [name] for line in result.stdout.splitlines())


def test_plot_and_watch(work: Work, tmp_path: Path) -> None:
    fine("plot", work.pretrained, "--output", tmp_path)
    assert list(tmp_path.glob("*.png"))
    shown = " ".join(fine("watch", work.pretrained, "--once").stdout.split())
    assert "cloning loss" in shown and "critic loss" in shown and "value loss" not in shown


def test_exported_and_imported_again(work: Work, tmp_path: Path, logs: Path) -> None:
    """The zip has no V either, and is known as one that was seeded without."""
    path = tmp_path / "model.zip"
    fine("checkpoint", "export", work.finetuned, path)
    config = work.finetuned / "config.yml"
    fine("checkpoint", "import", path, "--trust", "-c", config, "--log-dir", logs)
    (made,) = runs_in(logs)
    head = json.loads((made / "seed" / "artefact.json").read_text())
    assert head["sizes"]["expert_hidden"] == 4
    fine("finetune", "--resume", made, "--n-timesteps", "1400")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["pretrain", "--algo", "td3bc", "--expectile", "0.7"], ["--expectile: is of iql"]),
        (["pretrain", "--alpha", "1"], ["--alpha: is of td3bc", "this is iql"]),
        (
            ["pretrain", "--algo", "td3bc", "--alpha", "-1"],
            ["--alpha: td3bc.alpha", "out of range"],
        ),
        (["train", "--td3bc-epochs", "1"], ["iql pretrains", "--offline-algo td3bc"]),
        (["train", "--mode", "online", "--offline-algo", "iql"], ["does not pretrain"]),
        (["train", "--mode", "demo", "--td3bc-epochs", "1"], ["lengths of its own"]),
        (["pretrain", "--resume", "RUN", "--algo", "td3bc"], ["leave out --algo"]),
        (["pretrain", "--resume", "RUN", "--weight-temp", "1"], ["--weight-temp: is of iql"]),
        (["pretrain", "--resume", "RUN", "-p", "n_quantiles:9"], ["td3bc.n_quantiles: 9 differs"]),
        (["train", "--resume", "RUN", "--offline-algo", "iql"], ["leave out --offline-algo"]),
        (["config", "export", "--zoo", "--algo", "td3bc"], ["td3bc is no algorithm of Stable"]),
    ],
)
def test_refused(work: Work, args: list[str], parts: list[str]) -> None:
    result = run(*(work.pretrained if arg == "RUN" else arg for arg in args))
    assert result.exit_code == 1
    for part in parts:
        assert part in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "epochs"),
    [
        (["--offline-algo", "td3bc", "--td3bc-epochs", "7"], 7),
        (["--offline-algo", "td3bc", "-p", "epochs:8"], 8),
        (["--offline-algo", "td3bc", "-p", "td3bc.epochs:9", "--mode", "full"], 9),
    ],
)
def test_train_takes_its_flags(
    work: Work, monkeypatch: pytest.MonkeyPatch, flags: list[str], epochs: int
) -> None:
    calls: list[tuple[Any, ...]] = []

    def train(*given: Any, **_: Any) -> Trained:
        calls.append(given)
        return Trained(None, None, None)

    monkeypatch.setattr(pipeline, "train", train)
    fine("train", "-c", work.config, "--batch-size", "33", *flags)
    ((settings, _, _, _, algo),) = calls
    assert algo == "td3bc"
    assert settings.td3bc.epochs == epochs
    assert settings.td3bc.batch_size == settings.cqsac.batch_size == 33
    assert settings.iql.batch_size == 16
