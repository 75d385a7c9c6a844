"""What a run is doing now, read from its files: the basis of `finflow watch`."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finflow_sb3.checks import BY_COLUMN, Level
from finflow_sb3.config import MonitorSettings
from finflow_sb3.config_files import read_config
from finflow_sb3.errors import ArtefactError
from finflow_sb3.runs.history import History, Line, is_number, read_history
from finflow_sb3.runs.status import Status, read_status

__all__ = ["CheckpointFile", "Figure", "Snapshot", "take_snapshot"]

State = Literal["running", "finished", "stopped", "failed", "gone", "unknown"]
EVENTS = 5
TRAIN = {
    "fine-tuning": (
        "return",
        "net_return",
        "net_sharpe",
        "turnover",
        "critic_loss",
        "actor_loss",
        "q_mean",
        "entropy",
        "policy_width",
        "ent_coef",
        "cql_penalty",
        "effective_experts",
        "effective_assets",
        "no_trade_days",
    ),
    "pretraining": ("v_loss", "q_loss", "policy_loss", "bc_loss"),
}


@dataclass(frozen=True)
class Figure:
    """A figure of the last line that has it.

    Attributes
    ----------
    value : None where it was not finite
    level : how it stands to the run's own bounds, None where it has none
    normal : the normal range in words, empty where it has none
    """

    value: float | None
    level: Level | None = None
    normal: str = ""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint of the run: its step, how old it is in seconds, what points to it."""

    name: str
    step: int
    age: float
    latest: bool
    best: bool


@dataclass(frozen=True)
class Snapshot:
    """What a run is doing.

    Attributes
    ----------
    state : as in `status.json`; "gone" where it says running and the process is not there any
        more, "unknown" where there is no `status.json`
    stage : pretraining or fine-tuning
    step, total : steps done and to do, in the stage's unit; None where not known
    steps_per_second, seconds_left : of late; None where the run does not go on
    updated : when `status.json` was written, ISO 8601 in UTC
    logged : step of the last line of training
    figures : name → the latest figure of training
    validation, best : the last validation and the one with the highest Sharpe ratio
    gates : the latest mean gates
    checkpoints : newest first
    events : the last ones, newest first
    """

    run: Path
    state: State
    stage: str | None
    step: int | None
    total: int | None
    steps_per_second: float | None
    seconds_left: float | None
    pid: int | None
    host: str | None
    started: str | None
    updated: str | None
    logged: int | None
    figures: dict[str, Figure]
    validation: dict[str, Any] | None
    validation_level: Level | None
    best: dict[str, Any] | None
    gates: tuple[float, ...]
    checkpoints: tuple[CheckpointFile, ...]
    events: tuple[Line, ...]

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected of the process that trained."""
        if self.state == "unknown":  # a run that has just begun, or one of before status.json
            return self.logged is not None
        return self.state != "running"


def take_snapshot(run: str | Path) -> Snapshot:
    """Read what `run` is doing. It may be written at the same time, or just have begun.

    Raises
    ------
    ArtefactError
        If there is no such run, or its metrics are damaged.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: no such run")
    status = read_status(folder / "status.json")
    history = _history(folder)
    if status is None and history is None and not (folder / "config.yml").is_file():
        raise ArtefactError(f"{folder}: no config.yml in it; give the folder of a run")
    state = _state(status)
    speed = status.steps_per_second if status and state == "running" else None
    left = (status.total - status.step) / speed if status and speed else None
    validation = history.validation[-1] if history and history.validation else None
    bounds = _bounds(folder)
    logged = int(history.train[-1]["step"]) if history and history.train else None
    return Snapshot(
        run=folder,
        state=state,
        stage=status.stage if status else history.kind if history else None,
        step=status.step if status else logged,
        total=status.total if status else None,
        steps_per_second=speed,
        seconds_left=left,
        pid=status.pid if status else None,
        host=status.host if status else None,
        started=status.started if status else None,
        updated=status.updated if status else None,
        logged=logged,
        figures={} if history is None else _figures(history, bounds),
        validation=validation,
        validation_level=_judged("sharpe", validation.get("sharpe"), bounds).level
        if validation and "sharpe" in validation
        else None,
        best=history.best if history else None,
        gates=_gates(history) if history else (),
        checkpoints=_checkpoints(folder / "checkpoints"),
        events=tuple(reversed(history.events[-EVENTS:])) if history else (),
    )


def _history(folder: Path) -> History | None:
    """None of a run that has not logged yet."""
    path = folder / "metrics.jsonl"
    if not path.is_file() or b"\n" not in path.read_bytes():
        return None
    return read_history(folder)


def _state(status: Status | None) -> State:
    if status is None:
        return "unknown"
    here = status.host == socket.gethostname()
    if status.state == "running" and here and not _alive(status.pid):
        return "gone"
    return status.state


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """Whether it has ended and only waits for its parent to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def _figures(history: History, bounds: MonitorSettings) -> dict[str, Figure]:
    values: dict[str, float | None] = {}
    for line in history.train:
        values.update({name: v for name, v in line.items() if v is None or is_number(v)})
    names = [name for name in TRAIN[history.kind] if name in values]
    return {name: _judged(name, values[name], bounds) for name in names}


def _judged(name: str, value: float | None, bounds: MonitorSettings) -> Figure:
    check = BY_COLUMN.get(name)
    if check is None:
        return Figure(value)
    # What is logged as null was no number.
    level = bounds.level(check.name, math.nan if value is None else value)
    return Figure(value, level, check.normal_range(bounds.normal_limits[check.name]))


def _bounds(folder: Path) -> MonitorSettings:
    """Those of the run; the defaults of one that has just begun."""
    path = folder / "config.yml"
    return read_config(path).monitor if path.is_file() else MonitorSettings()


def _gates(history: History) -> tuple[float, ...]:
    for line in reversed(history.train):
        gates = line.get("gates")
        if isinstance(gates, list) and gates and all(map(is_number, gates)):
            return tuple(gates)
    return ()


def _checkpoints(folder: Path) -> tuple[CheckpointFile, ...]:
    pointed = {name: _pointed(folder / f"{name}.json") for name in ("latest", "best")}
    found = []
    for path in sorted(folder.glob("step_*"), reverse=True):
        try:
            written = (path / "manifest.json").stat().st_mtime
        except OSError:  # retired a moment ago
            continue
        found.append(
            CheckpointFile(
                name=path.name,
                step=int(path.name.removeprefix("step_")),
                age=max(0.0, time.time() - written),
                latest=path.name == pointed["latest"],
                best=path.name == pointed["best"],
            )
        )
    return tuple(found)


def _pointed(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text())["checkpoint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
