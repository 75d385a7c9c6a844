"""Offline transitions: market rows once, and for each transition what is its own.

A transition is (row, portfolio block, action, reward, end); observations are put together
when a batch is read. Episodes that end by time are timeouts, not terminals.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.envs.observations import Scaler
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.offline.dataset_checks import Sizes
from finflow_sb3.offline.transitions import TransitionBatch

__all__ = ["PARTIAL", "Head", "OfflineDataset"]

# The entry of a dataset's settings that says that its assets were not all tradable all the time.
PARTIAL = "partial"


@dataclass(frozen=True)
class Head:
    """What a dataset says of itself beside its arrays; attributes are those of the dataset."""

    NAMES: ClassVar = ("layout", "scaler", "behaviours", "settings")

    layout: ObservationLayout
    scaler: Scaler
    behaviours: tuple[str, ...]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, str]:
        """By name, as JSON."""
        return {
            "layout": json.dumps(self.layout.as_dict()),
            "scaler": json.dumps(self.scaler.as_dict()),
            "behaviours": json.dumps(self.behaviours),
            "settings": json.dumps(self.settings),
        }

    @classmethod
    def from_json(cls, texts: dict[str, str]) -> Head:
        words = {name: json.loads(text) for name, text in texts.items()}
        names, settings = words["behaviours"], words["settings"]
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("behaviours are no names")
        if not isinstance(settings, dict):
            raise ValueError("settings are no mapping")
        return cls(
            ObservationLayout.from_dict(words["layout"]),
            Scaler.from_dict(words["scaler"]),
            tuple(words["behaviours"]),
            words["settings"],
        )


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
    distance : float32 [N], half the sum of |target of the action − target of the rule|; of a
        record: of |weights after the trade − its weights|
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

    @property
    def head(self) -> Head:
        """What it says of itself beside its arrays."""
        return Head(self.layout, self.scaler, self.behaviours, self.settings)

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.market_rows), len(self), self.n_episodes, len(self.behaviours))

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(getattr(self, name))
            for name in ("market_rows", "states", "row", "action", "reward", "episode", "terminal")
        }

    def gather(self, index: torch.Tensor) -> TransitionBatch:
        """The transitions at `index` [B], as one gather over arrays."""
        t, count, split = self._tensors, len(index), self.layout.market_size
        row = t["row"].index_select(0, index)
        episode = t["episode"].index_select(0, index)
        # An episode has one state more than transitions, so that states run ahead by one each.
        state = index + episode
        # Gathered into their places: joining blocks would copy every observation once more.
        out = torch.empty((2 * count, self.layout.size), dtype=torch.float32)
        torch.index_select(t["market_rows"], 0, torch.cat([row, row + 1]), out=out[:, :split])
        torch.index_select(t["states"], 0, torch.cat([state, state + 1]), out=out[:, split:])
        following = t["episode"].index_select(0, (index + 1).clamp_(max=len(self) - 1))
        last = (following != episode) | (index == len(self) - 1)
        return TransitionBatch(
            out[:count],
            t["action"].index_select(0, index),
            t["reward"].index_select(0, index)[:, None],
            out[count:],
            (last & t["terminal"].index_select(0, episode)).float()[:, None],
        )

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Index of every episode's first transition, shape [E]."""
        return np.searchsorted(self.episode, np.arange(self.n_episodes, dtype=np.int32))

    def returns_by_behaviour(self) -> dict[str, tuple[int, float, float]]:
        """Behaviour → (episodes, mean reward a step, mean distance)."""
        sums = [
            np.add.reduceat(values, self.starts, dtype=np.float64)
            for values in (self.reward, self.distance)
        ]
        lengths = np.diff(self.starts, append=len(self))
        out = {}
        for i, name in enumerate(self.behaviours):
            episodes = self.behaviour == i
            if episodes.any():
                steps = lengths[episodes].sum()
                reward, distance = (float(each[episodes].sum() / steps) for each in sums)
                out[name] = (int(episodes.sum()), reward, distance)
        return out

    def transitions_by_behaviour(self) -> dict[str, int]:
        """Behaviour → number of transitions, where it has episodes."""
        lengths = np.diff(self.starts, append=len(self))
        counts = np.bincount(self.behaviour, weights=lengths, minlength=len(self.behaviours))
        return {
            name: int(count) for name, count in zip(self.behaviours, counts, strict=True) if count
        }
