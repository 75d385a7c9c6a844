"""A policy network's mean without its σ: both are rows of the same last layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finflow_sb3.nets.experts import FlatExperts, LayoutExperts

__all__ = ["load_mean", "mean_state"]


def mean_state(experts: LayoutExperts | FlatExperts) -> dict[str, Tensor]:
    """The network's state without what only log σ depends on: the last layers' rows for it."""
    state = dict(experts.state_dict())
    for name, (axis, count) in _cuts(experts).items():
        state[name] = state[name].narrow(axis, 0, count)
    return state


def load_mean(experts: LayoutExperts | FlatExperts, weights: Mapping[str, Tensor]) -> None:
    """Load what `mean_state` gave; log σ keeps the rows that the network has.

    Raises
    ------
    RuntimeError
        As `load_state_dict` does, if a tensor is missing, too much or of another shape.
    """
    state, own = dict(weights), experts.state_dict()
    for name, (axis, count) in _cuts(experts).items():
        if name in state:
            kept = own[name].narrow(axis, count, own[name].shape[axis] - count)
            state[name] = torch.cat([state[name].to(kept.device), kept], dim=axis)
    experts.load_state_dict(state, strict=True)


def _cuts(experts: LayoutExperts | FlatExperts) -> dict[str, tuple[int, int]]:
    """Name of a parameter of the last layers → axis of its rows, and how many are the mean's."""
    cuts: dict[str, tuple[int, int]] = {}
    for layer, count in experts.heads.items():
        module: Any = experts.get_submodule(layer)
        axis = 0 if isinstance(module, nn.Linear) else -1
        cuts |= {f"{layer}.{name}": (axis, count) for name, _ in module.named_parameters()}
    return cuts
