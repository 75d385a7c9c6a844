"""What happens between updates: metrics, validation, checkpoints, progress.

All of it happens at SB3's `on_rollout_start`, where no step is half done, and in a fixed order,
so that a resumed run goes through the same sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from finflow_sb3.config import EnvSettings, RunSettings, Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.parallel import any_of
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore, fitting
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.runs.provenance import provenance, same_validation
from finflow_sb3.stopping import Stop
from finflow_sb3.training.guard import GOOD, Guard, last_good
from finflow_sb3.training.known_callbacks import KnownCallbacks
from finflow_sb3.training.state import capture, portfolio_buffer, restore

__all__ = [
    "EndOfTraining",
    "Schedule",
    "TrainingCallback",
    "Validated",
    "note_ended",
    "recent_figures",
]

EPISODE_FIGURES = ("total_reward", "net_return", "sharpe", "cvar_95", "mean_turnover")
# A line of metrics.jsonl has the means of so many episodes that ended last.
RECENT_EPISODES = 16
LINE_NAMES = {
    "total_reward": "return",
    "net_return": "net_return",
    "sharpe": "net_sharpe",
    "cvar_95": "cvar",
    "mean_turnover": "turnover",
}


@dataclass(frozen=True)
class Schedule:
    """Environment steps between lines, validation backtests and checkpoints."""

    log: int
    validate: int
    checkpoint: int

    @classmethod
    def of(cls, run: RunSettings, env: EnvSettings) -> Schedule:
        """Intervals in episodes become steps of `episode_length`."""
        return cls(
            run.log_interval,
            run.evaluate_interval * env.episode_length,
            run.checkpoint_interval * env.episode_length,
        )


def note_ended(
    episodes: list[dict[str, float]], infos: Sequence[dict[str, Any]], dones: NDArray[np.bool_]
) -> None:
    """Add the figures of the episodes that end with this step; the last few are kept."""
    for info, done in zip(infos, dones, strict=True):
        if done:
            episodes.append({name: float(info[name]) for name in EPISODE_FIGURES})
    del episodes[:-RECENT_EPISODES]


def recent_figures(episodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the episodes that ended last, as a line of metrics.jsonl names them."""
    return {
        LINE_NAMES[name]: float(np.mean([episode[name] for episode in episodes]))
        for name in EPISODE_FIGURES
        if episodes
    }


Validated = Callable[[int, dict[str, float]], None]


class EndOfTraining(Exception):
    """Ends SB3's loop at a boundary: after a stop on figures that are not finite there must be no
    further step, as the policy's actions are not numbers.
    """


class TrainingCallback(BaseCallback):
    """Writes metrics, validates, keeps the best and checkpoints.

    Parameters
    ----------
    settings : of the run; each checkpoint has a copy of them
    store : where checkpoints go; None writes none
    on_best : called with the figures when a validation is better than all before
    on_progress : called with the environment steps done
    on_validated : called with the steps done and the figures of each validation
    stop_at : stop at the first boundary at or after this step, checkpoint included
    known : callbacks that run beside it, whose counters its checkpoints hold

    Attributes
    ----------
    stop : looked at at each boundary; a signal may ask it to stop
    stopping : whether the run ends before its last step
    """

    def __init__(
        self,
        market: ObservedMarket,
        settings: Settings,
        log: MetricsLog,
        guard: Guard,
        store: CheckpointStore | None,
        on_best: Callable[[dict[str, float]], None],
        on_progress: Callable[[int], None] | None = None,
        stop_at: int | None = None,
        known: KnownCallbacks | None = None,
        on_validated: Validated | None = None,
    ):
        super().__init__()
        self.market, self.settings, self.log, self.guard = market, settings, log, guard
        self.known = known or KnownCallbacks([])
        self.store, self.on_best, self.on_progress = store, on_best, on_progress
        self.on_validated = on_validated
        self.stop_at, self.stop, self.stopping = stop_at, Stop(), False
        self.schedule = Schedule.of(settings.run, settings.env_kwargs)
        self.seen = -1
        self.best = -math.inf
        self.last_validation: dict[str, float] = {}
        self.episodes: list[dict[str, float]] = []

    # ---------------------------------------------------------------- SB3's hooks

    def _on_rollout_start(self) -> None:
        now = self.model.num_timesteps
        if now == self.seen:  # a resumed run has done this boundary's work already
            return
        before, self.seen = self.seen, now
        self.guard.update()
        if self._due(self.schedule.log, before, now):
            self._write_line(now)
        # A policy of NaN can't be backtested: what is done about it comes first.
        due = self._due(self.schedule.validate, before, now) and self.guard.finite
        better = due and self._validate(now)
        action = self.guard.judge(now)
        if action == "rollback" and self._rolled_back():
            return
        # Processes that share a batch stop together: a signal may reach them a step apart.
        reached = self.stop_at is not None and now >= self.stop_at
        self.stopping = any_of(self.stop.asked or reached) or self.guard.reason is not None
        if self._due(self.schedule.checkpoint, before, now) or better or self.stopping:
            self.checkpoint(best=better)
        if self.on_progress is not None:
            self.on_progress(now)
        if self.guard.reason is not None:
            raise EndOfTraining

    def _rolled_back(self) -> bool:
        """Go back to the last good checkpoint; False where there is none."""
        checkpoint = None if self.store is None else last_good(self.store)
        if checkpoint is None or self.store is None:
            self.guard.cannot_roll_back("there is no checkpoint to roll back to")
            return False
        model: Any = self.model
        scale = model.lr_scale
        restore(model, checkpoint)
        self.store.go_on_from(checkpoint)
        self.log.rewind(checkpoint.state["metrics_size"], checkpoint.step)
        self.restore(checkpoint.state["callback"])
        self.guard.rolled_back(checkpoint, scale)
        return True

    def _on_step(self) -> bool:
        if self.stopping:
            return False
        self.guard.step(self.locals["rewards"], self.locals["dones"])
        note_ended(self.episodes, self.locals["infos"], self.locals["dones"])
        return True

    # ---------------------------------------------------------------- work at a boundary

    @staticmethod
    def _due(every: int, before: int, now: int) -> bool:
        return before < 0 or now // every > before // every

    def finish(self) -> None:
        """The last line, validation and checkpoint of a run that has come to its end."""
        now = self.model.num_timesteps
        if now != self.seen:
            self.seen = now
            self.guard.update()
            self._write_line(now)
            better = self.guard.finite and self._validate(now)
            if self.guard.judge(now) == "rollback":
                self.guard.cannot_roll_back("it came with the last step")
            self.stopping = self.guard.reason is not None
            self.checkpoint(best=better)
        if self.on_progress is not None:
            self.on_progress(now)

    def _write_line(self, now: int) -> None:
        model: Any = self.model
        values: dict[str, Any] = {"episode": model._episode_num}
        values |= recent_figures(self.episodes)
        logged = model.logger.name_to_value
        gates = []
        # In the order of names: a resumed run's logger has heard of them in another order.
        for key, value in sorted(logged.items()):
            name = key.removeprefix("train/")
            if name.startswith("gate_"):
                gates.append(float(value))
            elif key.startswith("train/"):
                values[name] = float(value)
        if gates:
            values["gates"] = gates
        values |= self.guard.figures()
        self.log.write(now, kind="train", **values)

    def _validate(self, now: int) -> bool:
        """Whether the present policy is better on validation than all before."""
        figures = validate(self.market, self.settings.env_kwargs, self.act)
        self.last_validation = figures
        self.guard.validation(figures["sharpe"])
        better = figures["sharpe"] > self.best
        self.log.write(now, kind="validation", best=better, **figures)
        self._draw_portfolios(now)
        if better:
            self.best = figures["sharpe"]
            self.on_best(figures)
        if self.on_validated is not None:
            self.on_validated(now, figures)
        return better

    def _draw_portfolios(self, now: int) -> None:
        """What the portfolios that train hold, and how they mix the anchors, as histograms."""
        env: Any = self.training_env
        self.log.histogram(now, "portfolios/weights", env.batch.weights)
        if self.settings.env_kwargs.action_base == "anchors":
            self.log.histogram(now, "portfolios/gates", env.batch.gates)

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Deterministic actions of the present policy."""
        actions, _ = self.model.predict(observations, deterministic=True)
        return np.asarray(actions)

    def checkpoint(self, best: bool = False) -> Path | None:
        """Write a checkpoint of this boundary; `best` protects it until a better one comes."""
        run, healthy = self.settings.run, self.guard.healthy
        best = best and run.save_best
        if self.store is None or not (run.save_latest or best or self.stopping):
            return None
        if self.guard.reason is not None and not healthy:
            return None  # the run is to go on from before it went wrong
        model: Any = self.model
        tensors, state = capture(model)
        self.log.sync()  # a checkpoint says how much of it there is
        state["monitor"] = self.guard.state()
        state |= provenance(self.settings, self.log.size)
        state["callback"] = {
            "seen": self.seen,
            "best": self.best if math.isfinite(self.best) else None,
            "last_validation": self.last_validation,
            "episodes": self.episodes,
            "known": self.known.state(),
        }
        pointers: dict[str, dict[str, float]] = {GOOD: {}} if healthy else {}
        if best:
            pointers["best"] = self.last_validation
        return self.store.write(self.seen, tensors, state, portfolio_buffer(model), pointers)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, which may be an early one."""
        return not self.stopping or self.guard.early

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's part for callback and monitor; the model has its own already.

        Raises
        ------
        CheckpointError
            If it does not fit the settings.
        """
        with fitting(checkpoint):
            same = same_validation(checkpoint, self.settings)
            self.restore(checkpoint.state["callback"], keep_best=same)
            self.guard.restore(checkpoint.state["monitor"])

    def restore(self, state: dict[str, Any], keep_best: bool = True) -> None:
        """Take the callback's part of a checkpoint.

        Parameters
        ----------
        keep_best : False where the best so far was measured on another validation split
        """
        self.seen = int(state["seen"])
        self.episodes = list(state["episodes"])
        self.known.restore(state["known"])
        self.last_validation = dict(state["last_validation"])
        best = state["best"] if keep_best else None
        self.best = -math.inf if best is None else float(best)
