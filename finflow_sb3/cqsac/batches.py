"""Where a training batch comes from: the replay buffer, and the offline data beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from finflow_sb3.cqsac.prefetch import prefetched
from finflow_sb3.cqsac.replay_storage import moved
from finflow_sb3.errors import ConfigError
from finflow_sb3.offline.transitions import TransitionBatch

__all__ = ["Batches", "OfflineData"]


class OfflineData(Protocol):
    """Transitions to mix in: anything with a length and a gather by index."""

    def __len__(self) -> int: ...

    def gather(self, index: th.Tensor) -> TransitionBatch: ...


class Index(NamedTuple):
    """Which transitions make a batch; `online` is the buffer's own kind of index."""

    online: Any
    offline: th.Tensor | None


@dataclass(frozen=True)
class Batches:
    """Draws batches of `size` transitions, `offline_fraction` of them from the offline data.

    Attributes
    ----------
    buffer : SB3's or ours; only ours can be drawn from ahead of time
    offline : None without offline data
    gamma : discount of the offline transitions, which are single steps
    env : what normalises the buffer's observations and rewards, if anything does
    """

    buffer: ReplayBuffer
    size: int
    gamma: float
    device: th.device
    env: VecNormalize | None = None
    offline: OfflineData | None = None
    offline_fraction: float = 0.0

    def stream(self, count: int, prefetch: bool = False) -> Iterator[ReplayBufferSamples]:
        """`count` batches; with `prefetch` each is gathered while the one before is used.

        Raises
        ------
        ConfigError
            If the buffer can't be drawn from ahead of time.
        """
        if prefetch and not hasattr(self.buffer, "draw"):
            raise ConfigError(
                f"prefetch: {type(self.buffer).__name__} draws and gathers in one; set it to false"
            )
        return prefetched(self.draw, self.gather, count, prefetch)

    def draw(self) -> Index:
        """Which transitions the next batch has."""
        offline = None
        if self.n_offline and self.offline is not None:
            drawn = np.random.randint(0, len(self.offline), size=self.n_offline)
            offline = th.from_numpy(drawn)
        draw = getattr(self.buffer, "draw", None)
        n_online = self.size - self.n_offline
        return Index(draw(n_online) if draw is not None and n_online else None, offline)

    def gather(self, index: Index) -> Any:
        """The batch of these transitions, online ones first."""
        online: ReplayBufferSamples | DictReplayBufferSamples | None = None
        if index.online is not None:
            buffer: Any = self.buffer
            online = buffer.gather(index.online, env=self.env)
        elif self.n_offline < self.size:
            online = self.buffer.sample(self.size - self.n_offline, env=self.env)
        if index.offline is None or self.offline is None:
            assert online is not None
            return online
        if isinstance(online, DictReplayBufferSamples):
            raise ConfigError("offline_fraction: Dict observations can't be mixed; set it to 0")
        return joined(online, self.offline.gather(index.offline), self.gamma, self.device)

    @property
    def n_offline(self) -> int:
        return 0 if self.offline is None else round(self.offline_fraction * self.size)


def joined(
    online: ReplayBufferSamples | None,
    offline: TransitionBatch,
    gamma: float,
    device: th.device,
) -> ReplayBufferSamples:
    """Online and offline transitions as one batch; the offline ones are single steps."""
    parts = (
        offline.observations,
        offline.actions,
        offline.next_observations,
        offline.terminals,
        offline.rewards,
    )
    theirs = tuple(moved(part, device) for part in parts)
    if online is None:
        return ReplayBufferSamples(*theirs)
    observations, actions, after, dones, rewards = (
        th.cat([mine, other]) for mine, other in zip(online[:5], theirs, strict=True)
    )
    discounts = online.discounts
    if discounts is not None:
        discounts = th.cat([discounts, th.full_like(offline.rewards, gamma, device=device)])
    return ReplayBufferSamples(observations, actions, after, dones, rewards, discounts)
