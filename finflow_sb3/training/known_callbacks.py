"""SB3's callbacks that a configuration names, made from a fixed table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.parallel import world_size

__all__ = ["KnownCallbacks", "known_callbacks"]

EVALUATIONS = "sb3_eval"
"""In a run: what `EvalCallback` writes."""

# What the callbacks count, and a resumed run has to go on from.
_COUNTERS = (
    "n_calls",
    "n_episodes",
    "best_mean_reward",
    "last_mean_reward",
    "last_best_mean_reward",
    "no_improvement_evals",
    "evaluations_timesteps",
    "evaluations_results",
    "evaluations_length",
)


class KnownCallbacks(CallbackList):
    """Callbacks of a configuration, with what they have counted."""

    def state(self) -> list[dict[str, Any]]:
        """Their counters, as a checkpoint keeps them."""
        return [_counters(callback) for callback in _with_children(self.callbacks)]

    def restore(self, state: Sequence[dict[str, Any]]) -> None:
        """Take counters from a checkpoint of the same configuration.

        Raises
        ------
        ValueError
            If they are not those of these callbacks.
        """
        for callback, counters in zip(_with_children(self.callbacks), state, strict=True):
            own = _counters(callback)
            if _kinds(own) != _kinds(counters):
                raise ValueError(f"counters of {type(callback).__name__}")
            for name in own:
                setattr(callback, name, counters[name])


def known_callbacks(settings: Settings, market: ObservedMarket, run: Path) -> KnownCallbacks:
    """The callbacks of `settings.cqsac.callback`, to be passed to `learn`.

    Parameters
    ----------
    run : the run's folder, which holds all that they write

    Raises
    ------
    ConfigError
        If there are some and several processes: they would stop at different steps.
    """
    named = settings.cqsac.callback
    if named and world_size() > 1:
        raise ConfigError("cqsac.callback: callbacks work in one process; leave them out")
    make: dict[str, Callable[..., BaseCallback]] = {
        "CheckpointCallback": lambda save_freq, save_path="sb3", **rest: CheckpointCallback(
            save_freq, str(run / save_path), **rest
        ),
        "EvalCallback": lambda **rest: _evaluation(settings, market, run, **rest),
        "StopTrainingOnMaxEpisodes": StopTrainingOnMaxEpisodes,
    }
    return KnownCallbacks(
        [make[name](**arguments) for item in named for name, arguments in item.items()]
    )


def _evaluation(
    settings: Settings,
    market: ObservedMarket,
    run: Path,
    callback_on_new_best: dict[str, dict[str, Any]] | None = None,
    callback_after_eval: dict[str, dict[str, Any]] | None = None,
    **rest: Any,
) -> EvalCallback:
    """SB3's evaluation, on the validation split as a whole."""
    kwargs = dataclasses.asdict(settings.env_kwargs)
    env = PortfolioVecEnv(market, 1, split="validation", evaluation=True, **kwargs)
    folder = str(run / EVALUATIONS)
    return EvalCallback(
        env,
        callback_on_new_best=_child(StopTrainingOnRewardThreshold, callback_on_new_best),
        callback_after_eval=_child(StopTrainingOnNoModelImprovement, callback_after_eval),
        n_eval_episodes=1,
        log_path=folder,
        best_model_save_path=folder,
        verbose=0,
        **rest,
    )


def _child(
    kind: Callable[..., BaseCallback], named: dict[str, dict[str, Any]] | None
) -> BaseCallback | None:
    return None if named is None else kind(**next(iter(named.values())))


def _with_children(callbacks: Sequence[BaseCallback]) -> list[BaseCallback]:
    found = []
    for callback in callbacks:
        children = [getattr(callback, name, None) for name in ("callback_on_new_best", "callback")]
        found += [callback, *(child for child in children if child is not None)]
    return found


def _kinds(counters: dict[str, Any]) -> dict[str, type]:
    return {name: type(value) for name, value in counters.items()}


def _counters(callback: BaseCallback) -> dict[str, Any]:
    found = {name: getattr(callback, name) for name in _COUNTERS if hasattr(callback, name)}
    return {name: np.asarray(value).tolist() for name, value in found.items()}  # goes into JSON
