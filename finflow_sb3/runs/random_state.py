"""Random states and optimisers as tensors and JSON, there and back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = [
    "global_random_state",
    "optimizer_state",
    "restore_global_random_state",
    "restore_optimizer",
]


def global_random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Of torch, NumPy's global generator and `random`."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, normal = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
    }
    if torch.cuda.is_available():
        for i, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda_{i}"] = state
    plain = {
        "numpy": [int(position), int(has_gauss), float(gauss)],
        "random": [version, list(words), normal],
    }
    return tensors, plain


def restore_global_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    position, has_gauss, gauss = plain["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))
    version, words, normal = plain["random"]
    random.setstate((version, tuple(words), normal))
    if torch.cuda.is_available():
        count = sum(name.startswith("cuda_") for name in tensors)
        torch.cuda.set_rng_state_all([tensors[f"cuda_{i}"] for i in range(count)])


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's tensors, named `<parameter>/<key>`, and its groups without parameters."""
    packed = optimizer.state_dict()
    tensors = {}
    for parameter, values in packed["state"].items():
        for key, value in values.items():
            tensors[f"{parameter}/{key}"] = torch.as_tensor(value).detach().clone()
    return tensors, [dict(group) for group in packed["param_groups"]]


def restore_optimizer(
    optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, key = name.split("/", 1)
        state.setdefault(int(parameter), {})[key] = value.clone()
    # JSON has lists where the optimiser has tuples (Adam's betas).
    clean = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in groups
    ]
    optimizer.load_state_dict({"state": state, "param_groups": clean})
