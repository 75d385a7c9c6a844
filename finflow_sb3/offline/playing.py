"""Playing episodes: the actions that are recorded, and the wave that they come to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.offline.waves import Wave

__all__ = ["Recorder", "nearest_action", "noisy_action"]

Float = NDArray[np.float64]

# Recorded actions stay off the corners of the box: there a squashed Gaussian has to put its mean
# at infinity, and a few such actions drag a whole policy along.
LARGEST_ACTION = 0.95
GATE_FLOOR = 0.08


def noisy_action(batch: PortfolioBatch, target: Float, noise: Float) -> NDArray[np.float32]:
    """The action [B, A] for target weights [B, n+1] and noise [B, A] around it."""
    action = batch.invert(target, GATE_FLOOR) + noise
    return np.asarray(np.clip(action, -LARGEST_ACTION, LARGEST_ACTION).astype(np.float32))


def nearest_action(batch: PortfolioBatch, target: Float) -> NDArray[np.float32]:
    """The action [B, A] whose target is nearest to these weights [B, n+1]."""
    return np.asarray(batch.invert(target, GATE_FLOOR, LARGEST_ACTION).astype(np.float32))


class Recorder:
    """Steps a batch, whose episodes begin now, and keeps what it does.

    Attributes
    ----------
    distances : of every step shape [B]; who chooses the actions fills it
    """

    def __init__(self, batch: PortfolioBatch):
        self.batch = batch
        self.first_row = batch.row.copy()
        self.states = [batch.portfolio_block()]
        self.actions: list[NDArray[np.float32]] = []
        self.rewards: list[NDArray[np.float32]] = []
        self.distances: list[Float] = []
        self.terminated = np.zeros(batch.n_envs, dtype=bool)
        self.lengths = np.zeros(batch.n_envs, dtype=np.int64)

    def step(self, action: NDArray[np.float32]) -> None:
        out = self.batch.step(action)
        self.lengths += ~self.terminated
        self.terminated |= out.terminated
        self.states.append(self.batch.portfolio_block())
        self.actions.append(action)
        self.rewards.append(out.rewards)

    def wave(self) -> Wave:
        """All steps, in the form of `Wave`."""
        found: dict[str, NDArray[Any]] = {
            "first_row": self.first_row,
            "lengths": self.lengths,
            "terminal": self.terminated,
            "states": np.stack(self.states, axis=1),
            "action": np.stack(self.actions, axis=1),
            "reward": np.stack(self.rewards, axis=1),
            "distance": np.stack(self.distances, axis=1).astype(np.float32),
        }
        return found
