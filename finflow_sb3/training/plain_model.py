"""SB3's own algorithms in the portfolio environment: made from arguments, kept, and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
)
from stable_baselines3.common.policies import BasePolicy

from finflow_sb3.config import EnvSettings, RunSettings
from finflow_sb3.config_plain import PLAIN, OffPolicyArguments, OnPolicyArguments
from finflow_sb3.config_policies import check_policy_kwargs
from finflow_sb3.cqsac.replay import PortfolioReplayBuffer
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.pretrain.artefact import write_sealed
from finflow_sb3.training.build import activation, learning_rate, pick_device

__all__ = ["CLASSES", "build_plain", "keep_plain", "plain_policy", "rollout_steps"]

CLASSES: dict[str, type[BaseAlgorithm]] = {
    "sac": SAC,
    "td3": TD3,
    "ddpg": DDPG,
    "ppo": PPO,
    "a2c": A2C,
    "tqc": TQC,
    "crossq": CrossQ,
}
POLICY_FORMAT = "finflow-policy-1"

# What is said to the caller or to the environment, and not to the constructor.
_BESIDE = (
    "n_timesteps",
    "n_envs",
    "normalize",
    "env_kwargs",
    "policy",
    "policy_kwargs",
    "noise_type",
    "noise_std",
)
_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
_NOISES: dict[str, type[NormalActionNoise | OrnsteinUhlenbeckActionNoise]] = {
    "normal": NormalActionNoise,
    "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise,
}


def build_plain(
    algo: str,
    arguments: Mapping[str, Any],
    market: ObservedMarket,
    env: EnvSettings,
    run: RunSettings,
) -> BaseAlgorithm:
    """An algorithm with its training environment, ready to learn.

    Parameters
    ----------
    algo : name in `CLASSES`
    arguments : every field of `PLAIN[algo]`, checked

    Raises
    ------
    ConfigError
        If SB3 refuses the arguments.
    """
    vec_env = PortfolioVecEnv(
        market, arguments["n_envs"], split="train", seed=run.seed, **dataclasses.asdict(env)
    )
    kwargs = {name: value for name, value in arguments.items() if name not in _BESIDE}
    for name in _SCHEDULES:
        if kwargs.get(name) is not None:
            kwargs[name] = learning_rate(kwargs[name])
    if issubclass(PLAIN[algo], OffPolicyArguments):
        kwargs |= _off_policy(arguments, market)
    try:
        return CLASSES[algo](
            arguments["policy"],
            vec_env,
            policy_kwargs=_policy_kwargs(arguments["policy_kwargs"]),
            seed=run.seed,
            device=pick_device(run.device),
            **kwargs,
        )
    except (AssertionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{algo}: these arguments make no model: {reason}") from None


def _off_policy(arguments: Mapping[str, Any], market: ObservedMarket) -> dict[str, Any]:
    """A replay buffer that gives SB3's own batches, bit for bit, in a fifteenth of the memory."""
    frequency = arguments["train_freq"]
    return {
        "action_noise": _noise(arguments, market.layout.action_size),
        "train_freq": tuple(frequency) if isinstance(frequency, list) else frequency,
        "n_steps": 1,  # of SB3's own buffer; ours is told below
        "replay_buffer_class": PortfolioReplayBuffer,
        "replay_buffer_kwargs": {
            "market_rows": market.rows,
            "layout": market.layout,
            "n_steps": arguments["n_steps"],
            "gamma": arguments["gamma"],
        },
    }


def _noise(arguments: Mapping[str, Any], size: int) -> ActionNoise | None:
    if arguments["noise_type"] is None:
        return None
    deviation = np.full(size, arguments["noise_std"])
    return _NOISES[arguments["noise_type"]](np.zeros(size), deviation)


def _policy_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = dict(given)
    if "activation_fn" in kwargs:
        kwargs["activation_fn"] = activation(kwargs["activation_fn"])
    return kwargs


def rollout_steps(algo: str, arguments: Mapping[str, Any]) -> int | None:
    """Environment steps of a rollout, of which an on-policy algorithm does whole ones; else None.

    Parameters
    ----------
    arguments : as for `build_plain`
    """
    if not issubclass(PLAIN[algo], OnPolicyArguments):
        return None
    return int(arguments["n_envs"] * arguments["n_steps"])


# ------------------------------------------------------------------ keeping and reading back


def keep_plain(
    model: BaseAlgorithm,
    algo: str,
    arguments: Mapping[str, Any],
    market: ObservedMarket,
    target: Path,
    figures: dict[str, float],
) -> None:
    """Write the present policy, with what is needed to use it, into the folder `target`."""
    head = {
        "format": POLICY_FORMAT,
        "algo": algo,
        "policy": arguments["policy"],
        "policy_kwargs": arguments["policy_kwargs"],
        "use_sde": bool(arguments.get("use_sde", False)),
        "facts": {"step": model.num_timesteps, "validation": figures},
    }
    weights = {k: v for k, v in model.policy.state_dict().items() if _acts(algo, k)}
    write_sealed(target, weights, market.layout, market.scaler, {"policy.json": head})


def _acts(algo: str, name: str) -> bool:
    """Whether a weight is needed to act: critics of off-policy algorithms are not."""
    return issubclass(PLAIN[algo], OnPolicyArguments) or name.startswith("actor.")


def plain_policy(
    head: Mapping[str, Any], observation_space: Any, action_space: Any
) -> tuple[BasePolicy, torch.nn.Module, str]:
    """The network that a `policy.json` describes, with weights still to be loaded.

    Returns
    -------
    policy, the part of it that acts, and the prefix of that part's names in the file

    Raises
    ------
    ConfigError
        If the description has names or values that the policy does not take.
    KeyError
        If something is missing in it.
    """
    algo, name = head["algo"], head["policy"]
    kwargs = dict(head["policy_kwargs"])
    check_policy_kwargs(algo, name, kwargs)
    if head["use_sde"]:
        kwargs["use_sde"] = True
    policy_class: Any = CLASSES[algo].policy_aliases[name]
    policy = policy_class(observation_space, action_space, lambda _: 0.0, **_policy_kwargs(kwargs))
    if issubclass(PLAIN[algo], OnPolicyArguments):
        return policy, policy, ""
    return policy, policy.actor, "actor."
