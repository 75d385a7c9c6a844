"""Quantile Huber loss from sorted targets: O((N + M)·log M) instead of O(N·M)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["quantile_huber_loss", "sort_rows"]


def quantile_huber_loss(
    quantiles: Tensor, targets: Tensor, *, targets_sorted: bool = False
) -> Tensor:
    """Mean over batch, critics, quantiles and targets of |τ_i − 1{t < q}|·Huber(t − q), κ = 1
    (Dabney et al. 2018, eq. 10), τ_i = (i + ½)/N.

    For one q, sorted targets fall into four runs, cut at q − 1, q and q + 1; in each the loss
    is a polynomial in q whose coefficients are the run's count, Σt and Σt². With prefix sums
    they take three binary searches. Compiled, all pairs are one fused loop without memory of
    its own, and faster.

    Parameters
    ----------
    quantiles : [B, C, N], floating point; the only argument that gets a gradient
    targets : [B, M], shared by the critics
    targets_sorted : whether every row of `targets` already rises

    Returns
    -------
    scalar
    """
    if torch.compiler.is_compiling():
        return _all_pairs(quantiles, targets.detach())
    if not targets_sorted:
        targets = sort_rows(targets.detach())
    loss: Tensor = _SortedQuantileHuber.apply(quantiles, targets.detach())  # type: ignore[no-untyped-call]
    return loss


def sort_rows(x: Tensor) -> Tensor:
    """Rows of [B, M] in rising order, without gradient.

    On a CPU NumPy sorts short rows with vector instructions, in a fifteenth of torch's time.
    """
    if x.device.type != "cpu":
        return torch.sort(x, dim=1).values
    return torch.from_numpy(np.sort(x.detach().numpy(), axis=1))


def _all_pairs(quantiles: Tensor, targets: Tensor) -> Tensor:
    """The definition, O(N·M): value and slope in one loop over pairs, which the compiler fuses."""
    n = quantiles.shape[2]
    q = quantiles.detach()
    delta = q[:, None] - targets[:, :, None, None]  # quantiles last: vectors run over them
    bounded = delta.clamp(-1.0, 1.0)  # the slope of Huber's function
    tau = (torch.arange(n, dtype=q.dtype, device=q.device) + 0.5) / n
    slope = torch.where(delta > 0.0, 1.0 - tau, tau) * bounded
    value = (slope * (delta - 0.5 * bounded)).sum(dim=1)
    # Zero added, with the slope as its gradient.
    moving = (slope.sum(dim=1) * (quantiles - q)).sum()
    return (value.sum() + moving) / delta.numel()


class _SortedQuantileHuber(torch.autograd.Function):
    """Value and gradient in one pass: both come from the same counts and sums."""

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, targets: Tensor) -> Tensor:
        value, slope = _value_and_slope(quantiles, targets)
        pairs = quantiles.numel() * targets.shape[1]
        ctx.save_for_backward((slope / pairs).to(quantiles.dtype).view_as(quantiles))
        return (value.sum() / pairs).to(quantiles.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grads[0] * slope, None


def _value_and_slope(quantiles: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over targets of the loss of every quantile, and its derivative; float64 [B, C·N].

    With F(x) = Σ_{t<x} (x − t) and G(x) = Σ_{t<x} ½(x − t)², targets under q give
    G(q) − G(q − 1), those over it Σt − M·(q + ½) + G(q + 1) − G(q); F is the slope of G.
    """
    batch, critics, n = quantiles.shape
    m = targets.shape[1]
    # Sums of squares cancel: taken around a middle target and in double they do so at 1e-12.
    both = torch.cat([targets, quantiles.reshape(batch, -1)], dim=1).double()
    both = both - both[:, m // 2 : m // 2 + 1]
    t, q = both[:, :m].contiguous(), both[:, m:]
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=q.dtype, device=q.device)
    x = (q[:, None, :] + steps[:, None]).view(batch, -1)
    counts = torch.searchsorted(t, x)
    first = torch.nn.functional.pad(t.cumsum(dim=1), (1, 0))
    second = torch.nn.functional.pad((t * t).cumsum(dim=1), (1, 0))
    sums = first.gather(1, counts)
    f = x * counts - sums
    g = x * (f - sums) + second.gather(1, counts)  # twice G
    f_low, f_mid, f_high = f.view(batch, 3, -1).unbind(dim=1)
    g_low, g_mid, g_high = g.view(batch, 3, -1).unbind(dim=1)
    tau = (torch.arange(n, dtype=q.dtype, device=q.device) + 0.5) / n
    tau = tau.repeat(critics)
    over = first[:, -1:] - m * (q + 0.5) + 0.5 * (g_high - g_mid)
    value = torch.lerp(0.5 * (g_mid - g_low), over, tau)
    slope = torch.lerp(f_mid - f_low, f_high - f_mid - m, tau)
    return value, slope
