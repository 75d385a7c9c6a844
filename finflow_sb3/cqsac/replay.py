"""Replay buffers: SB3's with their transitions in tensors, and one for portfolios.

A batch is drawn in two halves. `draw` takes the random numbers, in SB3's order, and says which
transitions; `gather` collects them and draws nothing, so that it may run ahead in a thread.
`sample` is both: with the same seed it gives what SB3's own buffers give, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from finflow_sb3.cqsac.replay_returns import NStepReturns, n_step_returns
from finflow_sb3.cqsac.replay_storage import Drawn, Tables, moved, placed, tensor_of
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.layout import ObservationLayout

__all__ = [
    "PortfolioReplayBuffer",
    "TensorDictReplayBuffer",
    "TensorNStepReplayBuffer",
    "TensorReplayBuffer",
    "replay_class",
]

SCALARS = ("rewards", "dones", "timeouts")
ARRAYS = ("row", "before", "after", "actions", *SCALARS)
# Bytes that are copied at a time where a buffer is filled from a file.
PIECE = 1 << 25


def replay_class(observation_space: spaces.Space[Any], n_steps: int) -> type[ReplayBuffer]:
    """Ours, where SB3 would take its own buffer for these observations and returns."""
    if isinstance(observation_space, spaces.Dict):
        return TensorDictReplayBuffer
    return TensorNStepReplayBuffer if n_steps > 1 else TensorReplayBuffer


class TensorReplayBuffer(ReplayBuffer):
    """SB3's replay buffer, with batches gathered from tensors.

    Arguments and attributes are SB3's. `observations` and the others are NumPy arrays that share
    their memory with the tensors; on a GPU they are `DeviceArray`s, which look alike.

    Parameters
    ----------
    storage_device : where transitions lie; on `device`, the training device, if not given
    """

    # What lies on the storage device, as far as a buffer has it.
    stored: tuple[str, ...] = ("observations", "next_observations", "actions", *SCALARS)

    def __init__(self, *args: Any, storage_device: th.device | str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._place(self.device if storage_device is None else storage_device)

    def _place(self, device: th.device | str) -> None:
        self.storage_device = get_device(device)
        self._tables = Tables()
        for name in self.stored:
            if name in self.__dict__:
                setattr(self, name, placed(getattr(self, name), self.storage_device))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tables"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._place(self.storage_device)

    # ---------------------------------------------------------------- batches

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        return self.gather(self.draw(batch_size), env)

    def draw(self, batch_size: int) -> Drawn:
        """Which transitions the next batch has, from NumPy's global generator."""
        if self.optimize_memory_usage and self.full:
            # The successor of the newest observation has overwritten the oldest one.
            slots = np.random.randint(1, self.buffer_size, size=batch_size) + self.pos
            return self._in_any_env(slots % self.buffer_size)
        return self._in_any_env(np.random.randint(0, self.size(), size=batch_size))

    def gather(self, drawn: Drawn, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """These transitions; draws no random numbers.

        Parameters
        ----------
        env : normalises observations and rewards
        """
        here = self._rows(drawn)
        there, after = here, "next_observations"
        if self.optimize_memory_usage:
            after = "observations"
            there = self._rows(Drawn((drawn.slots + 1) % self.buffer_size, drawn.envs))
        rewards = self._rewarded(self._pick("rewards", here).view(-1, 1), env)
        return self._samples(here, there, after, self._ends(here), rewards, None, env)

    def _get_samples(
        self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        return self.gather(self._in_any_env(batch_inds), env)

    def _in_any_env(self, slots: NDArray[np.int64]) -> Drawn:
        return Drawn(slots, np.random.randint(0, self.n_envs, size=len(slots)))

    # ---------------------------------------------------------------- parts of a batch

    def _samples(
        self,
        here: th.Tensor,
        there: th.Tensor,
        after: str,
        dones: th.Tensor,
        rewards: th.Tensor,
        discounts: th.Tensor | None,
        env: VecNormalize | None,
    ) -> ReplayBufferSamples:
        return ReplayBufferSamples(
            self._observed("observations", here, env),
            moved(self._pick("actions", here), self.device),
            self._observed(after, there, env),
            moved(dones, self.device),
            moved(rewards, self.device),
            None if discounts is None else moved(discounts, self.device),
        )

    def _rows(self, drawn: Drawn) -> th.Tensor:
        """Rows of the tables, on the storage device."""
        rows = th.from_numpy(drawn.slots * self.n_envs + drawn.envs)
        return moved(rows, self.storage_device)

    def _pick(self, name: str, rows: th.Tensor) -> th.Tensor:
        return self._tables.of(name, getattr(self, name)).index_select(0, rows)

    def _ends(self, rows: th.Tensor) -> th.Tensor:
        """dones·(1 − timeouts), [B, 1]: ends that time alone has brought are none."""
        dones = self._pick("dones", rows)
        return dones.addcmul_(dones, self._pick("timeouts", rows), value=-1.0).view(-1, 1)

    def _observed(self, name: str, rows: th.Tensor, env: VecNormalize | None) -> Any:
        picked = self._pick(name, rows)
        if env is not None:
            picked = th.from_numpy(self._normalize_obs(picked.cpu().numpy(), env))
        return moved(picked, self.device)

    def _rewarded(self, rewards: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        if env is None:
            return rewards
        return th.from_numpy(self._normalize_reward(rewards.cpu().numpy(), env))


class TensorDictReplayBuffer(TensorReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """`TensorReplayBuffer` for Dict observations."""

    def _samples(self, *args: Any) -> Any:
        # `_observed` has made dictionaries of the observations.
        parts: Any = super()._samples(*args)
        return DictReplayBufferSamples(*parts)

    def _observed(self, name: str, rows: th.Tensor, env: VecNormalize | None) -> Any:
        picked = {
            key: self._tables.of(f"{name}/{key}", stored).index_select(0, rows)
            for key, stored in getattr(self, name).items()
        }
        if env is not None:
            arrays: Any = self._normalize_obs({k: v.cpu().numpy() for k, v in picked.items()}, env)
            picked = {key: th.from_numpy(array) for key, array in arrays.items()}
        return {key: moved(tensor, self.device) for key, tensor in picked.items()}


class TensorNStepReplayBuffer(TensorReplayBuffer, NStepReplayBuffer):
    """`TensorReplayBuffer` with n-step returns.

    Rewards and ends stay on the host, where returns are added up: nothing is waited for.
    """

    stored = ("observations", "next_observations", "actions")

    def gather(self, drawn: Drawn, env: VecNormalize | None = None) -> ReplayBufferSamples:
        returns = _returns_of(self, drawn, env)
        there = self._rows(Drawn(returns.last, drawn.envs))
        rewards, discounts, dones = (th.from_numpy(part) for part in returns[1:])
        here, after = self._rows(drawn), "next_observations"
        return self._samples(here, there, after, dones, rewards, discounts, env)


def _returns_of(
    buffer: TensorNStepReplayBuffer | PortfolioReplayBuffer,
    drawn: Drawn,
    env: VecNormalize | None,
) -> NStepReturns:
    return n_step_returns(
        buffer.rewards,
        buffer.dones,
        buffer.timeouts,
        drawn,
        buffer.pos - 1,
        buffer.n_steps,
        buffer.gamma,
        lambda rewards: buffer._normalize_reward(rewards, env),
    )


class Rows(Protocol):
    """What can be read in pieces: an array, or a tensor of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


class StoredTensors(Protocol):
    """Tensors by name whose rows are read in pieces."""

    def rows(self, name: str, /) -> Rows: ...


class PortfolioReplayBuffer(TensorReplayBuffer):
    """SB3's replay buffer with observations put together when a batch is drawn.

    A transition takes (2·portfolio_size + action_size + 5) numbers instead of two whole
    observations; at 20 assets that is a fifteenth.

    Parameters
    ----------
    market_rows : float32 [T, layout.market_size], as in `ObservedMarket.rows`
    layout : what stands where
    storage_device : as in `TensorReplayBuffer`
    n_steps, gamma : of the returns, as SB3's `NStepReplayBuffer` computes them
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
        storage_device: th.device | str | None = None,
        n_steps: int = 1,
        gamma: float = 0.99,
    ):
        if optimize_memory_usage:
            raise ConfigError("optimize_memory_usage: this buffer stores no observation twice")
        # SB3's own arrays are allocated for one slot; ours hold the transitions.
        super().__init__(n_envs, observation_space, action_space, device, n_envs, False, True)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps, self.gamma = n_steps, gamma
        self.split = layout.market_size
        self.stop = 0  # slots that were ever written
        self._allocate(layout)
        self.market_rows = market_rows
        on_device = ARRAYS if n_steps == 1 else ARRAYS[: -len(SCALARS)]
        self.stored = ("market_rows", *on_device)
        self._place(self.device if storage_device is None else storage_device)

    def _allocate(self, layout: ObservationLayout) -> None:
        # `np.zeros`, not `zeros_like`: memory is taken as transitions come.
        shape = (self.buffer_size, self.n_envs)
        self.row = np.zeros(shape, dtype=np.int64)
        self.before = np.zeros((*shape, layout.portfolio_size), dtype=np.float32)
        self.after = np.zeros((*shape, layout.portfolio_size), dtype=np.float32)
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.float32)
        for name in SCALARS:
            setattr(self, name, np.zeros(shape, dtype=np.float32))

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
        self.stop += 1
        self._take_place()

    def _take_place(self) -> None:
        """SB3's position in the ring, from the number of slots that were ever written."""
        self.pos, self.full = self.stop % self.buffer_size, self.stop >= self.buffer_size

    def reset(self) -> None:
        """Forget all transitions."""
        self.stop = 0
        self._take_place()

    def gather(self, drawn: Drawn, env: VecNormalize | None = None) -> ReplayBufferSamples:
        if env is not None:
            raise ConfigError("VecNormalize: observations are scaled by the market's own scaler")
        here = self._rows(drawn)
        if self.n_steps == 1:
            rewards = self._pick("rewards", here).view(-1, 1)
            return self._joined(here, here, (self._ends(here), rewards))
        returns = _returns_of(self, drawn, None)
        there = self._rows(Drawn(returns.last, drawn.envs))
        parts = (returns.dones, returns.rewards, returns.discounts)
        return self._joined(here, there, tuple(th.from_numpy(part) for part in parts))

    def _joined(
        self, here: th.Tensor, there: th.Tensor, scalars: tuple[th.Tensor, ...]
    ) -> ReplayBufferSamples:
        """Observations of the rows `here` and after the rows `there`, and what is given."""
        # Both blocks are gathered into their places in one array: joining them with `cat`
        # would copy every observation once more.
        count, split = len(here), self.split
        size = split + self.before.shape[2]
        out = th.empty((2 * count, size), dtype=th.float32, device=self.storage_device)
        days = th.cat([self._pick("row", here), self._pick("row", there) + 1])
        th.index_select(tensor_of(self.market_rows), 0, days, out=out[:, :split])
        for name, rows, part in (("before", here, out[:count]), ("after", there, out[count:])):
            table = self._tables.of(name, getattr(self, name))
            th.index_select(table, 0, rows, out=part[:, split:])
        actions = self._pick("actions", here)
        parts = (out[:count], actions, out[count:], *scalars)
        return ReplayBufferSamples(*(moved(part, self.device) for part in parts))

    # ---------------------------------------------------------------- checkpoints

    @property
    def first(self) -> int:
        """Number of the oldest slot that is kept."""
        return max(0, self.stop - self.buffer_size)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, dict[str, th.Tensor]]]:
        """Slots `start` to `stop`, in a piece for each turn of the ring.

        The tensors are the buffer's own memory: they change with the next transition.
        """
        while start < stop:
            at = start % self.buffer_size
            count = min(stop - start, self.buffer_size - at)
            rows = slice(at, at + count)
            yield start, start + count, {n: tensor_of(getattr(self, n))[rows] for n in ARRAYS}
            start += count

    def restore(self, pieces: Iterable[tuple[int, int, StoredTensors]], stop: int) -> None:
        """Take the slots that `pieces` gave, up to number `stop`, and no others.

        Raises
        ------
        ValueError
            If slots are missing, or do not fit this buffer's arrays.
        """
        self.stop = stop
        self._take_place()
        reached = self.first
        for start, end, tensors in pieces:
            if start > reached:
                break
            for name in ARRAYS:
                _fill(getattr(self, name), tensors.rows(name), start, max(start, self.first), name)
            reached = max(reached, end)
        if reached != stop:
            raise ValueError(f"slots {reached} to {stop} of the replay buffer are missing")


def _fill(ring: Any, source: Rows, start: int, first: int, name: str) -> None:
    """Copy the rows of `source`, slots from `start` on, to their places in the ring.

    In pieces, holding no second copy of them; those before slot `first` are left out.
    """
    if source.shape[1:] != ring.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(source.shape)}, not {tuple(ring.shape)}")
    size, stop = len(ring), start + source.shape[0]
    step = max(1, PIECE * size // max(ring.nbytes, 1))
    while first < stop:
        at = first % size
        count = min(step, stop - first, size - at)
        ring[at : at + count] = source[first - start : first - start + count]
        first += count
