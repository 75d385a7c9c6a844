"""What a run is watched for: each check, its unit, and what of it counts as normal.

Data without the heavy packages, so that whatever shows a figure can tell how it stands.
`MonitorSettings` has these defaults with a user's own values over them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown

__all__ = [
    "ACTIONS",
    "BY_COLUMN",
    "CHECKS",
    "Action",
    "Check",
    "Level",
    "complete_actions",
    "complete_bounds",
]

Level = Literal["ok", "notice", "warning"]
"""Within what is normal; outside of it; beyond the limit."""

Action = Literal["off", "warn", "cut_lr", "rollback", "stop"]

ACTIONS: tuple[Action, ...] = ("off", "warn", "cut_lr", "rollback", "stop")
"""What may follow a warning, each more than the one before; a check that is off is not made."""


@dataclass(frozen=True)
class Check:
    """One figure that is watched.

    Attributes
    ----------
    name : as settings and events call it
    meaning : what the figure is
    unit : of the figure and its bounds
    worse : the side on which a figure is out of bounds; `away` is away from zero, where its sign
        does not count
    normal, limit : default bounds: past the first is a notice, past the second a warning. A
        figure exactly at a bound is still inside
    fixed : whether the bounds are no setting
    figure : what updates and validations log the same number as, None where they do not
    action : what follows a warning by default
    lowest : the least bound that makes sense
    """

    name: str
    meaning: str
    unit: str
    worse: Literal["above", "below", "away"]
    normal: float
    limit: float
    figure: str | None = None
    action: Action = "warn"
    lowest: float = 0.0
    fixed: bool = False

    @property
    def column(self) -> str:
        """What lines of `metrics.jsonl` call the figure that is judged."""
        return self.figure or {"entropy": "policy_width"}.get(self.name, self.name)

    def normal_range(self, normal: float) -> str:
        """The normal range in words, with this bound."""
        if self.worse == "away":
            return f"{-normal:g} to {normal:g}"
        return f"{'over' if self.worse == 'below' else 'under'} {normal:g}"

    def badness(self, value: float) -> float:
        """A number that grows as the figure gets worse; infinite where it is not finite."""
        if not math.isfinite(value):
            return math.inf
        if self.worse == "away":
            return abs(value)
        return -value if self.worse == "below" else value

    def level(self, value: float, normal: float, limit: float) -> Level:
        """How `value` stands to these bounds."""
        bad = self.badness(value)
        if bad > self.badness(limit):
            return "warning"
        return "notice" if bad > self.badness(normal) else "ok"


# Bounds of Q, entropy, losses and Sharpe are the method's. The others lie well beyond what runs
# on the built-in market showed: rewards have fat tails (11.7 deviations in 60,000), gradients of
# the first updates a norm of 45.
_EVERY = (
    Check("q_value", "mean Q of the batch", "rewards", "away", 10.0, 100.0, "q_mean"),
    Check(
        "entropy",
        "width of the policy in each dimension of the action, exp(H/d)/2",
        "share of the range",
        "below",
        0.1,
        0.01,
    ),
    Check("actor_loss", "loss of the actor", "rewards", "away", 10.0, 50.0, "actor_loss"),
    Check("critic_loss", "quantile loss", "rewards", "above", 5.0, 20.0, "critic_loss"),
    Check(
        "validation_sharpe",
        "Sharpe ratio of the last validation backtest, net of costs",
        "a year",
        "below",
        0.0,
        -0.5,
        "sharpe",
        lowest=-math.inf,
    ),
    Check(
        "reward_outlier",
        "distance of a reward from the mean of those before it",
        "standard deviations",
        "above",
        8.0,
        20.0,
    ),
    Check(
        "effective_assets",
        "1/Σw² of the weights held (cash is one of them), mean over portfolios",
        "assets",
        "below",
        3.0,
        1.5,
    ),
    Check(
        "no_trade_days",
        "days in a row without a trade, mean over portfolios",
        "days",
        "above",
        21.0,
        63.0,
    ),
    Check("effective_experts", "exp(H) of the gate's mean weights", "experts", "below", 2.5, 1.5),
    Check(
        "grad_norm_actor",
        "Euclidean norm of the actor's gradient",
        "loss a parameter",
        "above",
        50.0,
        500.0,
        "grad_norm_actor",
    ),
    Check(
        "grad_norm_critic",
        "Euclidean norm of the critics' gradient",
        "loss a parameter",
        "above",
        50.0,
        500.0,
        "grad_norm_critic",
    ),
    Check(
        "not_finite",
        "figures of an update, rewards and weights that are NaN or infinite",
        "figures",
        "above",
        0.0,
        0.0,
        action="rollback",
        fixed=True,
    ),
)

CHECKS: dict[str, Check] = {check.name: check for check in _EVERY}
"""By name, in the order in which they are reported."""

BY_COLUMN = {check.column: check for check in _EVERY}
"""By what lines of `metrics.jsonl` call their figures."""


def complete_actions(given: Mapping[str, Action]) -> dict[str, Action]:
    """The action of every check: as given, else its default.

    Raises
    ------
    ConfigError
        If there is no such check.
    """
    _require_known("on_warning", given, CHECKS)
    return {name: given.get(name, check.action) for name, check in CHECKS.items()}


def complete_bounds(
    normal: Mapping[str, float], limits: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Normal bound and limit of every check that has them: as given, else the defaults.

    Raises
    ------
    ConfigError
        If there is no such check, a bound is out of range, or a limit lies within the normal.
    """
    bounded = {name: check for name, check in CHECKS.items() if not check.fixed}
    for setting, given in (("normal_limits", normal), ("warning_limits", limits)):
        _require_known(setting, given, bounded)
        for name, value in given.items():
            low = CHECKS[name].lowest
            if not (math.isfinite(value) and value >= low):
                raise ConfigError(f"{setting}.{name}: {value!r} is out of range ({low:g} to inf)")
    normal = {name: normal.get(name, check.normal) for name, check in bounded.items()}
    limits = {name: limits.get(name, check.limit) for name, check in bounded.items()}
    for name, check in bounded.items():
        if check.badness(normal[name]) > check.badness(limits[name]):
            raise ConfigError(
                f"warning_limits.{name}: {limits[name]:g} lies within what is normal "
                f"({normal[name]:g}); set normal_limits.{name} too"
            )
    return normal, limits


def _require_known(setting: str, given: Mapping[str, object], known: Collection[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"{setting}: unknown check {shown(name)}; {remedy(name, known)}")
