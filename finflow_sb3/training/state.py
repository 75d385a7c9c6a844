"""Everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.replay import PortfolioReplayBuffer
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import CheckpointError
from finflow_sb3.parallel import JointNoise
from finflow_sb3.runs.checkpoints import Checkpoint, fitting
from finflow_sb3.runs.random_state import (
    global_random_state,
    optimizer_state,
    restore_global_random_state,
    restore_optimizer,
)
from finflow_sb3.runs.tensor_files import TensorFile

__all__ = ["capture", "portfolio_buffer", "portfolio_env", "restore"]

COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
    "lr_scale",
)

Tensors = dict[str, dict[str, Tensor]]


def capture(model: CQSAC) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by file, and the rest as JSON.

    To be called between an update and the next step of the environment, where nothing is half
    done: SB3's `on_rollout_start`. The transitions of the replay buffer are not among them:
    `portfolio_buffer` gives what they are written from.
    """
    env, buffer = portfolio_env(model), portfolio_buffer(model)
    env_arrays, env_random = env.batch.state()
    random_tensors, random_plain = global_random_state()
    assert model._last_obs is not None
    tensors: Tensors = {
        "policy": dict(model.policy.state_dict()),
        "environment": _tensors({**env_arrays, "last_obs": np.asarray(model._last_obs)}),
        "random": random_tensors,
    }
    groups = {}
    for name, optimizer in _optimizers(model).items():
        tensors[f"optimizer_{name}"], groups[name] = optimizer_state(optimizer)
    entropy = model.log_ent_coef if model.log_ent_coef is not None else model.ent_coef_tensor
    tensors["entropy"] = {"coefficient": entropy.detach().clone()}
    if model.log_cql_alpha is not None:
        tensors["multiplier"] = {"log_cql_alpha": model.log_cql_alpha.detach().clone()}
    if isinstance(model.noise, JointNoise):
        tensors["noise"] = {"generator": model.noise.generator.get_state()}
    return tensors, {
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "target_entropy": float(model.target_entropy),
        "episodes": list(model.ep_info_buffer or []),
        "optimizers": groups,
        "scales": model.precision.state(_optimizers(model).values()),
        "replay": {"stop": buffer.stop},
        "environment": env_random,
        "random": random_plain,
        "action_space": _generator_state(model.action_space),
    }


def restore(model: CQSAC, checkpoint: Checkpoint) -> None:
    """Bring a model of the same settings to the state of a checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit the model.
    """
    with fitting(checkpoint):
        _restore(model, checkpoint.tensors, checkpoint.state)
        pieces = list(checkpoint.rows())
        stop = int(checkpoint.state["replay"]["stop"])
        if checkpoint.lost:  # those that are left are counted anew
            stop = pieces[-1][1] if pieces else 0
        portfolio_buffer(model).restore(pieces, stop)


def _restore(model: CQSAC, tensors: Mapping[str, TensorFile], state: dict[str, Any]) -> None:
    env = portfolio_env(model)
    model.policy.load_state_dict(tensors["policy"], strict=True)
    for name, optimizer in _optimizers(model).items():
        stored = dict(tensors[f"optimizer_{name}"])
        restore_optimizer(optimizer, stored, state["optimizers"][name])
    coefficient = tensors["entropy"]["coefficient"].to(model.device)
    if model.log_ent_coef is not None:
        model.log_ent_coef.data.copy_(coefficient)
    else:
        model.ent_coef_tensor = coefficient
    if model.log_cql_alpha is not None:
        model.log_cql_alpha.data.copy_(tensors["multiplier"]["log_cql_alpha"])
    if isinstance(model.noise, JointNoise):
        model.noise.generator.set_state(tensors["noise"]["generator"])
    model.precision.restore(_optimizers(model).values(), state.get("scales", []))
    model.target_entropy = state["target_entropy"]
    for name in COUNTERS:
        setattr(model, name, state["counters"][name])
    model.ep_info_buffer = deque(state["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)
    arrays = _arrays(tensors["environment"])
    model._last_obs = arrays.pop("last_obs")
    env.batch.restore(arrays, state["environment"])
    _set_generator_state(model.action_space, state["action_space"])
    restore_global_random_state(dict(tensors["random"]), state["random"])


def portfolio_env(model: CQSAC) -> PortfolioVecEnv:
    """The model's environment; `CheckpointError` if it is another one."""
    if not isinstance(model.env, PortfolioVecEnv):
        raise CheckpointError("checkpoints need the portfolio environment (normalize: false)")
    return model.env


def portfolio_buffer(model: CQSAC) -> PortfolioReplayBuffer:
    """The model's replay buffer; `CheckpointError` if it is another one."""
    if not isinstance(model.replay_buffer, PortfolioReplayBuffer):
        raise CheckpointError("checkpoints need the portfolio environment's replay buffer")
    return model.replay_buffer


def _optimizers(model: CQSAC) -> dict[str, torch.optim.Optimizer]:
    out = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    if model.ent_coef_optimizer is not None:
        out["entropy"] = model.ent_coef_optimizer
    if model.cql_alpha_optimizer is not None:
        out["multiplier"] = model.cql_alpha_optimizer
    return out


def _tensors(arrays: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _generator_state(space: Any) -> dict[str, Any]:
    state: dict[str, Any] = space.np_random.bit_generator.state
    return state


def _set_generator_state(space: Any, state: dict[str, Any]) -> None:
    space.np_random.bit_generator.state = state
