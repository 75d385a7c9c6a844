"""One of several processes that update one model; run by `test_parallel` under torchrun.

Process r of W takes the r-th part of every batch; alone it takes the whole. Both have the same
noise, so that the results can be compared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from learning_fixtures import TINY
from markets import small_market
from safetensors.torch import load_file, save_file
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import distributed as dist

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.parallel import JointNoise, rank, world_size

JOINT_BATCH, UPDATES = 16, 3
CASES: dict[str, dict[str, Any]] = {
    "bare": {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [8, 8], "n_quantiles": 5}},
    "experts": {
        "policy": "MultiExpertPolicy",
        "policy_kwargs": dict(TINY),
        "cql_alpha": 2.0,
        "cql_target_action_gap": 1.0,
        "balance_coef": 0.5,
        "prior_coef": 0.1,
        "obs_noise_std": 0.05,
    },
    "mixture": {
        "policy": "MultiExpertPolicy",
        "policy_kwargs": {**TINY, "mixture": "full"},
        "cql_alpha": 1.0,
        "cql_batch_size": 8,  # of the joint batch
        "utd_ratio": 2,
        "risk_measure": "cvar:0.5",
    },
}


def make(case: str) -> CQSAC:
    kwargs = dict(CASES[case])
    if "cql_batch_size" in kwargs:
        kwargs["cql_batch_size"] //= world_size()
    env: Any = gym.make("Pendulum-v1")
    if case != "bare":
        env = PortfolioVecEnv(small_market(), 4, seed=0, episode_length=20)
    model = CQSAC(kwargs.pop("policy"), env, seed=3, device="cpu", buffer_size=500, **kwargs)
    model.set_logger(configure(None, []))
    return model


def joint_batches(model: CQSAC) -> list[ReplayBufferSamples]:
    """The same random batches in every process."""
    rng = np.random.default_rng(7)
    space: Any = model.observation_space
    actions: Any = model.action_space

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape)).float()

    out = []
    for _ in range(UPDATES * model.utd_ratio):
        shape = JOINT_BATCH, *space.shape
        out.append(
            ReplayBufferSamples(
                normal(*shape),
                torch.tanh(normal(JOINT_BATCH, *actions.shape)),
                normal(*shape),
                torch.zeros(JOINT_BATCH, 1),
                normal(JOINT_BATCH, 1),
            )
        )
    return out


class Parts:
    """In place of the replay buffer: this process's part of every joint batch."""

    def __init__(self, batches: list[ReplayBufferSamples]):
        self.batches = batches

    def stream(self, count: int, prefetch: bool) -> Any:
        size = JOINT_BATCH // world_size()
        mine = slice(rank() * size, (rank() + 1) * size)
        for batch in self.batches[:count]:
            yield ReplayBufferSamples(*(None if x is None else x[mine] for x in batch))


def update(case: str, target: Path) -> None:
    """A few updates; writes the parameters and the losses, means over the processes."""
    model = make(case)
    model.noise = JointNoise(11, model.device)
    if world_size() > 1:  # one process starts from what both were given
        start = {k: v.clone() for k, v in model.policy.state_dict().items()}
    else:
        start = load_file(target / f"{case}_start.safetensors")
        model.policy.load_state_dict(start)
    batches = joint_batches(model)
    losses = []
    for i in range(UPDATES):
        part = batches[i * model.utd_ratio : (i + 1) * model.utd_ratio]
        model._batches = lambda size, part=part: Parts(part)
        model.train(1, JOINT_BATCH // world_size())
        names = ("critic_loss", "actor_loss", "ent_coef_loss", "cql_penalty")
        logged = model.logger.name_to_value
        values = torch.tensor([float(logged.get(f"train/{name}", 0.0)) for name in names])
        if world_size() > 1:
            dist.all_reduce(values)
            values /= world_size()
        losses.append(values.tolist())
    state = {k: v.contiguous() for k, v in model.policy.state_dict().items()}
    assert model.log_ent_coef is not None
    state["log_ent_coef"] = model.log_ent_coef.detach()
    if model.log_cql_alpha is not None:
        state["log_cql_alpha"] = model.log_cql_alpha.detach()
    name = f"{case}_{world_size()}_{rank()}"
    save_file(state, target / f"{name}.safetensors")
    if rank() == 0:
        (target / f"{name}.json").write_text(json.dumps(losses))
        if world_size() > 1:
            save_file(start, target / f"{case}_start.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        update(case, Path(sys.argv[1]))
    if world_size() > 1:
        dist.barrier()
        dist.destroy_process_group()
