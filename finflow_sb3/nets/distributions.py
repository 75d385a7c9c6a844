"""The squashed Gaussian of SB3's SAC, as functions of mean and log σ.

Both phases use the same formula (SB3's, with its ε of 1e-6), so that log π is handed over
unchanged.
"""

from __future__ import annotations

import torch
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from torch import Tensor

__all__ = ["log_prob", "sample_with_log_prob"]


def _distribution(mean: Tensor, log_std: Tensor) -> SquashedDiagGaussianDistribution:
    return SquashedDiagGaussianDistribution(mean.shape[-1]).proba_distribution(mean, log_std)


def log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """log π(a), shape [B], of actions [B, A] in (-1, 1)."""
    return _distribution(mean, log_std).log_prob(actions)


def sample_with_log_prob(mean: Tensor, log_std: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` reparametrised actions for each row and their log π.

    Returns
    -------
    actions [B, count, A], log π [B, count]
    """
    batch, size = mean.shape
    wide_mean = mean[:, None].expand(-1, count, -1).reshape(batch * count, size)
    wide_std = log_std[:, None].expand(-1, count, -1).reshape(batch * count, size)
    actions, density = _distribution(wide_mean, wide_std).log_prob_from_params(wide_mean, wide_std)
    return actions.view(batch, count, size), torch.as_tensor(density).view(batch, count)
