"""What the tests of crashes run in processes of their own, to be killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learning_fixtures import tiny_settings

from finflow_sb3.pipeline import finetune
from finflow_sb3.resuming import resume
from finflow_sb3.runs.checkpoints import CheckpointStore

STEPS = 800
CRASHING = {
    "env_kwargs": {"episode_length": 20},
    "cqsac": {"n_timesteps": STEPS, "n_envs": 4, "buffer_size": 200, "learning_starts": 40},
    "run": {"checkpoint_interval": 1, "evaluate_interval": 7, "log_interval": 40},
}
INTERVAL = 20
"""Environment steps between checkpoints."""


def begin(folder: Path) -> None:
    torch.set_num_threads(1)
    settings = tiny_settings(folder)
    merged = {name: {**values} for name, values in CRASHING.items()}
    finetune(settings.replace(**merged))


def go_on(run: Path) -> None:
    torch.set_num_threads(1)
    resume(run)


CALLS = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
"""Of `os`, by which a checkpoint is written; between two of them files are as they were."""


def write_and_die(folder: Path, step: int, at: int) -> None:
    """Write a checkpoint, and be killed at the `at`-th call that changes names or syncs."""
    count = 0

    def dying(genuine: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count > at:
                os.kill(os.getpid(), signal.SIGKILL)
            return genuine(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    write_one(CheckpointStore(folder, keep=2), step)


class Appended:
    """Ten slots a step, of which the last 25 are kept."""

    def __init__(self, step: int):
        self.stop = 10 * step
        self.first = max(0, self.stop - 25)

    def pieces(self, start: int, stop: int) -> Any:
        yield start, stop, {"x": torch.arange(start, stop, dtype=torch.int64)}


def write_one(store: CheckpointStore, step: int) -> Path:
    """The checkpoint of a step, after going on from the newest one, as a run does."""
    newest = store.newest_whole(lambda _: None)
    if newest is not None:
        store.go_on_from(newest)
    tensors = {"policy": {"w": torch.full((50,), float(step))}}
    path = store.write(step, tensors, {"step": step}, Appended(step))
    if step % 3 == 1:
        store.point("best", path, sharpe=step)
    return path
