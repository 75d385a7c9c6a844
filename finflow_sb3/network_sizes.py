"""Widths and form of all networks, so that both phases build the same ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from finflow_sb3.config_fields import Checked, check_given, setting
from finflow_sb3.errors import ConfigError

__all__ = ["NetworkSizes", "Regularisation", "dropout_probability", "require_regularisation"]


class Regularisation(NamedTuple):
    """Dropout probability after every hidden linear layer, and whether a layer norm follows."""

    dropout: float = 0.0
    layer_norm: bool = False


def dropout_probability(value: float) -> float:
    """A probability under one."""
    if not 0.0 <= value < 1.0:
        raise ConfigError(f"{value!r} must lie in [0, 1)")
    return value


def widths(values: tuple[int, ...]) -> tuple[int, ...]:
    """Widths of layers."""
    if not values or not all(1 <= value <= 65_536 for value in values):
        raise ConfigError(f"{values!r} must be widths from 1 to 65536")
    return values


def require_regularisation(dropout: Any, layer_norm: Any) -> None:
    """Raise a `ConfigError` unless they are a dropout probability and a boolean."""
    try:
        check_given(NetworkSizes, {"dropout": dropout, "layer_norm": layer_norm}, "key")
    except ConfigError as error:
        raise ConfigError(f"policy_kwargs: {error}") from None


@dataclass(frozen=True)
class NetworkSizes(Checked):
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

    expert_hidden: int = setting(16, "width of each expert", 1, 65_536)
    gate_hidden: int = setting(32, "width of the gate", 1, 65_536)
    token_hidden: int = setting(32, "width of the critics' asset encoder", 1, 65_536)
    critic_hidden: tuple[int, ...] = setting((128, 128), "widths of the critics", form=widths)
    n_critics: int = setting(2, "critics", 1, 20)
    n_quantiles: int = setting(32, "quantiles a critic", 1, 1000)
    mixture: Literal["soft", "full"] = setting("soft", "form of the mixture")
    dropout: float = setting(0.0, "probability", form=dropout_probability)
    layer_norm: bool = setting(False, "after hidden layers")

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ConfigError as error:
            raise ConfigError(f"policy_kwargs: {error}") from None

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> NetworkSizes:
        """From `policy_kwargs`.

        Raises
        ------
        ConfigError
            If a key is unknown; the message names the nearest known one.
        """
        try:
            return cls(**check_given(cls, kwargs, "key"))
        except ConfigError as error:
            raise ConfigError(f"policy_kwargs: {error}") from None

    @property
    def regularisation(self) -> Regularisation:
        return Regularisation(self.dropout, self.layer_norm)

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "critic_hidden": list(self.critic_hidden)}
