"""Several linear layers of one shape as one batched product."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["StackedLinear"]


class StackedLinear(nn.Module):
    """C linear layers: [C, B, in] → [C, B, out], initialised as `torch.nn.Linear` is.

    `weight` is [C, in, out] and `bias` [C, 1, out].
    """

    def __init__(self, stack: int, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(stack, n_in, n_out))
        self.bias = nn.Parameter(torch.empty(stack, 1, n_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1.0 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)
