"""The stability monitor: figures come in as they arise, warnings come out at boundaries.

It acts on nothing. An `Event` says which action is due; who trains carries it out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.checks import ACTIONS, CHECKS, Action, Check, Level
from finflow_sb3.config import MonitorSettings
from finflow_sb3.errors import CheckpointError
from finflow_sb3.training.watched import Course, RewardWindow, effective_number, policy_width

__all__ = ["Event", "Monitor", "due_action"]

# Of `train`'s figures: those that a check takes as they are.
UPDATE_FIGURES = {
    "q_mean": "q_value",
    "actor_loss": "actor_loss",
    "critic_loss": "critic_loss",
    "grad_norm_actor": "grad_norm_actor",
    "grad_norm_critic": "grad_norm_critic",
}
# A share of the portfolio; less is rounding.
LEAST_TURNOVER = 1e-9
PATIENCE = "patience"


@dataclass(frozen=True)
class Event:
    """A warning at a boundary.

    Attributes
    ----------
    check : name in `CHECKS`, or `patience` for an early stop
    value, limit : the worst figure since the last boundary, and what it is beyond
    message : the same in a sentence
    action : what is due: warn, cut_lr, rollback or stop
    """

    step: int
    check: str
    value: float
    limit: float
    message: str
    action: Action

    def as_dict(self) -> dict[str, Any]:
        """Plain, ready for JSON, in which a value that is no number is None."""
        value = self.value if math.isfinite(self.value) else None
        return {**dataclasses.asdict(self), "value": value}


def due_action(events: Iterable[Event]) -> Action | None:
    """The strongest action among `events`, which stands for the others; None without any."""
    return max((event.action for event in events), key=ACTIONS.index, default=None)


class Monitor:
    """Watches a training run.

    Call `update`, `step` and `validation` as things happen, and `verdict` at a boundary, where a
    run can be changed. A figure is judged by the worst since the boundary before. An event is
    given when a check goes beyond its limit, and again each `cooldown` steps while that lasts,
    never for a figure that was not measured since. After a rollback call `rolled_back`.

    Without wall clock or random numbers: the same figures give the same events. Where
    `settings.enabled` is False nothing is noted and nothing ever due.

    Parameters
    ----------
    n_envs : portfolios in the batch
    action_size : dimensions of the action, d
    """

    def __init__(self, settings: MonitorSettings, n_envs: int, action_size: int):
        self.settings, self.action_size = settings, action_size
        on = settings.on_warning if settings.enabled else {}
        self.courses = {
            name: Course(check) for name, check in CHECKS.items() if on.get(name, "off") != "off"
        }
        self.rewards = RewardWindow(settings.reward_window)
        self.idle_days = np.zeros(n_envs, dtype=np.int64)
        self.not_finite: list[str] = []
        self.rollbacks = 0
        self.best: float | None = None
        self.since_best = 0
        self.validated = False

    # ---------------------------------------------------------------- what happens

    def update(self, figures: Mapping[str, float]) -> None:
        """Take the figures of a gradient update.

        Parameters
        ----------
        figures : as `CQSAC.train` logs them, without `train/`; what is missing is not judged
        """
        if not self.courses:
            return
        for figure, check in UPDATE_FIGURES.items():
            if figure in figures:
                self._note(check, float(figures[figure]))
        if "entropy" in figures:
            self._note("entropy", policy_width(float(figures["entropy"]), self.action_size))
        gates = [float(value) for name, value in figures.items() if name.startswith("gate_")]
        if gates:
            self._note("effective_experts", effective_number(gates))
        self._note_finite([name for name, value in figures.items() if not math.isfinite(value)])

    def step(
        self,
        rewards: NDArray[np.floating[Any]],
        weights: NDArray[np.float64],
        turnover: NDArray[np.float64],
        dones: NDArray[np.bool_],
    ) -> None:
        """Take a step of the environment.

        Parameters
        ----------
        rewards : shape [B]
        weights : shape [B, n+1], as held after the trade, cash last
        turnover : shape [B]
        dones : shape [B]; of these portfolios weights and turnover are left out, as those of
            the batch are the next episode's already. Days without a trade go on counting: a
            policy that does not trade does not begin to because an episode ends
        """
        if not self.courses:
            return
        wrong = []
        fine = np.asarray(rewards, dtype=np.float64)
        if not np.isfinite(fine).all():
            wrong, fine = ["reward"], fine[np.isfinite(fine)]
        furthest = self.rewards.furthest(fine)
        if furthest is not None:
            self._note("reward_outlier", furthest)
        self.rewards.add(fine)
        if not dones.all():
            wrong += self._trades(weights, turnover, ~dones)
        self._note_finite(wrong)

    def _trades(
        self, weights: NDArray[np.float64], turnover: NDArray[np.float64], which: NDArray[np.bool_]
    ) -> list[str]:
        """Take weights and turnover of some portfolios; names of what is not finite."""
        self.idle_days[which] += 1
        self.idle_days[which & (turnover > LEAST_TURNOVER)] = 0
        held = weights[which]
        effective = float(np.mean(1.0 / np.einsum("ij,ij->i", held, held)))
        self._note("effective_assets", effective)
        self._note("no_trade_days", float(np.mean(self.idle_days)))
        finite = {"weights": effective, "turnover": float(np.sum(turnover))}
        return [name for name, value in finite.items() if not math.isfinite(value)]

    def validation(self, sharpe: float) -> None:
        """Take the Sharpe ratio of a validation backtest.

        NaN, where every day returned the same, is a warning of its own check and no improvement;
        nothing has overflown there.
        """
        if not self.settings.enabled:
            return
        self._note("validation_sharpe", sharpe)
        least = -math.inf if self.best is None else self.best + self.settings.min_improvement
        if math.isfinite(sharpe) and sharpe > least:
            self.best, self.since_best = sharpe, 0
        else:
            self.since_best += 1
        self.validated = True

    def _note(self, check: str, value: float) -> None:
        if check in self.courses:
            self.courses[check].note(value)

    def _note_finite(self, wrong: Sequence[str]) -> None:
        if "not_finite" in self.courses:
            self.not_finite += [name for name in wrong if name not in self.not_finite]
            self.courses["not_finite"].note(float(len(self.not_finite)))

    # ---------------------------------------------------------------- what comes of it

    def verdict(self, step: int) -> list[Event]:
        """Warnings that are due at a boundary, in the order of `CHECKS`.

        Parameters
        ----------
        step : environment steps done
        """
        events = []
        for name, course in self.courses.items():
            value, course.fresh = course.fresh, None
            if value is None:
                continue
            course.level = self.settings.level(name, value)
            # What else is not finite is `not_finite`'s to report.
            own = math.isfinite(value) or name == "validation_sharpe"
            if course.level == "warning" and own and self._due(course, step):
                events.append(self._event(course, value, step))
        self.not_finite = []
        patience = self.settings.patience
        if self.validated and patience is not None and self.since_best >= patience:
            events.append(self._early_stop(patience, step))
        self.validated = False
        return events

    def _due(self, course: Course, step: int) -> bool:
        return course.acted is None or step - course.acted >= self.settings.cooldown

    def _event(self, course: Course, value: float, step: int) -> Event:
        name = course.check.name
        limit = self.settings.warning_limits.get(name, course.check.limit)
        action = self.settings.on_warning[name]
        message = self._message(course.check, value, limit)
        if action == "rollback" and self.rollbacks >= self.settings.max_rollbacks:
            action = "stop"
            message += f"; after {self.rollbacks} rollbacks the run stops"
        course.act(action, step)
        return Event(step, name, value, limit, message, action)

    def _message(self, check: Check, value: float, limit: float) -> str:
        if check.name == "not_finite":
            verb = "is" if len(self.not_finite) == 1 else "are"
            return f"{', '.join(self.not_finite)} {verb} not finite"
        if not math.isfinite(value):
            return f"{check.name} is not defined: every day returned the same"
        side = "under" if check.worse == "below" else "over"
        size = " in magnitude" if check.worse == "away" else ""
        return f"{check.name} {value:.4g} is {side} its limit of {limit:g}{size}"

    def _early_stop(self, patience: int, step: int) -> Event:
        done = f"in {self.since_best} validations"
        message = f"validation Sharpe was no number {done}"
        if self.best is not None:
            message = f"validation Sharpe was not better than {self.best:.4g} {done}"
        return Event(step, PATIENCE, float(self.since_best), float(patience), message, "stop")

    @property
    def healthy(self) -> bool:
        """Whether no check is in warning: a checkpoint of now is one to roll back to."""
        return all(self._level(course) != "warning" for course in self.courses.values())

    def _level(self, course: Course) -> Level:
        """As of now: of what came since the last boundary, else of that boundary."""
        if course.fresh is None:
            return course.level
        return self.settings.level(course.check.name, course.fresh)

    def figures(self) -> dict[str, float]:
        """The last figure of each check that has one, for a line of metrics."""
        last = {name: course.last for name, course in self.courses.items()}
        return {name: value for name, value in last.items() if value is not None}

    def summary(self) -> dict[str, dict[str, Any]]:
        """By check: level, last and worst figure, warnings, and actions that were due by kind."""
        return {name: course.summary() for name, course in self.courses.items()}

    # ---------------------------------------------------------------- state

    def state(self) -> dict[str, Any]:
        """JSON-able; `restore` takes it, and goes on as if nothing had been between."""
        return {
            "courses": {name: course.state() for name, course in self.courses.items()},
            "window": self.rewards.state(),
            "idle_days": self.idle_days.tolist(),
            "not_finite": list(self.not_finite),
            "rollbacks": self.rollbacks,
            "best": self.best,
            "since_best": self.since_best,
            "validated": self.validated,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave. Checks that were off then start afresh.

        Raises
        ------
        CheckpointError
            If it is of another number of portfolios.
        """
        if len(state["idle_days"]) != len(self.idle_days):
            raise CheckpointError(
                f"monitor: the checkpoint has {len(state['idle_days'])} portfolios and the run "
                f"{len(self.idle_days)}; resume with the config.yml of the run"
            )
        for name, course in self.courses.items():
            if name in state["courses"]:
                course.restore(state["courses"][name])
        self.rewards.restore(state["window"])
        self.idle_days = np.array(state["idle_days"], dtype=np.int64)
        self.not_finite = list(state["not_finite"])
        self.rollbacks = int(state["rollbacks"])
        self.best, self.since_best = state["best"], int(state["since_best"])
        self.validated = bool(state["validated"])

    def rolled_back(self, state: Mapping[str, Any]) -> None:
        """Go back with the run to a checkpoint, but keep count of what led there.

        Windows, levels and the best validation are the checkpoint's again; events, worst figures
        and rollbacks stay. `cooldown` begins anew: what happens again is to be seen at once.

        Parameters
        ----------
        state : the monitor's in the checkpoint
        """
        rollbacks = self.rollbacks + 1
        before = {name: dataclasses.replace(course) for name, course in self.courses.items()}
        self.restore(state)
        self.rollbacks = rollbacks
        for name, course in self.courses.items():
            course.keep_count(before[name])
