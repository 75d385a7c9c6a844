"""Offline transitions: market rows once, and for each transition what is its own.

A transition is (row, portfolio block, action, reward, end); observations are put together
when a batch is read. Episodes that end by time are timeouts, not terminals.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.envs.observations import Scaler
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import write_whole
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.offline.transitions import TransitionBatch

__all__ = ["OfflineDataset", "read_dataset", "write_dataset", "write_npz"]

FORMAT = "finflow-dataset-1"


@dataclass(frozen=True)
class OfflineDataset:
    """N transitions in E episodes.

    Attributes
    ----------
    market_rows : float32 [T, layout.market_size], shared by all transitions
    states : float32 [N + E, layout.portfolio_size], portfolio blocks; an episode of L
        transitions has L + 1 of them, the last being what it ended in
    row : int32 [N], market row of each transition's observation; its successor's is one more
    action : float32 [N, A], as executed (noise and clipping included)
    reward : float32 [N]
    distance : float32 [N], half the sum of |target of the action − target of the rule|
    episode : int32 [N], which episode; episodes stand in order
    terminal, timeout : bool [E], how each episode ended
    behaviour : int32 [E], index into `behaviours`
    settings : what it was collected with
    """

    layout: ObservationLayout
    scaler: Scaler
    market_rows: NDArray[np.float32]
    states: NDArray[np.float32]
    row: NDArray[np.int32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    distance: NDArray[np.float32]
    episode: NDArray[np.int32]
    terminal: NDArray[np.bool_]
    timeout: NDArray[np.bool_]
    behaviour: NDArray[np.int32]
    behaviours: tuple[str, ...]
    settings: dict[str, Any]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def n_episodes(self) -> int:
        return len(self.behaviour)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        index = np.arange(len(self)) + self.episode
        last = np.append(np.diff(self.episode) != 0, True)
        return {
            "rows": torch.from_numpy(self.market_rows),
            "states": torch.from_numpy(self.states),
            "row": torch.from_numpy(self.row.astype(np.int64)),
            "state": torch.from_numpy(index),
            "action": torch.from_numpy(self.action),
            "reward": torch.from_numpy(self.reward)[:, None],
            "terminal": torch.from_numpy((last & self.terminal[self.episode]).astype(np.float32))[
                :, None
            ],
        }

    def gather(self, index: torch.Tensor) -> TransitionBatch:
        """The transitions at `index` [B], as one gather over arrays."""
        t, count, split = self._tensors, len(index), self.layout.market_size
        row, state = (t[name].index_select(0, index) for name in ("row", "state"))
        # Gathered into their places: joining blocks would copy every observation once more.
        out = torch.empty((2 * count, self.layout.size), dtype=torch.float32)
        torch.index_select(t["rows"], 0, torch.cat([row, row + 1]), out=out[:, :split])
        torch.index_select(t["states"], 0, torch.cat([state, state + 1]), out=out[:, split:])
        return TransitionBatch(
            out[:count],
            t["action"].index_select(0, index),
            t["reward"].index_select(0, index),
            out[count:],
            t["terminal"].index_select(0, index),
        )

    def returns_by_behaviour(self) -> dict[str, tuple[int, float, float]]:
        """Behaviour → (episodes, mean reward a step, mean distance)."""
        out = {}
        for i, name in enumerate(self.behaviours):
            chosen = self.behaviour[self.episode] == i
            if chosen.any():
                count = int(np.sum(self.behaviour == i))
                mean = float(self.reward[chosen].mean())
                out[name] = (count, mean, float(self.distance[chosen].mean()))
        return out


ARRAYS = (
    "market_rows",
    "states",
    "row",
    "action",
    "reward",
    "distance",
    "episode",
    "terminal",
    "timeout",
    "behaviour",
)


def write_dataset(dataset: OfflineDataset, path: Path) -> None:
    """Write a dataset as HDF5, whole or not at all."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name in ARRAYS:
            file.create_dataset(name, data=getattr(dataset, name))
        file.attrs["format"] = FORMAT
        file.attrs["layout"] = json.dumps(dataset.layout.as_dict())
        file.attrs["scaler"] = json.dumps(dataset.scaler.as_dict())
        file.attrs["behaviours"] = json.dumps(dataset.behaviours)
        file.attrs["settings"] = json.dumps(dataset.settings)
        file.attrs["checksum"] = _checksum(dataset)
    write_whole(path, buffer.getvalue())


def _checksum(dataset: OfflineDataset) -> str:
    return content_key(*(getattr(dataset, name) for name in ARRAYS))


def read_dataset(path: Path) -> OfflineDataset:
    """Read what `write_dataset` wrote. Nothing in the file is executed.

    Raises
    ------
    ArtefactError
        If the file is missing, of another kind, or not whole; the message names the part.
    """
    import h5py

    if not path.exists():
        raise ArtefactError(f"{path}: no such dataset; write one with finflow collect")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise ArtefactError(f"{path}: no finflow dataset; write one with finflow collect")
            arrays: dict[str, Any] = {name: np.asarray(file[name]) for name in ARRAYS}
            words = {
                name: json.loads(file.attrs[name])
                for name in ("layout", "scaler", "behaviours", "settings")
            }
            checksum = str(file.attrs["checksum"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}); collect it again") from None
    dataset = OfflineDataset(
        layout=ObservationLayout.from_dict(words["layout"]),
        scaler=Scaler.from_dict(words["scaler"]),
        behaviours=tuple(words["behaviours"]),
        settings=words["settings"],
        **arrays,
    )
    _check(dataset, path)
    if _checksum(dataset) != checksum:
        raise ArtefactError(f"{path}: its arrays do not match its checksum; collect it again")
    return dataset


def _check(dataset: OfflineDataset, path: Path) -> None:
    def refuse(what: str) -> ArtefactError:
        return ArtefactError(f"{path}: {what}; collect it again")

    n, e = len(dataset), dataset.n_episodes
    layout = dataset.layout
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        "market_rows": ((len(dataset.market_rows), layout.market_size), "float32"),
        "states": ((n + e, layout.portfolio_size), "float32"),
        "row": ((n,), "int32"),
        "action": ((n, layout.action_size), "float32"),
        "reward": ((n,), "float32"),
        "distance": ((n,), "float32"),
        "episode": ((n,), "int32"),
        "terminal": ((e,), "bool"),
        "timeout": ((e,), "bool"),
        "behaviour": ((e,), "int32"),
    }
    for name, (shape, kind) in expected.items():
        found = getattr(dataset, name)
        if found.shape != shape:
            raise refuse(f"{name} has shape {found.shape}, expected {shape}")
        if found.dtype != kind:
            raise refuse(f"{name} is {found.dtype}, expected {kind}")
        if kind == "float32" and not np.isfinite(found).all():
            raise refuse(f"{name} holds NaN or infinite numbers")
    if n and (dataset.row.min() < 0 or dataset.row.max() + 1 >= len(dataset.market_rows)):
        raise refuse("row points outside market_rows")
    if n and np.abs(dataset.action).max() > 1.0:
        raise refuse("action lies outside [-1, 1]")
    steps = np.diff(dataset.episode, prepend=-1, append=e)
    if np.any((steps != 0) & (steps != 1)) or np.any(steps[[0, -1]] != 1):
        raise refuse(f"episode does not count from 0 to {e - 1}")
    if e and not 0 <= dataset.behaviour.min() <= dataset.behaviour.max() < len(dataset.behaviours):
        raise refuse("behaviour points outside behaviours")


def write_npz(dataset: OfflineDataset, path: Path) -> None:
    """Export as `.npz`: what d3rlpy and others read, all of the same length.

    observations, actions, rewards, next_observations, terminals, timeouts (true on the last
    transition of an episode that time ended), behaviours (names).
    """
    everything = dataset.gather(torch.arange(len(dataset)))
    last = np.append(np.diff(dataset.episode) != 0, True)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        observations=everything.observations.numpy(),
        actions=dataset.action,
        rewards=dataset.reward,
        next_observations=everything.next_observations.numpy(),
        terminals=everything.terminals.numpy()[:, 0].astype(bool),
        timeouts=last & dataset.timeout[dataset.episode],
        behaviours=np.array(dataset.behaviours)[dataset.behaviour[dataset.episode]],
    )
    write_whole(path, buffer.getvalue())
