"""SB3's callbacks that a configuration may name, with their arguments."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from finflow_sb3.config_fields import Checked, check_given, setting
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown

__all__ = ["CALLBACKS", "callback_name", "known_callbacks"]

_MODULE = "stable_baselines3.common.callbacks."
_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]{0,60}")
_ELSEWHERE = {
    "LogEveryNTimesteps": "set run.log_interval",
    "ProgressBarCallback": "the command shows progress by itself",
    "EveryNTimesteps": "name what it is to call",
    "CallbackList": "give a list",
    "ConvertCallback": "it needs code",
}


def _folder(value: str) -> str:
    """A folder in the run: a file that was read must not choose where else to write."""
    if _FOLDER.fullmatch(value) is None:
        raise ConfigError(f"{shown(value)} is not the name of a folder in the run")
    return value


def _child(kind: str) -> Any:
    def form(value: Any) -> Any:
        name, arguments = _parts(value)
        if name != kind:
            raise ConfigError(f"{shown(name)} does not go here; give {kind}")
        return {name: _arguments(name, _CHILDREN[name], arguments)}

    return form


@dataclass(frozen=True)
class _StopTrainingOnMaxEpisodes(Checked):
    max_episodes: int = setting(..., "episodes of each portfolio to stop after", 1, 10**9)


@dataclass(frozen=True)
class _CheckpointCallback(Checked):
    save_freq: int = setting(..., "batch steps between SB3 zip files", 1, 10**9)
    save_path: str = setting("sb3", "folder in the run", form=_folder)
    name_prefix: str = setting("rl_model", "start of their names", form=_folder)


@dataclass(frozen=True)
class _EvalCallback(Checked):
    eval_freq: int = setting(10_000, "batch steps between backtests", 1, 10**9)
    deterministic: bool = setting(True, "the mean instead of a drawn action")
    callback_on_new_best: Any = setting(None, "", form=_child("StopTrainingOnRewardThreshold"))
    callback_after_eval: Any = setting(None, "", form=_child("StopTrainingOnNoModelImprovement"))


@dataclass(frozen=True)
class _StopTrainingOnRewardThreshold(Checked):
    reward_threshold: float = setting(..., "reward of the validation split to stop at", -1e9, 1e9)


@dataclass(frozen=True)
class _StopTrainingOnNoModelImprovement(Checked):
    max_no_improvement_evals: int = setting(..., "backtests without a better one", 1, 10**9)
    min_evals: int = setting(0, "backtests before the first stop", 0, 10**9)


CALLBACKS: dict[str, type[Checked]] = {
    "CheckpointCallback": _CheckpointCallback,
    "EvalCallback": _EvalCallback,
    "StopTrainingOnMaxEpisodes": _StopTrainingOnMaxEpisodes,
}
"""Names at the top of `callback`."""

_CHILDREN: dict[str, type[Checked]] = {
    "StopTrainingOnRewardThreshold": _StopTrainingOnRewardThreshold,
    "StopTrainingOnNoModelImprovement": _StopTrainingOnNoModelImprovement,
}
_PARENT = {
    "StopTrainingOnRewardThreshold": "callback_on_new_best",
    "StopTrainingOnNoModelImprovement": "callback_after_eval",
}


def callback_name(name: str) -> str:
    """The name without SB3's module, which the zoo writes before it."""
    return name.removeprefix(_MODULE)


def known_callbacks(value: Any) -> tuple[dict[str, dict[str, Any]], ...]:
    """Callbacks as one-key mappings of name to arguments, from the forms of the zoo.

    Parameters
    ----------
    value : a name, a mapping of one name to its arguments, or a list of these

    Raises
    ------
    ConfigError
        If a name or an argument is unknown, wrong or missing.
    """
    items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    found: list[dict[str, dict[str, Any]]] = []
    for item in items:
        name, arguments = _parts(item)
        if name in _ELSEWHERE:
            raise ConfigError(f"{name} does nothing here; leave it out: {_ELSEWHERE[name]}")
        if name in _CHILDREN:
            raise ConfigError(f"{name} goes into EvalCallback, under {_PARENT[name]}")
        if name not in CALLBACKS:
            known = [*CALLBACKS, *_CHILDREN]
            raise ConfigError(f"unknown callback {shown(name)}; {remedy(name, known)}")
        if any(name in other for other in found):
            raise ConfigError(f"{name} stands twice; remove one")
        found.append({name: _arguments(name, CALLBACKS[name], arguments)})
    return tuple(found)


def _parts(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, str):
        return callback_name(item), {}
    if isinstance(item, dict) and len(item) == 1:
        ((name, arguments),) = item.items()
        if isinstance(name, str) and isinstance(arguments, (dict, type(None))):
            return callback_name(name), arguments or {}
    raise ConfigError(f"{shown(item)} is neither a name nor a mapping of one name to its arguments")


def _arguments(name: str, kind: type[Checked], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return check_given(kind, arguments, f"argument of {name}")
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
