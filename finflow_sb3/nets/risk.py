"""Risk measures of a return distribution, as weights over its quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from finflow_sb3.config_forms import risk_parts
from finflow_sb3.errors import ConfigError

__all__ = ["risk_weights"]


def risk_weights(measure: str, n_quantiles: int) -> Tensor:
    """Weights w [N] that sum to one: Σ_i w_i·q_i is the measure of quantiles q_i at (i + ½)/N.

    A distortion risk measure gives the i-th quantile g((i + 1)/N) − g(i/N) (Dabney et al.
    2018b, section 3): `neutral` has g(u) = u, the mean; `cvar:α` has min(u/α, 1), the mean of
    the worst α; `wang:η` has Φ(Φ⁻¹(u) + η), which on a Gaussian is mean − η·σ: averse where
    η > 0, seeking where η < 0.

    Raises
    ------
    ConfigError
        If `measure` has none of these forms.
    """
    edges = torch.linspace(0.0, 1.0, n_quantiles + 1, dtype=torch.float64)
    return torch.diff(_distorted(measure, edges)).float()


def _distorted(measure: str, u: Tensor) -> Tensor:
    try:
        kind, value = risk_parts(measure)
    except ConfigError as error:
        raise ConfigError(f"risk_measure: {error}") from None
    if kind == "cvar":
        return (u / value).clamp(max=1.0)
    if kind == "wang":
        distorted: Tensor = torch.special.ndtr(torch.special.ndtri(u) + value)
        return distorted
    return u
