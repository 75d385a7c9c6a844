"""Risk measures of a return distribution, as weights over its quantiles."""

from __future__ import annotations

import torch
from torch import Tensor

from finflow_sb3.errors import ConfigError

__all__ = ["risk_weights"]

FORMS = "neutral, cvar:<level in (0, 1]> or wang:<strength>"


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
    if measure == "neutral":
        return u
    kind, _, number = measure.partition(":")
    try:
        value = float(number)
    except ValueError:
        raise ConfigError(f"risk_measure: {measure!r} is not {FORMS}") from None
    if kind == "cvar" and 0.0 < value <= 1.0:
        return (u / value).clamp(max=1.0)
    if kind == "wang" and abs(value) < 10.0:
        distorted: Tensor = torch.special.ndtr(torch.special.ndtri(u) + value)
        return distorted
    raise ConfigError(f"risk_measure: {measure!r} is not {FORMS}")
