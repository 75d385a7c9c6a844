"""Widths and form of all networks, so that both phases build the same ones."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.hidden import Regularisation

__all__ = ["NetworkSizes", "require_regularisation"]

MIXTURES = ("soft", "full")
WIDTHS = (
    "expert_hidden",
    "gate_hidden",
    "token_hidden",
    "critic_hidden",
    "n_critics",
    "n_quantiles",
)


def require_regularisation(dropout: Any, layer_norm: Any) -> None:
    """Raise a `ConfigError` unless they are a dropout probability and a boolean."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"policy_kwargs: dropout is {dropout!r}, must lie in [0, 1)")
    if not isinstance(layer_norm, bool):
        raise ConfigError(f"policy_kwargs: layer_norm is {layer_norm!r}, must be true or false")


@dataclass(frozen=True)
class NetworkSizes:
    """Widths of the policy's and the critics' layers, number of quantiles, form of the mixture.

    Attributes
    ----------
    expert_hidden : width of each expert's two layers
    gate_hidden : width of the gate and of its asset embedding
    token_hidden : width of the critics' asset encoder
    critic_hidden : widths of the critics' perceptron
    n_critics, n_quantiles : C and N
    mixture : `soft`, one Gaussian whose mean and log σ are gated sums over the experts, or
        `full`, a mixture of the experts' Gaussians
    dropout, layer_norm : after every hidden linear layer of policy and critics
    """

    expert_hidden: int = 16
    gate_hidden: int = 32
    token_hidden: int = 32
    critic_hidden: tuple[int, ...] = (128, 128)
    n_critics: int = 2
    n_quantiles: int = 32
    mixture: str = "soft"
    dropout: float = 0.0
    layer_norm: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "critic_hidden", tuple(int(x) for x in self.critic_hidden))
        for name in WIDTHS:
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value < 1:
                    raise ConfigError(f"policy_kwargs: {name} is {values}, must be positive")
        if self.mixture not in MIXTURES:
            raise ConfigError(
                f"policy_kwargs: mixture is {self.mixture!r}, must be {' or '.join(MIXTURES)}"
            )
        require_regularisation(self.dropout, self.layer_norm)

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> NetworkSizes:
        """From `policy_kwargs`.

        Raises
        ------
        ConfigError
            If a key is unknown; the message names the nearest known one.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise ConfigError(f"policy_kwargs: unknown key {name!r}; {hint}")
        return cls(**kwargs)

    @property
    def regularisation(self) -> Regularisation:
        return Regularisation(self.dropout, self.layer_norm)

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "critic_hidden": list(self.critic_hidden)}
