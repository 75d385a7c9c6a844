"""Random numbers of an update, drawn before it: networks and losses are then functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Draws", "Noise"]


class Draws(NamedTuple):
    """What sampling M actions for each of B states takes.

    normal : [B, M, A], standard normal
    uniform : [B, M] in [0, 1), to pick components of a full mixture; None for one Gaussian
    """

    normal: Tensor
    uniform: Tensor | None = None


class Noise:
    """Draws from torch's own generator, in the order of the calls.

    Where several processes share a batch, `cqsac.parallel` puts its own in this place.
    """

    def normal(self, *shape: int, device: torch.device) -> Tensor:
        """Standard normal numbers; the first dimension is the batch."""
        return torch.randn(*shape, device=device)

    def uniform(self, *shape: int, device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1); the first dimension is the batch."""
        return torch.rand(*shape, device=device)
