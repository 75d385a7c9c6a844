"""d3rlpy's own dataset files: both versions read, the present one written.

Version 2.1 has arrays for each episode (`observations_0`, `actions_0`, ...), version 1 flat ones
with flags for terminals and ends of episodes. Neither has what an episode that time ended came to,
nor bounds of actions. As d3rlpy does, the last step of such an episode is left out, and so are
steps of version 1 after the last flag. What we write has that last observation beside d3rlpy's
own: d3rlpy passes over it, and we read it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.files import whole_file
from finflow_sb3.offline.plain import PlainDataset, PlainEpisode, joined, numbers, reading
from finflow_sb3.offline.spaces import ActionRange, spaces_of
from finflow_sb3.quiet import import_d3rlpy

if TYPE_CHECKING:
    from d3rlpy.dataset import Episode

__all__ = ["is_d3rlpy_file", "read_d3rlpy", "write_d3rlpy"]

VERSION = "2.1"
FLAT = {"observations", "actions", "rewards", "terminals"}
BY_EPISODE = {"columns", "num_episodes", "version"}


# ------------------------------------------------------------------ reading


def is_d3rlpy_file(path: Path) -> bool:
    """Whether an HDF5 file is one of d3rlpy's."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return set(file) >= FLAT or set(file) >= BY_EPISODE
    except OSError:
        return False


def read_d3rlpy(path: Path, action_range: ActionRange | None = None) -> PlainDataset:
    """Read a dataset that d3rlpy wrote, of either version. Nothing in it is executed.

    Parameters
    ----------
    action_range : bounds of the actions, which the file does not have. Without them actions have
        to lie in [-1, 1], the range of d3rlpy's policies

    Raises
    ------
    ArtefactError
        If it is not whole, its actions are discrete, its observations are tuples or images, or
        actions lie outside of [-1, 1] and no range is given.
    """
    import h5py

    source = str(path)
    with reading(source), h5py.File(path, "r") as file:
        by_episode = "num_episodes" in file
        actions = _all_actions(file) if by_episode else [_array(file, "actions")]
        largest = max(float(np.abs(each[()]).max(initial=0.0)) for each in actions)
        first = _array(file, "observations_0" if by_episode else "observations")
        spaces = spaces_of(source, first, actions[0], largest, action_range)
        if by_episode:
            return joined(source, spaces, _by_episode(file))
        terminals, ends = _flags(file)
        dataset = joined(source, spaces, _from_flags(file, terminals, ends))
        after_the_last = len(ends) - 1 - int(np.flatnonzero(ends)[-1])
        return replace(dataset, left_out=dataset.left_out + after_the_last)


def _array(file: Any, name: str) -> Any:
    """An array of numbers in an open file, not yet read."""
    if name not in file:
        if f"{name}_0" in file:
            raise ValueError(f"{name} is a tuple; only single arrays are read")
        raise KeyError(name)
    import h5py

    array = numbers(file[name], name)
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or array.external:
        raise ValueError(f"{name} does not lie in the file")
    if array.size and array.chunks and not array.id.get_storage_size():
        raise ValueError(f"{name} of shape {array.shape} was never written")
    return array


def _all_actions(file: Any) -> list[Any]:
    version = file["version"].asstr()[()]
    if version != VERSION:
        raise ValueError(f"is of version {version}, which d3rlpy does not read any more")
    count, most = int(file["num_episodes"][()]), len(file)
    if not 0 < count <= most:
        raise ValueError(f"num_episodes is {count}")
    return [_array(file, f"actions_{i}") for i in range(count)]


def _by_episode(file: Any) -> Iterator[PlainEpisode]:
    for i in range(int(file["num_episodes"][()])):
        observations, actions, rewards = (
            _array(file, f"{name}_{i}")[()] for name in ("observations", "actions", "rewards")
        )
        terminal = bool(_array(file, f"terminated_{i}")[()])
        yield PlainEpisode(observations, actions, rewards, terminal)


def _flags(file: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which steps are terminals, and which are the last of an episode; both [N]."""
    terminals = np.ravel(_array(file, "terminals")[()]).astype(bool)
    ends = terminals
    if "episode_terminals" in file:
        ends = ends | np.ravel(_array(file, "episode_terminals")[()]).astype(bool)
    lengths = {len(_array(file, name)) for name in FLAT} | {len(ends)}
    if len(lengths) > 1:
        raise ValueError(f"its arrays have {sorted(lengths)} rows")
    if not ends.any():
        raise ValueError("no episode ends in it")
    return terminals, ends


def _from_flags(
    file: Any, terminals: NDArray[np.bool_], ends: NDArray[np.bool_]
) -> Iterator[PlainEpisode]:
    observations, actions, rewards = (
        _array(file, name) for name in ("observations", "actions", "rewards")
    )
    start = 0
    for end in (np.flatnonzero(ends) + 1).tolist():
        cut = slice(start, end)
        yield PlainEpisode(observations[cut], actions[cut], rewards[cut], bool(terminals[end - 1]))
        start = end


# ------------------------------------------------------------------ writing


def write_d3rlpy(episodes: Iterable[PlainEpisode], count: int, path: Path) -> None:
    """Write episodes through d3rlpy, one in memory at a time; whole or not at all.

    Parameters
    ----------
    count : of the episodes

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    import_d3rlpy()
    from d3rlpy.dataset.io import dump

    with whole_file(path) as new, new.open("w+b") as file:
        dump(_OneByOne(episodes, count), file)


class _OneByOne(Sequence["Episode"]):
    """Episodes as d3rlpy's writer takes them: their number, the first one, and all in a row."""

    def __init__(self, episodes: Iterable[PlainEpisode], count: int):
        self.remaining, self.length = iter(episodes), count
        self.first = _episode(next(self.remaining))

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Episode]: ...
    def __getitem__(self, index: int | slice) -> Episode | Sequence[Episode]:
        if index != 0:
            raise IndexError(index)
        return self.first

    def __iter__(self) -> Iterator[Episode]:
        yield self.first
        yield from map(_episode, self.remaining)


def _episode(episode: PlainEpisode) -> Episode:
    from d3rlpy.dataset import Episode

    rewards: NDArray[np.float32] = episode.rewards[:, None]
    return Episode(episode.observations, episode.actions, rewards, episode.terminal)
