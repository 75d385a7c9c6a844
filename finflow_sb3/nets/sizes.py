"""Widths of all networks, so that both phases build the same ones."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

from finflow_sb3.errors import ConfigError

__all__ = ["NetworkSizes"]


@dataclass(frozen=True)
class NetworkSizes:
    """Widths of the policy's and the critics' layers, and the number of quantiles.

    Attributes
    ----------
    expert_hidden : width of each expert's two layers
    gate_hidden : width of the gate and of its asset embedding
    token_hidden : width of the critics' asset encoder
    critic_hidden : widths of the critics' perceptron
    n_critics, n_quantiles : C and N
    """

    expert_hidden: int = 16
    gate_hidden: int = 32
    token_hidden: int = 32
    critic_hidden: tuple[int, ...] = (128, 128)
    n_critics: int = 2
    n_quantiles: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "critic_hidden", tuple(int(x) for x in self.critic_hidden))
        for item in dataclasses.fields(self):
            values = getattr(self, item.name)
            for value in values if isinstance(values, tuple) else (values,):
                if value < 1:
                    raise ConfigError(f"policy_kwargs: {item.name} is {values}, must be positive")

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

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "critic_hidden": list(self.critic_hidden)}
