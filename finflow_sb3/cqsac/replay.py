"""A replay buffer for portfolios: market rows once, and what is a transition's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from finflow_sb3.errors import ConfigError
from finflow_sb3.market.layout import ObservationLayout

__all__ = ["PortfolioReplayBuffer"]

ARRAYS = ("row", "before", "after", "actions", "rewards", "dones", "timeouts")


class PortfolioReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with observations put together when a batch is drawn.

    A transition takes (2·portfolio_size + action_size + 5) numbers instead of two whole
    observations; at 20 assets that is a fifteenth.

    Parameters
    ----------
    market_rows : float32 [T, layout.market_size], as in `ObservedMarket.rows`
    layout : what stands where
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        market_rows: NDArray[np.float32],
        layout: ObservationLayout,
    ):
        if optimize_memory_usage:
            raise ConfigError("optimize_memory_usage: this buffer stores no observation twice")
        # SB3's own arrays are allocated for one slot; ours hold the transitions.
        super().__init__(n_envs, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.handle_timeout_termination = handle_timeout_termination
        self.market_rows = th.from_numpy(market_rows)
        self.split = layout.market_size
        shape = (self.buffer_size, n_envs)
        self.row = np.zeros(shape, dtype=np.int64)
        self.before = np.zeros((*shape, layout.portfolio_size), dtype=np.float32)
        self.after = np.zeros_like(self.before)
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.float32)
        self.rewards = np.zeros(shape, dtype=np.float32)
        self.dones = np.zeros(shape, dtype=np.float32)
        self.timeouts = np.zeros(shape, dtype=np.float32)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all portfolios; `infos` say which row it led to."""
        at = self.pos
        self.row[at] = [info["row"] - 1 for info in infos]
        self.before[at] = obs[:, self.split :]
        self.after[at] = next_obs[:, self.split :]
        self.actions[at] = action
        self.rewards[at] = reward
        self.dones[at] = done
        if self.handle_timeout_termination:
            self.timeouts[at] = [info.get("TimeLimit.truncated", False) for info in infos]
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def _get_samples(
        self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        if env is not None:
            raise ConfigError("VecNormalize: observations are scaled by the market's own scaler")
        which = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        row = th.from_numpy(self.row[batch_inds, which])
        before = th.from_numpy(self.before[batch_inds, which])
        after = th.from_numpy(self.after[batch_inds, which])
        dones = self.dones[batch_inds, which] * (1.0 - self.timeouts[batch_inds, which])
        parts = (
            th.cat([self.market_rows[row], before], dim=1),
            th.from_numpy(self.actions[batch_inds, which]),
            th.cat([self.market_rows[row + 1], after], dim=1),
            th.from_numpy(dones.reshape(-1, 1)),
            th.from_numpy(self.rewards[batch_inds, which].reshape(-1, 1)),
        )
        return ReplayBufferSamples(*(part.to(self.device) for part in parts))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Filled part of the arrays, and where the next transition goes."""
        size = self.size()
        arrays = {name: getattr(self, name)[:size] for name in ARRAYS}
        return arrays, {"pos": self.pos, "full": self.full}

    def restore(self, arrays: dict[str, NDArray[Any]], position: dict[str, Any]) -> None:
        """Take what `state` gave."""
        for name in ARRAYS:
            getattr(self, name)[: len(arrays[name])] = arrays[name]
        self.pos, self.full = int(position["pos"]), bool(position["full"])
