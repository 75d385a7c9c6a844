"""What happens between updates: metrics, validation, checkpoints, progress.

All of it happens at SB3's `on_rollout_start`, where no step is half done, and in a fixed order,
so that a resumed run goes through the same sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from finflow_sb3.config import EnvSettings, RunSettings
from finflow_sb3.cqsac.parallel import any_of
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.runs.checkpoints import CheckpointStore
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training.known_callbacks import KnownCallbacks
from finflow_sb3.training.state import capture

__all__ = ["Schedule", "TrainingCallback"]

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


class TrainingCallback(BaseCallback):
    """Writes metrics, validates, keeps the best and checkpoints.

    Parameters
    ----------
    store : where checkpoints go; None writes none
    on_best : called with the figures when a validation is better than all before
    on_progress : called with the environment steps done
    stop_at : stop at the first boundary at or after this step, checkpoint included
    known : callbacks that run beside it, whose counters its checkpoints hold
    """

    def __init__(
        self,
        market: ObservedMarket,
        env: EnvSettings,
        run: RunSettings,
        log: MetricsLog,
        store: CheckpointStore | None,
        on_best: Callable[[dict[str, float]], None],
        on_progress: Callable[[int], None] | None = None,
        stop_at: int | None = None,
        known: KnownCallbacks | None = None,
    ):
        super().__init__()
        self.known = known or KnownCallbacks([])
        self.market, self.env_settings, self.run, self.log = market, env, run, log
        self.store, self.on_best, self.on_progress = store, on_best, on_progress
        self.stop_at, self.stopping = stop_at, False
        self.schedule = Schedule.of(run, env)
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
        if self._due(self.schedule.log, before, now):
            self._write_line(now)
        better = self._due(self.schedule.validate, before, now) and self._validate(now)
        # Processes that share a batch stop together: a signal may reach them a step apart.
        self.stopping = any_of(self.stop_at is not None and now >= self.stop_at)
        due = self._due(self.schedule.checkpoint, before, now) or better
        if (before >= 0 and due) or self.stopping:
            self.checkpoint(best=better)
        if self.on_progress is not None:
            self.on_progress(now)

    def _on_step(self) -> bool:
        if self.stopping:
            return False
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done:
                self.episodes.append({name: float(info[name]) for name in EPISODE_FIGURES})
        del self.episodes[:-RECENT_EPISODES]
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
            self._write_line(now)
            self.checkpoint(best=self._validate(now))
        if self.on_progress is not None:
            self.on_progress(now)

    def _write_line(self, now: int) -> None:
        model: Any = self.model
        values: dict[str, Any] = {"episode": model._episode_num}
        for name in EPISODE_FIGURES:
            if self.episodes:
                figures = [episode[name] for episode in self.episodes]
                values[LINE_NAMES[name]] = float(np.mean(figures))
        logged = model.logger.name_to_value
        gates = []
        for key, value in logged.items():
            name = key.removeprefix("train/")
            if name.startswith("gate_"):
                gates.append(float(value))
            elif key.startswith("train/"):
                values[name] = float(value)
        if gates:
            values["gates"] = gates
        self.log.write(now, kind="train", **values)

    def _validate(self, now: int) -> bool:
        """Whether the present policy is better on validation than all before."""
        figures = validate(self.market, self.env_settings, self.act)
        self.last_validation = figures
        better = figures["sharpe"] > self.best
        self.log.write(now, kind="validation", best=better, **figures)
        if better:
            self.best = figures["sharpe"]
            self.on_best(figures)
        return better

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Deterministic actions of the present policy."""
        actions, _ = self.model.predict(observations, deterministic=True)
        return np.asarray(actions)

    def checkpoint(self, best: bool = False) -> Path | None:
        """Write a checkpoint of this boundary; `best` protects it until a better one comes."""
        if self.store is None or not (self.run.save_latest or best or self.stopping):
            return None
        model: Any = self.model
        tensors, state = capture(model)
        state["callback"] = {
            "seen": self.seen,
            "best": self.best if math.isfinite(self.best) else None,
            "last_validation": self.last_validation,
            "episodes": self.episodes,
            "metrics_size": self.log.size,
            "known": self.known.state(),
        }
        path = self.store.write(self.seen, tensors, state)
        if best and self.run.save_best:
            self.store.point("best", path, **self.last_validation)
        return path

    def restore(self, state: dict[str, Any]) -> None:
        """Take the callback's part of a checkpoint."""
        self.seen = int(state["seen"])
        self.best = -math.inf if state["best"] is None else float(state["best"])
        self.last_validation = dict(state["last_validation"])
        self.episodes = list(state["episodes"])
        self.known.restore(state.get("known", self.known.state()))
