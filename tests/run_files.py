"""Folders that look as a run's do, written without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finflow_sb3.runs.metrics_log import MetricsLog

Line = dict[str, Any]


def train(step: int, **figures: Any) -> Line:
    start = {"return": step / 1000, "net_sharpe": 0.5, "turnover": 0.02, "critic_loss": 0.3}
    rest = {"actor_loss": -1.0, "q_mean": 2.0, "entropy": 5.0, "gates": [0.1, 0.2, 0.3, 0.25, 0.15]}
    return {"step": step, "kind": "train", **start, **rest, **figures}


def validation(step: int, sharpe: float | None, **figures: Any) -> Line:
    rest = {"annual_return": 0.1, "max_drawdown": -0.2, "turnover": 3.0, "excess": 0.004}
    return {"step": step, "kind": "validation", "best": False, "sharpe": sharpe, **rest, **figures}


def epoch(number: int, sharpe: float) -> Line:
    losses = {"v_loss": 1.0 / number, "q_loss": 2.0 / number, "policy_loss": 3.0 / number}
    names = ("annual_return", "max_drawdown", "turnover", "excess")
    figures = {f"validation_{name}": 0.1 for name in names}
    return {
        "step": 10 * number,
        "kind": "pretrain",
        "epoch": number,
        **losses,
        "validation_sharpe": sharpe,
        **figures,
        "gates": [0.2] * 5,
    }


def event(step: int, message: str = "mean Q is 150") -> Line:
    found = {"check": "q_mean", "action": "warn", "message": message, "value": 150.0}
    return {"step": step, "kind": "event", **found}


COURSE = [
    train(0, **{"return": None, "net_sharpe": None}),
    validation(0, 0.5),
    train(1000),
    train(2000),
    validation(2000, 0.9),
    train(3000),
    validation(3000, 0.7),
]


def write_run(folder: Path, lines: list[Line], tail: str = "") -> Path:
    """A run's folder with these lines in its metrics, and a last one that is not whole yet."""
    with MetricsLog(folder / "metrics.jsonl") as log:
        for line in lines:
            log.write(**line)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(tail)
    return folder


def write_status(folder: Path, **changes: Any) -> None:
    status = {
        "pid": 1,
        "host": "elsewhere",
        "started": "2026-01-02T03:04:05+00:00",
        "updated": "2026-01-02T04:04:05+00:00",
        "state": "running",
        "stage": "fine-tuning",
        "step": 3000,
        "total": 10_000,
        "steps_per_second": 100.0,
    }
    (folder / "status.json").write_text(json.dumps({**status, **changes}))
