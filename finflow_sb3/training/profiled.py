"""The training loop, timed plain and under torch.profiler, in one `learn`.

Windows of some updates are timed plain and under the profiler by turns, so that both meet the
same load of the machine. What the profiler recorded of most windows is dropped, and of a few is
read between windows, with the clock stopped: a run's worth of events would fill gigabytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from torch.profiler import ProfilerActivity, profile

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.training.callbacks import TrainingCallback
from finflow_sb3.training.memory import peak_resident, reset_peak_resident
from finflow_sb3.training.stages import StageClock, is_compiled, staged
from finflow_sb3.training.trace_events import Reading

__all__ = ["Measured", "Plan", "measure"]

WINDOW = 20
READ_WINDOWS = 3


@dataclass(frozen=True)
class Plan:
    """Updates to warm up with, and to measure, once plain and once under the profiler."""

    warm_up: int
    updates: int


@dataclass
class Measured:
    """What was measured.

    Attributes
    ----------
    updates, plain_updates : critic updates under the profiler, and without it
    seconds, plain_seconds : wall time of these, whole rollouts
    traced : updates in the trace
    reading : what a few of the windows show of operators and of the backward pass
    peak_resident : bytes that were resident at most before the profiler began, in the warm-up
        and the first plain window
    peak_device : bytes that torch had allocated on CUDA at most by then, None without
    """

    clock: StageClock
    reading: Reading = field(default_factory=Reading)
    updates: int = 0
    seconds: float = 0.0
    plain_updates: int = 0
    plain_seconds: float = 0.0
    traced: int = 0
    compiled: bool = False
    peak_resident: int = 0
    peak_device: int | None = None


def measure(
    model: CQSAC,
    callback: TrainingCallback,
    total: int,
    plan: Plan,
    trace: Path,
    on_progress: Callable[[str, int, int], None],
) -> Measured:
    """Train `model` as a run of `total` steps begins, until the plan is fulfilled.

    Parameters
    ----------
    callback : of the run, does what it does at each boundary
    total : steps that schedules are for; more are taken where the plan asks for more
    trace : file of the first window, `.json.gz`
    on_progress : called with what is being done, and how many updates of how many are
    """
    # Kineto tells stderr of every window otherwise; it reads this once.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    rounds = _Rounds(callback, plan, trace, on_progress)
    rounds.init_callback(model)
    reset_peak_resident()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    with rounds.open:
        model.learn(
            max(total, rounds.steps_needed()),
            callback=CallbackList([rounds, callback]),
            log_interval=None,
        )
    return rounds.measured


class _Rounds(BaseCallback):
    """A warm-up, then windows of both kinds by turns; each ends between two rollouts."""

    model: CQSAC

    def __init__(
        self,
        training: TrainingCallback,
        plan: Plan,
        trace: Path,
        on_progress: Callable[[str, int, int], None],
    ):
        super().__init__()
        self.training, self.plan, self.trace, self.on_progress = training, plan, trace, on_progress
        self.open = ExitStack()
        self.window: profile | None = None
        self.windows = 0
        self.round: Callable[[], None] = self._warm_up
        self.base, self.since = 0, 0.0

    def _init_callback(self) -> None:
        cuda = self.model.device.type == "cuda"
        self.measured = Measured(StageClock(self.model.device if cuda else None))

    @property
    def done(self) -> int:
        """Critic updates since this window began."""
        return self.model._n_updates * self.model.utd_ratio - self.base

    def steps_needed(self) -> int:
        """Steps of the environment that are enough for the plan."""
        model = self.model
        frequency: int = model.train_freq.frequency  # type: ignore[union-attr]
        rollout = frequency * model.n_envs
        each = rollout if model.gradient_steps < 0 else model.gradient_steps
        updates = self.plan.warm_up + 2 * self.plan.updates
        # Each window may take a rollout that it does not need whole.
        windows = 1 + 2 * -(-self.plan.updates // WINDOW)
        rollouts = -(-updates // (each * model.utd_ratio)) + windows
        return int(model.learning_starts) + rollout * (rollouts + 1)

    def _on_rollout_start(self) -> None:
        self.round()

    def _on_step(self) -> bool:
        return self.round != self._nothing

    # ---------------------------------------------------------------- rounds

    def _begin(self, following: Callable[[], None]) -> None:
        self.base += self.done
        self.round = following
        self._synchronise()
        self.since = time.perf_counter()

    def _warm_up(self) -> None:
        self.on_progress("warming up", min(self.done, self.plan.warm_up), self.plan.warm_up)
        if self.done >= self.plan.warm_up and self.done > 0:
            self._begin(self._plain)

    def _plain(self) -> None:
        found = self.measured
        if not self._whole(found.plain_updates):
            return
        self._synchronise()
        found.plain_seconds += time.perf_counter() - self.since
        found.plain_updates += self.done
        if self.windows == 0:
            found.peak_resident, found.compiled = peak_resident(), is_compiled(self.model)
            if self.model.device.type == "cuda":
                found.peak_device = torch.cuda.max_memory_allocated(self.model.device)
        self._open_window()

    def _profiled(self) -> None:
        if not self._whole(self.measured.updates):
            return
        self._close_window()
        if self.measured.updates >= self.plan.updates:
            self.on_progress("profiling", self.plan.updates, self.plan.updates)
            self.round = self._nothing
        else:
            self._begin(self._plain)

    def _whole(self, before: int) -> bool:
        """Whether this window has its updates, or those that the plan lacks."""
        return self.done >= WINDOW or before + self.done >= self.plan.updates

    def _nothing(self) -> None:
        """The measuring is over; the next step ends `learn`."""

    # ---------------------------------------------------------------- windows

    def _open_window(self) -> None:
        self.on_progress("profiling", self.measured.updates, self.plan.updates)
        activities = [ProfilerActivity.CPU]
        if self.model.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.open.enter_context(staged(self.model, self.training, self.measured.clock))
        self.window = profile(activities=activities)
        self.window.start()
        self.open.callback(self.window.stop)
        self._begin(self._profiled)

    def _close_window(self) -> None:
        self._synchronise()
        found, updates, window = self.measured, self.done, self.window
        found.seconds += time.perf_counter() - self.since
        found.updates += updates
        self.open.close()
        assert window is not None
        if self.windows == 0:
            window.export_chrome_trace(str(self.trace))
            found.traced = updates
        every = -(-self.plan.updates // (WINDOW * READ_WINDOWS))
        if self.windows % every == 0:
            found.reading.add(window, updates)
        self.window = None
        self.windows += 1

    def _synchronise(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
