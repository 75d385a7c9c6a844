"""What every algorithm that `train_plain` knows must do on a market."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_plain import PLAIN, OffPolicyArguments
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.opening import open_market
from finflow_sb3.plain_training import train_plain
from finflow_sb3.results import Finetuned
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.training.trained import load_policy


def tiny_arguments(algo: str) -> dict[str, Any]:
    """Arguments with which it learns within 640 steps of 16 portfolios."""
    out: dict[str, Any] = {"n_timesteps": 640, "policy_kwargs": {"net_arch": [16]}}
    if issubclass(PLAIN[algo], OffPolicyArguments):
        return {**out, "learning_starts": 160, "batch_size": 16}
    return {**out, "n_steps": 10, **({"batch_size": 40} if algo == "ppo" else {})}


def check_plain_training(algo: str, settings: Settings) -> None:
    """It learns, a seed gives the same bits twice, and what it keeps is its best policy, acts as
    it did in training, and has its configuration beside it.
    """
    first, again = (train_plain(settings, algo, tiny_arguments(algo)) for _ in range(2))
    assert (first.steps, first.finished, first.stopped) == (640, True, None)
    assert first.run.parent.name == algo
    assert _bytes(first.run) == _bytes(again.run)
    _check_metrics(first)
    _check_kept(first, algo)


def _bytes(run: Path) -> dict[str, bytes]:
    files = [run / "metrics.jsonl", *sorted((run / "best").iterdir())]
    return {path.name: path.read_bytes() for path in files}


def _check_metrics(trained: Finetuned) -> None:
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    judged = [line for line in lines if line["kind"] == "validation"]
    assert (train[0]["step"], train[-1]["step"]) == (0, 640)
    losses = [name for name in train[-1] if name.endswith("loss")]
    assert losses, train[-1]
    assert all(np.isfinite(train[-1][name]) for name in losses)
    assert train[-1]["n_updates"] > 0
    assert train[-1]["episode"] == 16  # of 40 steps each, in 16 portfolios
    # Each 8 episodes of 40 steps, at the boundary at or after them.
    assert [line["step"] for line in judged] == [0, 320, 640]
    assert judged[-1]["sharpe"] != judged[0]["sharpe"]
    assert trained.best == max(line["sharpe"] for line in judged)
    assert trained.validation["sharpe"] == judged[-1]["sharpe"]


def _check_kept(trained: Finetuned, algo: str) -> None:
    names = {path.name for path in (trained.run / "best").iterdir()}
    assert names == {
        "layout.json",
        "manifest.json",
        "policy.json",
        "scaler.json",
        "weights.safetensors",
    }
    folder = RunFolder.open(trained.run)
    settings, policy = folder.settings(), load_policy(trained.run)
    assert policy.name == algo
    assert policy.facts["validation"]["sharpe"] == trained.best
    market = open_market(settings, policy.scaler)
    assert validate(market, settings.env_kwargs, policy.act) == policy.facts["validation"]
    config = folder.path / "config.yml"
    found = plain_arguments(algo, settings.env, files=[config], environ={})
    assert found.unused == {}
    assert found.arguments.items() >= tiny_arguments(algo).items()
