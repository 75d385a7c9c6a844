"""Datasets as `.npz`: arrays of one length, a row for each transition.

observations, actions, rewards, next_observations, terminals, timeouts (true on the last
transition of an episode that time ended). What we write has behaviours (names) besides.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.files import whole_file
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.plain import PlainDataset, PlainEpisode, joined, numbers, reading
from finflow_sb3.offline.spaces import ActionRange, spaces_of
from finflow_sb3.offline.transitions import TransitionBatch

__all__ = ["read_npz", "write_npz"]

NAMES = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def read_npz(path: Path, action_range: ActionRange | None = None) -> PlainDataset:
    """Read a dataset of the form that `write_npz` writes. Nothing in it is executed.

    Parameters
    ----------
    action_range : bounds of the actions, which the file does not have; see `spaces_of`

    Raises
    ------
    ArtefactError
        If it is not whole, holds pickles or strings where numbers belong, or transitions do not
        follow each other.
    """
    source = str(path)
    with reading(source), zipfile_of(path) as file:
        arrays = {name: numbers(file[name], name) for name in NAMES}
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) > 1:
            raise ValueError(f"its arrays have {sorted(lengths)} rows")
        actions = arrays["actions"]
        largest = float(np.abs(actions).max(initial=0.0))
        spaces = spaces_of(source, arrays["observations"], actions, largest, action_range)
        return joined(source, spaces, _episodes(arrays))


def zipfile_of(path: Path) -> Any:
    """NumPy's view of the arrays in a file, which it reads when they are asked for."""
    return np.load(path, allow_pickle=False)


def _episodes(arrays: dict[str, NDArray[Any]]) -> Iterator[PlainEpisode]:
    terminals, timeouts = (
        np.ravel(arrays[name]).astype(bool) for name in ("terminals", "timeouts")
    )
    ends = terminals | timeouts
    ends[-1:] = True  # with its next observation even a row without a flag is a transition
    start = 0
    for end in (np.flatnonzero(ends) + 1).tolist():
        cut = slice(start, end)
        seen, after = arrays["observations"][cut], arrays["next_observations"][cut]
        if not np.array_equal(seen[1:], after[:-1]):
            raise ValueError(f"rows {start} to {end - 1} are not one episode in its order")
        observations = np.concatenate([seen, after[-1:]])
        terminal = bool(terminals[end - 1])
        yield PlainEpisode(observations, arrays["actions"][cut], arrays["rewards"][cut], terminal)
        start = end


# ------------------------------------------------------------------ writing


class Column(NamedTuple):
    """An array to write: its form, and what gives the part of one episode."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Callable[[slice], NDArray[Any]]


def write_npz(dataset: OfflineDataset, path: Path) -> None:
    """Export as `.npz`, one episode in memory at a time; whole or not at all.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    bounds = [*dataset.starts.tolist(), len(dataset)]
    cuts = [slice(start, stop) for start, stop in pairwise(bounds)]
    with whole_file(path) as new, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column in _columns(dataset).items():
            head = {
                "descr": np.lib.format.dtype_to_descr(column.dtype),
                "fortran_order": False,
                "shape": column.shape,
            }
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, head)
                for cut in cuts:
                    member.write(np.ascontiguousarray(column.part(cut), column.dtype).data)


def _columns(dataset: OfflineDataset) -> dict[str, Column]:
    n, layout = len(dataset), dataset.layout
    single, flag = np.dtype(np.float32), np.dtype(bool)
    names = np.array(dataset.behaviours)

    def gathered(cut: slice) -> TransitionBatch:
        return dataset.gather(torch.arange(cut.start, cut.stop))

    def ended(how: NDArray[np.bool_]) -> Callable[[slice], NDArray[Any]]:
        def part(cut: slice) -> NDArray[Any]:
            out = np.zeros(cut.stop - cut.start, dtype=bool)
            out[-1] = how[dataset.episode[cut.start]]
            return out

        return part

    def behaviour(cut: slice) -> NDArray[Any]:
        return names[dataset.behaviour[dataset.episode[cut]]]

    seen = (n, layout.size)
    return {
        "observations": Column(seen, single, lambda cut: gathered(cut).observations.numpy()),
        "actions": Column((n, layout.action_size), single, lambda cut: dataset.action[cut]),
        "rewards": Column((n,), single, lambda cut: dataset.reward[cut]),
        "next_observations": Column(
            seen, single, lambda cut: gathered(cut).next_observations.numpy()
        ),
        "terminals": Column((n,), flag, ended(dataset.terminal)),
        "timeouts": Column((n,), flag, ended(dataset.timeout)),
        "behaviours": Column((n,), names.dtype, behaviour),
    }
