"""What happens between updates of SB3's own algorithms: metrics, validation, the best, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.stopping import Stop
from finflow_sb3.training.callbacks import (
    EndOfTraining,
    Schedule,
    Validated,
    note_ended,
    recent_figures,
)

__all__ = ["PlainCallback"]


class PlainCallback(BaseCallback):
    """`TrainingCallback` without what only CQSAC has: a stability monitor, and checkpoints.

    All of it happens at SB3's `on_rollout_start`: of on-policy algorithms, at the first such
    boundary at or after it is due.

    Parameters
    ----------
    on_best : called with the figures when a validation is better than all before
    on_progress : called with the environment steps done
    stop_at : stop at the first boundary at or after this step
    on_validated : called with the steps done and the figures of each validation

    Attributes
    ----------
    stop : looked at at each boundary; a signal may ask it to stop
    stopping : whether the run ends before its last step
    reason : why, where neither a signal nor `stop_at` asked for it
    """

    def __init__(
        self,
        market: ObservedMarket,
        settings: Settings,
        log: MetricsLog,
        on_best: Callable[[dict[str, float]], None],
        on_progress: Callable[[int], None],
        stop_at: int | None = None,
        on_validated: Validated | None = None,
    ):
        super().__init__()
        self.on_validated = on_validated
        self.market, self.settings, self.log = market, settings, log
        self.on_best, self.on_progress, self.stop_at = on_best, on_progress, stop_at
        self.stop, self.stopping = Stop(), False
        self.reason: str | None = None
        self.schedule = Schedule.of(settings.run, settings.env_kwargs)
        self.seen, self.ended = -1, 0
        self.best = -math.inf
        self.last_validation: dict[str, float] = {}
        self.episodes: list[dict[str, float]] = []

    # ---------------------------------------------------------------- SB3's hooks

    def _on_rollout_start(self) -> None:
        before, self.seen = self.seen, self.model.num_timesteps
        lined = self._due(self.schedule.log, before)
        judged = self._due(self.schedule.validate, before)
        if lined or judged:
            self.require_finite()
        if lined:
            self._write_line()
        if judged:
            self._validate()
        self.on_progress(self.seen)
        if self.stop.asked or (self.stop_at is not None and self.seen >= self.stop_at):
            self.stopping = True
            raise EndOfTraining

    def _on_step(self) -> bool:
        dones = self.locals["dones"]
        self.ended += int(np.count_nonzero(dones))
        note_ended(self.episodes, self.locals["infos"], dones)
        return True

    # ---------------------------------------------------------------- work at a boundary

    def _due(self, every: int, before: int) -> bool:
        return before < 0 or self.seen // every > before // every

    def require_finite(self) -> None:
        """End the run where a weight is no number any more: what it does then is none either.

        Raises
        ------
        EndOfTraining
        """
        if not all(torch.isfinite(p).all() for p in self.model.policy.parameters()):
            self.stopping, self.reason = True, "weights of the networks are not finite"
            raise EndOfTraining

    def finish(self) -> None:
        """The last line and validation of a run that has come to its end."""
        self.seen = self.model.num_timesteps
        self.require_finite()
        self._write_line()
        self._validate()
        self.on_progress(self.seen)

    def _write_line(self) -> None:
        values: dict[str, Any] = {"episode": self.ended, **recent_figures(self.episodes)}
        logged: Mapping[str, Any] = self.model.logger.name_to_value
        for key, value in sorted(logged.items()):
            if key.startswith("train/"):
                values[key.removeprefix("train/")] = float(value)
        self.log.write(self.seen, kind="train", **values)

    def _validate(self) -> None:
        figures = validate(self.market, self.settings.env_kwargs, self.act)
        self.last_validation = figures
        better = figures["sharpe"] > self.best
        self.log.write(self.seen, kind="validation", best=better, **figures)
        if better:
            self.best = figures["sharpe"]
            self.on_best(figures)
        if self.on_validated is not None:
            self.on_validated(self.seen, figures)

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Deterministic actions of the present policy."""
        actions, _ = self.model.predict(observations, deterministic=True)
        return np.asarray(actions)
