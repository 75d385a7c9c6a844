"""Sampling from what a policy network gives out, Gaussian or mixture, and its log π."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from finflow_sb3.nets.distributions import (
    log_prob,
    mixture_log_prob,
    sample,
    sample_components,
    sample_mixture,
)
from finflow_sb3.nets.experts import PolicyOutput
from finflow_sb3.nets.noise import Draws, Noise

__all__ = ["PolicyStep", "act", "draw", "policy_log_prob", "sample_policy"]


class PolicyStep(NamedTuple):
    """Reparametrised actions whose weighted sum is an expectation over the policy.

    actions : [B, M, A]; M is 1 for one Gaussian, the number of experts for a full mixture
    log_prob : [B, M], log π of each under the whole policy
    weights : [B, M], with gradient; None where M is 1
    mean : [B, A], before the tanh; None where the distribution has none (gSDE)
    gates : [B, K], None without experts
    """

    actions: Tensor
    log_prob: Tensor
    weights: Tensor | None
    mean: Tensor | None
    gates: Tensor | None

    def expected(self, each: Tensor) -> Tensor:
        """Σ_m w_m·x_m, [B], of values [B, M]."""
        return each[:, 0] if self.weights is None else (self.weights * each).sum(dim=1)


def policy_log_prob(out: PolicyOutput, actions: Tensor) -> Tensor:
    """log π(a), shape [B], of actions [B, A] in (-1, 1)."""
    if out.components is None:
        return log_prob(out.mean, out.log_std, actions)
    return mixture_log_prob(*out.components, actions)


def draw(
    noise: Noise, batch: int, count: int, size: int, full: bool, device: torch.device
) -> Draws:
    """Random numbers for `count` actions of size `size` in each of `batch` states."""
    normal = noise.normal(batch, count, size, device=device)
    return Draws(normal, noise.uniform(batch, count, device=device) if full else None)


def sample_policy(
    out: PolicyOutput, count: int, draws: Draws | None = None
) -> tuple[Tensor, Tensor]:
    """`count` actions for each state, [B, M, A], and their log π, [B, M].

    Parameters
    ----------
    draws : random numbers to use; torch's own if not given
    """
    if draws is None:
        full = out.components is not None
        draws = draw(Noise(), *_shape(out, count), full, out.mean.device)
    if out.components is None:
        return sample(out.mean[:, None], out.log_std[:, None], draws.normal)
    assert draws.uniform is not None
    return sample_mixture(*out.components, draws.normal, draws.uniform)


def act(out: PolicyOutput, normal: Tensor) -> PolicyStep:
    """Actions for the actor's loss.

    Parameters
    ----------
    normal : [B, 1, A], or [B, K, A] for a full mixture
    """
    if out.components is None:
        actions, density = sample(out.mean[:, None], out.log_std[:, None], normal)
        return PolicyStep(actions, density, None, out.mean, out.gates)
    actions, density = sample_components(*out.components, normal)
    weights = torch.exp(out.components.log_weights)
    return PolicyStep(actions, density, weights, out.mean, out.gates)


def _shape(out: PolicyOutput, count: int) -> tuple[int, int, int]:
    return out.mean.shape[0], count, out.mean.shape[1]
