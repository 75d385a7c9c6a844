"""What the stability monitor sees of a run, and what is done when it warns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.checks import ACTIONS, CHECKS, Action
from finflow_sb3.config import MonitorSettings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.errors import CheckpointError
from finflow_sb3.parallel import any_of, highest
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore, read_checkpoint
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training.monitor import PATIENCE, Event, Monitor, due_action
from finflow_sb3.training.state import portfolio_env

__all__ = ["GOOD", "Guard", "last_good"]

GOOD = "good"
"""The pointer to the last checkpoint at which nothing was in warning."""


class Guard:
    """Feeds the monitor with what the model does, and agrees with other processes on what is due.

    Parameters
    ----------
    on_event : called with each warning

    Attributes
    ----------
    reason : of a stop that the monitor asked for
    early : whether that was for want of improvement: the run has come to its end
    """

    def __init__(
        self,
        settings: MonitorSettings,
        model: CQSAC,
        log: MetricsLog,
        on_event: Callable[[Event], None] | None = None,
    ):
        env = portfolio_env(model)
        self.settings, self.model, self.log, self.on_event = settings, model, log, on_event
        self.monitor = Monitor(settings, env.num_envs, env.layout.action_size)
        self.updates_seen = 0
        self.reason: str | None = None
        self.early = False
        model.track_gradients = settings.enabled

    # ---------------------------------------------------------------- what it sees

    def step(self, rewards: NDArray[Any], dones: NDArray[np.bool_]) -> None:
        """After each step of the environment."""
        batch = portfolio_env(self.model).batch
        self.monitor.step(rewards, batch.weights, batch.turnover, dones)

    def update(self) -> None:
        """At a boundary: the figures of the update before it, if there was one."""
        if self.model._n_updates == self.updates_seen:
            return
        self.updates_seen = self.model._n_updates
        logged = self.model.logger.name_to_value
        names = [name for name in logged if name.startswith("train/")]
        self.monitor.update({name.removeprefix("train/"): float(logged[name]) for name in names})

    def validation(self, sharpe: float) -> None:
        """After a validation backtest."""
        self.monitor.validation(sharpe)

    @property
    def finite(self) -> bool:
        """Whether all figures since the last boundary were, as far as that is watched."""
        return not self.monitor.not_finite

    def figures(self) -> dict[str, float]:
        """Figures for a line of metrics, beyond those that updates log."""
        found = self.monitor.figures().items()
        return {CHECKS[k].column: v for k, v in found if CHECKS[k].figure is None}

    # ---------------------------------------------------------------- what is done

    def judge(self, now: int) -> Action | None:
        """What all processes are to do at this boundary; a cut of the learning rate is done here.

        Events are written to the log, except those of a rollback: see `rolled_back`.
        """
        self.events = self.monitor.verdict(now)
        due = due_action(self.events)
        rank = highest(-1 if due is None else ACTIONS.index(due))
        action = None if rank < 0 else ACTIONS[rank]
        if action != "rollback":
            self._write(self.events)
        if action == "cut_lr":
            self._cut(self.model.lr_scale)
        if action == "stop":
            self._stop_because(self.events)
        return action

    def rolled_back(self, checkpoint: Checkpoint, scale: float) -> None:
        """After the model was restored: the monitor's part of it.

        Parameters
        ----------
        scale : of the learning rates before the rollback; they are cut from there
        """
        self.monitor.rolled_back(checkpoint.state["monitor"])
        self.updates_seen = self.model._n_updates
        self._write(self.events, back_to=checkpoint.step)
        self._cut(scale)

    def cannot_roll_back(self, why: str) -> None:
        """The run has to stop instead."""
        self._write(self.events)
        self._stop_because(self.events, f"; {why}")

    def _cut(self, scale: float) -> None:
        self.model.lr_scale = scale * self.settings.cut_factor

    def _stop_because(self, events: list[Event], more: str = "") -> None:
        due = due_action(events)
        causes = [event for event in events if event.action == due]
        self.early = bool(causes) and all(event.check == PATIENCE for event in causes)
        message = causes[0].message if causes else "another process asked for it"
        self.reason = message + more

    def _write(self, events: list[Event], **more: Any) -> None:
        for event in events:
            self.log.event(**event.as_dict(), **more)
            if self.on_event is not None:
                self.on_event(event)

    # ---------------------------------------------------------------- checkpoints

    @property
    def healthy(self) -> bool:
        """Whether a checkpoint of now is one to roll back to, in all processes."""
        return not any_of(not self.monitor.healthy)

    def state(self) -> dict[str, Any]:
        return self.monitor.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.monitor.restore(state)
        self.updates_seen = self.model._n_updates


def last_good(store: CheckpointStore) -> Checkpoint | None:
    """The checkpoint to roll back to: the last good one, else the newest; None without any."""
    candidates = list(reversed(store.all()))
    with suppress(CheckpointError):  # where none was good yet
        candidates.insert(0, store.pointed(GOOD))
    for path in candidates:
        try:
            return read_checkpoint(path)
        except CheckpointError:
            continue
    return None
