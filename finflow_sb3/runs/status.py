"""`status.json`: what a process that trains is doing now, for those who watch.

Wall-clock facts stand here and nowhere else, so that `metrics.jsonl` stays the same bit for bit.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Status", "StatusFile", "read_status"]

State = Literal["running", "finished", "stopped", "failed"]
WRITE_EVERY = 1.0
RECENT = 30.0


@dataclass(frozen=True)
class Status:
    """What `status.json` says.

    Attributes
    ----------
    pid, host : the process that trains
    started, updated : ISO 8601, UTC
    state : running, finished, stopped (to go on later) or failed
    stage : pretraining or fine-tuning
    step, total : steps done and to do, in the stage's unit
    steps_per_second : over the last half minute, None before there is any
    """

    pid: int
    host: str
    started: str
    updated: str
    state: State
    stage: str
    step: int
    total: int
    steps_per_second: float | None


class StatusFile:
    """Keeps `status.json` up to date while its block runs, at most once a second.

    The block's end says how it ended: `finished`, `stopped` where `stopping` was set or Ctrl-C
    was pressed, `failed` on an error.

    Parameters
    ----------
    path : the file
    stage : pretraining or fine-tuning
    total : steps to do
    step : steps that a resumed run has done
    """

    def __init__(self, path: Path, stage: str, total: int, step: int = 0):
        self.path, self.stage, self.total, self.step = path, stage, total, step
        self.stopping = False
        self._started = _now()
        self._written = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(self._written, step)])

    def update(self, step: int) -> None:
        """Say how many steps are done."""
        self.step = step
        now = time.monotonic()
        if now - self._written < WRITE_EVERY:
            return
        self._written = now
        self._recent.append((now, step))
        while now - self._recent[0][0] > RECENT and len(self._recent) > 2:
            self._recent.popleft()
        self._write("running")

    def before(self, then: Callable[[int], None] | None) -> Callable[[int], None]:
        """`update`, and then what else wants to hear of the step."""

        def told(step: int) -> None:
            self.update(step)
            if then is not None:
                then(step)

        return told

    def __enter__(self) -> StatusFile:
        self._write("running")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._write("stopped" if self.stopping else "finished")
        else:
            self._write("stopped" if issubclass(kind, KeyboardInterrupt) else "failed")

    def _write(self, state: State) -> None:
        status = Status(
            pid=os.getpid(),
            host=socket.gethostname(),
            started=self._started,
            updated=_now(),
            state=state,
            stage=self.stage,
            step=self.step,
            total=self.total,
            steps_per_second=self._speed(),
        )
        new = self.path.with_name(f".{self.path.name}.new")
        # Training does not end for a file that only tells of it; what it needs to go on says so
        # itself when the disk is full.
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(asdict(status), indent=1) + "\n")
            os.replace(new, self.path)

    def _speed(self) -> float | None:
        first, before = self._recent[0]
        passed = time.monotonic() - first
        return (self.step - before) / passed if passed > 0.0 else None


def read_status(path: Path) -> Status | None:
    """What the file says; None if there is none, or it is not of this form."""
    try:
        found: Any = json.loads(path.read_text())
        return Status(**found)
    except (OSError, ValueError, TypeError):
        return None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
