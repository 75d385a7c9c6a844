"""What the tests of the verbs and of their commands share: price files and tiny settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from markets import random_prices

from finflow_sb3.config import Settings
from finflow_sb3.config_files import resolve
from finflow_sb3.zoo_values import dump_yaml

NETS = {"expert_hidden": 4, "gate_hidden": 4, "token_hidden": 4, "critic_hidden": [8]}
OFFLINE: dict[str, Any] = {
    "epochs": 2,
    "steps_per_epoch": 3,
    "batch_size": 16,
    "n_quantiles": 4,
    "policy_kwargs": NETS,
}
TINY: dict[str, dict[str, Any]] = {
    "market": {"anchor_refit": 126},
    "env_kwargs": {"episode_length": 40},
    "collect": {"episodes": 8, "n_envs": 8},
    "iql": OFFLINE,
    "td3bc": OFFLINE,
    "cqsac": {
        "n_timesteps": 640,
        "n_envs": 16,
        "batch_size": 16,
        "learning_starts": 500,
        "policy_kwargs": {"n_quantiles": 4, **NETS},
        "offline_fraction": 0.0,
    },
    "run": {"tensorboard": False, "log_interval": 64, "evaluate_interval": 8},
}


def write_prices(path: Path, assets: str = "ABCDEF", rows: int = 700) -> Path:
    """A wide CSV of random walks, one column for each letter of `assets`."""
    prices = random_prices(len(assets), rows, seed=1)
    table = pd.DataFrame(prices.close, index=prices.dates, columns=list(assets))
    table.rename_axis("date").to_csv(path)
    return path


def write_tiny(path: Path, prices: Path, log_dir: Path) -> Path:
    """`TINY` as a file for --config."""
    content = {**TINY, "market": {**TINY["market"], "prices": str(prices)}}
    content["run"] = {**TINY["run"], "log_dir": str(log_dir)}
    path.write_text(dump_yaml({"default": content}), "utf-8")
    return path


def tiny_settings(folder: Path, **changes: dict[str, Any]) -> Settings:
    """`TINY` with prices, runs and its file in `folder`."""
    prices = folder / "prices.csv"
    if not prices.is_file():
        write_prices(prices)
    file = write_tiny(folder / "tiny.yml", prices, folder / "logs")
    return resolve(algo=None, files=[file], environ={}).replace(**changes)


def runs_in(log_dir: Path) -> list[Path]:
    """Folders of runs, of every algorithm."""
    return sorted(log_dir.glob("*/*"))
