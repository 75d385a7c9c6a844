"""Losses as pure functions of named tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["balance_loss", "conservative_penalty", "log_uniform_density", "prior_loss"]


def conservative_penalty(
    sampled_q: Tensor, log_density: Tensor, data_q: Tensor, temperature: float = 1.0
) -> Tensor:
    """CQL(H): T·(logsumexp_j(Q(s,a_j)/T − log q(a_j)) − log M) − Q(s,a), mean over the batch.

    The logsumexp less log M is an importance-sampled estimate of log ∫ exp(Q(s,a)/T) da
    (Kumar et al. 2020, appendix F). It runs over actions; Q is the mean over quantiles.

    Parameters
    ----------
    sampled_q : [..., B, M], Q of sampled actions
    log_density : [B, M], log q of each under the distribution that it came from
    data_q : [..., B], Q of the batch's own actions
    temperature : T > 0
    """
    count = sampled_q.shape[-1]
    total = torch.logsumexp(sampled_q / temperature - log_density, dim=-1) - math.log(count)
    return (temperature * total - data_q).mean()


def log_uniform_density(action_size: int) -> float:
    """Log density of the uniform distribution on [-1, 1]^A: −A·log 2."""
    return -action_size * math.log(2.0)


def balance_loss(mean_gate: Tensor) -> Tensor:
    """K·Σ_k ḡ_k² − 1 of the batch's mean gate ḡ: 0 when all experts are used alike, K − 1 when
    one has it all (after Shazeer et al. 2017).

    Parameters
    ----------
    mean_gate : [K], summing to one
    """
    return len(mean_gate) * (mean_gate * mean_gate).sum() - 1.0


def prior_loss(mean: Tensor) -> Tensor:
    """Σ_i tanh(mean_i)², mean over the batch: how far the deterministic action is from zero.

    In action base `anchors` zero is the anchors' plain average, which what is learned has to
    be held close to until the data say otherwise: a Gaussian prior on the action.

    Parameters
    ----------
    mean : [B, A], before the tanh
    """
    return torch.tanh(mean).square().sum(dim=1).mean()
