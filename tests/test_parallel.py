"""Several processes on one batch are one process on the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from parallel_worker import CASES
from safetensors.torch import load_file

from finflow_sb3.errors import ConfigError
from finflow_sb3.parallel import (
    JointNoise,
    Workers,
    any_of,
    first_goes_first,
    from_first,
    rank,
    require_alone,
    world_size,
)

HERE = Path(__file__).parent


def run(processes: int, target: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(HERE / "parallel_worker.py"), str(target)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("parallel")
    run(2, target)
    run(1, target)
    return target


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_on_the_joined_batch(case: str, results: Path) -> None:
    two, one = (json.loads((results / f"{case}_{n}_0.json").read_text()) for n in (2, 1))
    for mine, theirs in zip(two, one, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    first, second = (load_file(results / f"{case}_2_{r}.safetensors") for r in (0, 1))
    alone: dict[str, Any] = load_file(results / f"{case}_1_0.safetensors")
    start = load_file(results / f"{case}_start.safetensors")
    assert set(first) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5, msg=name)
        assert torch.equal(first[name], second[name]), name
    # The test can only fail if something has moved.
    assert any(not torch.equal(start[name], first[name]) for name in start)


def test_one_process_needs_no_others() -> None:
    assert (world_size(), rank()) == (1, 0)
    workers, x = Workers(), torch.tensor([1.0, 2.0], requires_grad=True)
    assert workers.mean(x) is x
    assert any_of(True) and not any_of(False)
    assert from_first("here") == "here"
    with first_goes_first():
        pass


@pytest.mark.parametrize("part", [0, 1, 2])
def test_noise_is_drawn_jointly(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has its rows of what one process would draw for all."""
    cpu = torch.device("cpu")
    whole = JointNoise(5, cpu)
    expected = whole.normal(6, 3, device=cpu), whole.uniform(6, 2, device=cpu)
    monkeypatch.setattr("finflow_sb3.parallel.world_size", lambda: 3)
    monkeypatch.setattr("finflow_sb3.parallel.rank", lambda: part)
    mine = JointNoise(5, cpu)
    found = mine.normal(2, 3, device=cpu), mine.uniform(2, 2, device=cpu)
    rows = slice(2 * part, 2 * part + 2)
    for all_of_it, own in zip(expected, found, strict=True):
        assert torch.equal(all_of_it[rows], own)


def test_stages_that_work_alone_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    require_alone("collect")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="collect works in one process"):
        require_alone("collect")


def launch(
    folder: Path, *arguments: str, verb: str = "finetune", processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """`finflow finetune`, or another verb, in two processes, from another folder."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command += ["finflow_sb3.cli.app", verb, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def policies(run: Path, step: int) -> list[dict[str, torch.Tensor]]:
    name = f"checkpoints/step_{step:012d}/policy.safetensors"
    return [load_file(path / name) for path in (run, run / "workers" / "1")]


def write_market(folder: Path) -> None:
    rng = np.random.default_rng(0)
    closes = 100 * np.exp(np.cumsum(rng.normal(3e-4, 0.01, size=(700, 5)), axis=0))
    dates = pd.bdate_range("2020-01-01", periods=700)
    table = pd.DataFrame(closes, index=dates.rename("date"), columns=list("ABCDE"))
    table.to_csv(folder / "prices.csv")


def done(result: subprocess.CompletedProcess[str]) -> str:
    """What a run that ended well has printed."""
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("algo", ["iql", pytest.param("td3bc", marks=pytest.mark.slow)])
def test_pretraining_in_two_processes_is_that_in_one_on_batches_twice_as_large(
    algo: str, tmp_path: Path
) -> None:
    """Stopped after its first epoch and gone on with; both processes keep the same."""
    write_market(tmp_path)
    settings = ["prices:prices.csv", "collect.episodes:16", "episode_length:64"]
    settings += [f"{algo}.steps_per_epoch:4", "tensorboard:false"]
    params = [word for setting in settings for word in ("-p", setting)]
    first = [*params, "--algo", algo, "--epochs", "1", "--batch-size", "16", "--log-dir", "two"]
    printed = done(launch(tmp_path, *first, verb="pretrain"))
    assert printed.count("Pretrained") == 1, "the first process alone prints"
    run = tmp_path / f"two/{algo}/finflow-US20-v0_1"
    done(launch(tmp_path, "--resume", str(run), "--epochs", "2", verb="pretrain"))
    alone = [*params, "--algo", algo, "--epochs", "2", "--batch-size", "32", "--log-dir", "one"]
    done(launch(tmp_path, *alone, verb="pretrain", processes=1))
    expected = tmp_path / f"one/{algo}/finflow-US20-v0_1"
    for name in ("policy", "q_funcs", "targ_q_funcs"):
        path = f"checkpoints/step_000000000008/{name}.safetensors"
        mine, theirs, whole = (load_file(f / path) for f in (run, run / "workers/1", expected))
        for key, value in whole.items():
            torch.testing.assert_close(mine[key], value, rtol=0, atol=1e-6, msg=key)
            assert torch.equal(mine[key], theirs[key]), key
    lines = [
        json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (run, expected)
    ]
    assert lines[0]["q_loss"] == pytest.approx(lines[1]["q_loss"], rel=1e-5)
    refused = launch(tmp_path, "--resume", str(run), verb="pretrain", processes=1)
    assert refused.returncode == 1 and "by 2 processes" in refused.stderr


@pytest.mark.slow
def test_a_run_of_two_processes_stops_and_goes_on(tmp_path: Path) -> None:
    write_market(tmp_path)
    settings = ["prices:prices.csv", "batch_size:32", "offline_fraction:0", "target_entropy:auto"]
    # Nothing may depend on how long the run is to be.
    settings += ["cql_alpha_final:null", "checkpoint_interval:1", "episode_length:64"]
    params = [word for setting in settings for word in ("-p", setting)]

    whole = launch(tmp_path, *params, "--n-timesteps", "640", "--log-dir", "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert whole.stdout.count("Fine-tuned") == 1, "the first process alone prints"
    half = launch(tmp_path, *params, "--n-timesteps", "320", "--log-dir", "logs")
    assert half.returncode == 0, half.stderr[-3000:]
    run = tmp_path / "logs/cqsac/finflow-US20-v0_1"
    mine, theirs = policies(run, 320)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again = launch(tmp_path, "--resume", str(run), "--n-timesteps", "640")
    assert again.returncode == 0, again.stderr[-3000:]
    expected, _ = policies(tmp_path / "whole/cqsac/finflow-US20-v0_1", 640)
    for found in policies(run, 640):
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    alone = [sys.executable, "-m", "finflow_sb3.cli.app", "finetune", "--resume", str(run)]
    refused = subprocess.run(alone, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 1 and "2 processes" in refused.stderr
