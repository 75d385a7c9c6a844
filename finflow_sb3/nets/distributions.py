"""The squashed Gaussian of SB3's SAC and mixtures of it, as functions of named tensors.

Both phases use the same formula (SB3's, with its ε of 1e-6), so that log π is handed over
unchanged. Random numbers are arguments: several processes can then draw them jointly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "log_prob",
    "mixture_log_prob",
    "pick_components",
    "sample",
    "sample_components",
    "sample_mixture",
]

EPSILON = 1e-6
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


def _gaussian(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """log N(u; mean, σ), summed over the last dimension."""
    z = (u - mean) * torch.exp(-log_std)
    return (-0.5 * z * z - log_std - HALF_LOG_TWO_PI).sum(dim=-1)


def _log_slope(actions: Tensor) -> Tensor:
    """Σ log |d tanh(u)/du|, with SB3's ε."""
    return torch.log(1.0 - actions * actions + EPSILON).sum(dim=-1)


def _unsquash(actions: Tensor) -> Tensor:
    bound = 1.0 - torch.finfo(actions.dtype).eps
    return torch.atanh(actions.clamp(-bound, bound))


def log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """log π(a), shape [B], of actions [B, A] in (-1, 1)."""
    return _gaussian(mean, log_std, _unsquash(actions)) - _log_slope(actions)


def sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparametrised actions and their log π.

    Parameters
    ----------
    mean, log_std, noise : [..., A], which broadcast; noise is standard normal

    Returns
    -------
    actions [..., A], log π [...]
    """
    actions = torch.tanh(mean + log_std.exp() * noise)
    density = (-0.5 * noise * noise - log_std - HALF_LOG_TWO_PI).sum(dim=-1)
    return actions, density - _log_slope(actions)


# ------------------------------------------------------------------- mixtures


def _mixture(means: Tensor, log_stds: Tensor, log_weights: Tensor, u: Tensor) -> Tensor:
    """log Σ_k w_k·N(u; mean_k, σ_k), shape [B, M], of u [B, M, A] under components [B, K, A]."""
    each = _gaussian(means[:, None], log_stds[:, None], u[:, :, None])
    return torch.logsumexp(each + log_weights[:, None], dim=2)


def mixture_log_prob(
    means: Tensor, log_stds: Tensor, log_weights: Tensor, actions: Tensor
) -> Tensor:
    """log π(a) of a mixture, shape [B].

    Parameters
    ----------
    means, log_stds : [B, K, A]
    log_weights : [B, K]
    actions : [B, A] in (-1, 1)
    """
    u = _unsquash(actions)[:, None]
    return _mixture(means, log_stds, log_weights, u)[:, 0] - _log_slope(actions)


def sample_components(
    means: Tensor, log_stds: Tensor, log_weights: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """One reparametrised action of every component, and its log π under the whole mixture.

    An expectation over the mixture is Σ_k w_k·E_k: with the weights kept as factors it has a
    gradient for them too, which sampling a component would lose.

    Parameters
    ----------
    noise : [B, K, A]

    Returns
    -------
    actions [B, K, A], log π [B, K]
    """
    u = means + log_stds.exp() * noise
    actions = torch.tanh(u)
    return actions, _mixture(means, log_stds, log_weights, u) - _log_slope(actions)


def pick_components(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Components [B, M] drawn by inverting the distribution function at `uniform` [B, M]."""
    edges = log_weights.exp().cumsum(dim=1)
    picked = torch.searchsorted(edges.contiguous(), uniform.contiguous(), right=True)
    return picked.clamp(max=log_weights.shape[1] - 1)


def sample_mixture(
    means: Tensor, log_stds: Tensor, log_weights: Tensor, noise: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Actions of the mixture and their log π; no gradient flows to the weights.

    Parameters
    ----------
    noise : [B, M, A]
    uniform : [B, M] in [0, 1), which picks the components

    Returns
    -------
    actions [B, M, A], log π [B, M]
    """
    picked = pick_components(log_weights, uniform)[:, :, None].expand(-1, -1, means.shape[2])
    u = means.gather(1, picked) + log_stds.gather(1, picked).exp() * noise
    actions = torch.tanh(u)
    return actions, _mixture(means, log_stds, log_weights, u) - _log_slope(actions)
