"""Transitions in batches: what an offline algorithm asks of a dataset of any kind."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["TransitionBatch", "Transitions"]


class TransitionBatch(NamedTuple):
    """Tensors of one batch: observations [B, D], actions [B, A], the rest [B, 1]."""

    observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    next_observations: torch.Tensor
    terminals: torch.Tensor


class Transitions(Protocol):
    """N transitions that are drawn by index."""

    def __len__(self) -> int: ...

    @property
    def starts(self) -> NDArray[np.int64]:
        """Index of every episode's first transition."""

    def gather(self, index: torch.Tensor) -> TransitionBatch:
        """The transitions at `index` [B], as one gather over arrays."""
