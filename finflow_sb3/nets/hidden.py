"""What follows a linear layer: dropout, layer norm, activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finflow_sb3.network_sizes import Regularisation

__all__ = ["PLAIN", "Hidden", "StackedNorm", "perceptron"]


PLAIN = Regularisation()


class StackedNorm(nn.Module):
    """C layer norms over the last dimension of [C, ..., H], each with its own scale and shift."""

    def __init__(self, stack: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(stack, width))
        self.bias = nn.Parameter(torch.zeros(stack, width))

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])
        normed = nn.functional.layer_norm(x, x.shape[-1:])
        return normed * self.weight.view(shape) + self.bias.view(shape)


class _CompiledReLU(torch.autograd.Function):
    """ReLU whose slope is the sign of its output.

    Where the weights get no gradient, the compiler would keep a mask of booleans for the backward
    pass, and writing that takes a hundred times the function itself on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grads[0] * torch.sign(y)


class Hidden(nn.Module):
    """Dropout → layer norm → activation, in the order of DroQ (Hiraoka et al. 2022).

    Parameters
    ----------
    width : H, the size of the last dimension
    stack : C networks that are computed together along the first dimension; None if there is
        only one, without such a dimension
    """

    def __init__(
        self,
        width: int,
        stack: int | None = None,
        form: Regularisation = PLAIN,
        activation: type[nn.Module] = nn.ReLU,
    ):
        super().__init__()
        self.dropout, self.layer_norm = form.dropout, form.layer_norm
        if form.layer_norm:
            self.norm = nn.LayerNorm(width) if stack is None else StackedNorm(stack, width)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Of [C, ..., H], or [..., H]; `x` may be written over."""
        if self.dropout > 0.0:
            x = nn.functional.dropout(x, self.dropout, self.training)
        if self.layer_norm:
            x = self.norm(x)
        if isinstance(self.activation, nn.ReLU) and torch.compiler.is_compiling():
            compiled: Tensor = _CompiledReLU.apply(x)  # type: ignore[no-untyped-call]
            return compiled
        if isinstance(self.activation, nn.ReLU):
            return nn.functional.relu_(x)  # what comes in is needed by nobody else
        out: Tensor = self.activation(x)
        return out


def perceptron(
    n_in: int, widths: list[int], form: Regularisation, activation: type[nn.Module]
) -> nn.Sequential:
    """One perceptron of hidden layers only."""
    layers: list[nn.Module] = []
    for n_out in widths:
        layers += [nn.Linear(n_in, n_out), Hidden(n_out, None, form, activation)]
        n_in = n_out
    return nn.Sequential(*layers)
