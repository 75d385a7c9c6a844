"""Who is at work on which trial, and trials whose worker is gone.

Every worker of a study writes into the trial that it is at: who it is, and every few seconds a
number that grows. A trial whose worker has no process any more on this machine, or whose number
stands still for `GRACE` seconds while another worker looks on, is given up and asked for again,
with the same values.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

__all__ = ["ENDED", "GRACE", "RETRIES", "Onlooker", "ask_again", "this_worker", "working"]

BEAT, GRACE = 10.0, 60.0
# A trial that ended three workers has something to do with it.
RETRIES = 3
WORKER, ALIVE, TRIES, GIVEN_UP, AGAIN = "worker", "alive", "tries", "given_up", "again_of"
DEFAULT = "default"
"""Marks the trial of the settings as they are, and what tries it again."""
ENDED = (optuna.exceptions.UpdateFinishedTrialError, ValueError)
"""What Optuna raises where a trial has ended meanwhile."""


def this_worker() -> dict[str, Any]:
    """Who asks: the machine, the process, and when that began (a number may come again)."""
    return {"host": _machine(), "pid": os.getpid(), "began": _began(os.getpid())}


@cache
def _machine() -> str:
    """The machine since it was started, and the container: names alone may be given twice."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _began(pid: int) -> str:
    """When a process of this machine began, in its own units; empty where that is unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _is_gone(worker: Any) -> bool:
    """Whether a worker was of this machine and is no more; False where that can't be told."""
    if not isinstance(worker, dict) or worker.get("host") != _machine():
        return False
    pid = worker.get("pid")
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(worker.get("began")) and worker["began"] != _began(pid)


@contextmanager
def working(trial: optuna.Trial) -> Iterator[None]:
    """Have the trial's number grow for as long as the block runs."""
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(BEAT):
            count += 1
            # What keeps the storage from answering is told where the trial reports.
            with suppress(Exception):
                trial.set_user_attr(ALIVE, count)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Onlooker:
    """Takes trials of workers that are gone back. Clocks of other machines have no say in it."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[Any, float]] = {}

    def take_back(self, study: optuna.Study) -> list[int]:
        """Give up trials whose worker is gone, and ask for them again; their numbers."""
        lost = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            gone = _is_gone(trial.user_attrs.get(WORKER)) or self._stands_still(trial)
            if gone and ask_again(study, trial.number, "its worker ended"):
                lost.append(trial.number)
        return lost

    def _stands_still(self, trial: FrozenTrial) -> bool:
        now, beat = time.monotonic(), trial.user_attrs.get(ALIVE, 0)
        before, since = self.seen.get(trial.number, (None, now))
        if beat != before:
            since = now
        self.seen[trial.number] = (beat, since)
        return now - since > GRACE


def ask_again(study: optuna.Study, number: int, why: str, by_hand: bool = False) -> bool:
    """End a trial that has no result, and have its values tried once more.

    Parameters
    ----------
    by_hand : the trial has nothing to do with its end

    Returns
    -------
    bool
        False if the trial has come to an end by now.
    """
    trials = study.get_trials(deepcopy=False)
    trial = next(t for t in trials if t.number == number)
    if trial.state != TrialState.RUNNING:
        return False
    storage: Any = study._storage
    with suppress(*ENDED):
        storage.set_trial_user_attr(trial._trial_id, GIVEN_UP, why)
    # First the values, then the end: what a kill in between leaves is done by the next one.
    if not any(t.user_attrs.get(AGAIN) == number for t in trials):
        _enqueue(study, trial, by_hand)
    with suppress(*ENDED):
        study.tell(number, state=TrialState.FAIL)
    return True


def _enqueue(study: optuna.Study, trial: FrozenTrial, by_hand: bool) -> None:
    tries = int(trial.user_attrs.get(TRIES, 0)) + (0 if by_hand else 1)
    if tries > RETRIES:
        return
    kept = {DEFAULT: True} if trial.user_attrs.get(DEFAULT) else {}
    # A worker that ended while it asked has drawn a part of them, or none.
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    study.enqueue_trial(values, user_attrs={TRIES: tries, AGAIN: trial.number, **kept})
