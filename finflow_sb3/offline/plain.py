"""Transitions of any environment with Box spaces: datasets of others, without a market.

Whatever the format, an episode is read as observations, actions, rewards and whether it was
terminated. An episode that was not is one that time ended, and its last transition needs what it
ended in: where a format has no such observation, that transition is left out.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.errors import ArtefactError, FinflowError
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.offline.transitions import TransitionBatch

__all__ = ["PlainDataset", "PlainEpisode", "joined", "numbers", "reading"]

# On the bounds of the box a squashed Gaussian has to put its mean at infinity, and a few such
# actions drag a whole policy along: batches have them this far out.
LARGEST_ACTION = 0.999


@dataclass(frozen=True)
class PlainDataset:
    """N transitions in E episodes; `offline.transitions.Transitions`.

    Attributes
    ----------
    source : where it was read, for messages
    spaces : of the environment that it comes from
    observations : float32 [S, D], those of an episode in order
    before, after : int64 [N], which observation a transition starts and ends in
    action : float32 [N, A], scaled to [-1, 1] as Stable-Baselines3 scales actions
    reward : float32 [N]
    episode : int32 [N], which episode; episodes stand in order
    terminal, timeout : bool [E], how each episode ended
    left_out : steps of the source that are no transitions, as what followed them is not in it
    clipped : transitions whose action lay outside of the action space and was moved to its edge,
        as environments do
    """

    source: str
    spaces: Spaces
    observations: NDArray[np.float32]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    episode: NDArray[np.int32]
    terminal: NDArray[np.bool_]
    timeout: NDArray[np.bool_]
    left_out: int = 0
    clipped: int = 0

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def n_episodes(self) -> int:
        return len(self.terminal)

    @cached_property
    def ends(self) -> NDArray[np.bool_]:
        """Whether a transition is the last of its episode, shape [N]."""
        return np.append(np.diff(self.episode) != 0, True)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        terminals = (self.ends & self.terminal[self.episode]).astype(np.float32)
        return {
            "observations": torch.from_numpy(self.observations),
            "before": torch.from_numpy(self.before),
            "after": torch.from_numpy(self.after),
            "action": torch.from_numpy(self.action.clip(-LARGEST_ACTION, LARGEST_ACTION)),
            "reward": torch.from_numpy(self.reward)[:, None],
            "terminal": torch.from_numpy(terminals)[:, None],
        }

    def gather(self, index: torch.Tensor) -> TransitionBatch:
        """The transitions at `index` [B], as one gather over arrays.

        Actions are held within ±0.999: a squashed Gaussian reaches no bound.
        """
        t, count = self._tensors, len(index)
        rows = torch.cat([t[name].index_select(0, index) for name in ("before", "after")])
        both = t["observations"].index_select(0, rows)
        action, reward, terminal = (
            t[name].index_select(0, index) for name in ("action", "reward", "terminal")
        )
        return TransitionBatch(both[:count], action, reward, both[count:], terminal)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Index of every episode's first transition."""
        return first_of_each(self.episode)

    def in_episodes(self, episodes: NDArray[np.bool_]) -> Part:
        """The transitions of the episodes that are true in `episodes` [E]."""
        return Part(self, torch.from_numpy(np.flatnonzero(episodes[self.episode])))


@dataclass(frozen=True)
class Part:
    """Some transitions of a dataset: `index` [M] says which."""

    whole: PlainDataset
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Index of every episode's first transition, among those of this part."""
        return first_of_each(self.whole.episode[self.index.numpy()])

    def gather(self, index: torch.Tensor) -> TransitionBatch:
        return self.whole.gather(self.index.index_select(0, index))


def first_of_each(episode: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each episode begins; `episode` [N] has them in order."""
    return np.flatnonzero(np.diff(episode, prepend=-1))


class PlainEpisode(NamedTuple):
    """L steps as a source has them.

    observations [L + 1, ...], or [L, ...] without what the last step ended in; actions [L, ...],
    not yet scaled; rewards [L].
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[Any]
    terminal: bool


def joined(source: str, spaces: Spaces, episodes: Iterable[PlainEpisode]) -> PlainDataset:
    """A dataset of these episodes; those without a transition are passed over.

    A terminated episode without its last observation gets zeros there, as in d3rlpy: nothing is
    bootstrapped from it.

    Raises
    ------
    ArtefactError
        If shapes disagree, a number is not finite, or no transition is left.
    """
    seen, done, paid, before, after, terminal = [], [], [], [], [], []
    start = left_out = 0
    for number, each in enumerate(episodes):
        observations = _rows(each.observations, spaces.size, "observations", number)
        actions = _rows(each.actions, spaces.action_size, "actions", number)
        rewards = _rows(each.rewards, 1, "rewards", number)[:, 0]
        steps, length = len(actions), len(observations)
        if len(rewards) != steps or length - steps not in (0, 1):
            raise ArtefactError(
                f"{source}: episode {number} has {length} observations, {steps} actions and "
                f"{len(rewards)} rewards; each step needs one of each"
            )
        count = steps if each.terminal else length - 1
        left_out += steps - max(count, 0)
        if count < 1:
            continue
        rows = np.arange(start, start + count)
        seen.append(observations)
        before.append(rows)
        after.append(np.where(rows + 1 < start + length, rows + 1, -1))
        done.append(actions[:count])
        paid.append(rewards[:count])
        terminal.append(each.terminal)
        start += length
    if not done:
        raise ArtefactError(f"{source}: holds no transition; give a dataset with some")
    following = np.concatenate(after)
    if (following < 0).any():
        following[following < 0] = start
        seen.append(np.zeros((1, spaces.size), dtype=np.float32))
    scaled, clipped = spaces.scaled(np.concatenate(done))
    ended = np.array(terminal)
    lengths = [len(rows) for rows in before]
    return PlainDataset(
        source=source,
        spaces=spaces,
        observations=np.concatenate(seen),
        before=np.concatenate(before),
        after=following,
        action=scaled,
        reward=np.concatenate(paid),
        episode=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        terminal=ended,
        timeout=~ended,
        left_out=left_out,
        clipped=clipped,
    )


def numbers(array: Any, name: str) -> Any:
    """`array`, of NumPy or of a file, unless it holds something else than numbers.

    Raises
    ------
    ValueError
        If it holds strings or objects.
    """
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {array.dtype} instead of numbers")
    return array


def _rows(array: NDArray[Any], size: int, name: str, number: int) -> NDArray[np.float32]:
    """[L, size] from [L, ...]."""
    flat = np.asarray(numbers(array, name), dtype=np.float32)
    flat = flat.reshape(len(flat), -1) if flat.size else flat.reshape(0, size)
    if flat.shape[1] != size:
        raise ValueError(f"{name} of episode {number} have {flat.shape[1]} numbers, not {size}")
    if not np.isfinite(flat).all():
        raise ValueError(f"{name} of episode {number} hold NaN or infinite numbers")
    return flat


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Turn whatever a damaged or foreign file leads to into one line that names it.

    Raises
    ------
    ArtefactError
        If something in it is not as its format says.
    """
    try:
        yield
    except ArtefactError as error:
        if source in str(error):
            raise
        raise ArtefactError(f"{source}: {error}") from error
    except FinflowError:
        raise
    except KeyError as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise ArtefactError(f"{source}: lacks {reason!r}; give a whole dataset") from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtefactError(f"{source}: cannot be read ({reason}); give a whole dataset") from error
