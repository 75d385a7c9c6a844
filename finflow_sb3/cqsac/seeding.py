"""Seeding CQSAC with a pretrained artefact, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium.spaces import Box
from torch import Tensor, nn

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.policies import MlpPolicy, MultiExpertPolicy
from finflow_sb3.errors import ArtefactError
from finflow_sb3.nets.policy import sample_policy
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.pretrain.artefact import Artefact

__all__ = ["SeedReport", "policy_kwargs_for", "seed", "seeded_entropy"]


@dataclass(frozen=True)
class SeedReport:
    """What seeding did.

    Attributes
    ----------
    copied : part → number of parameters taken from the artefact
    fresh : what starts anew
    """

    copied: dict[str, int]
    fresh: tuple[str, ...]

    def lines(self) -> list[str]:
        out = [f"seeded {name}: {count:,} parameters" for name, count in self.copied.items()]
        return [*out, f"fresh: {', '.join(self.fresh)}"]


def policy_kwargs_for(artefact: Artefact) -> dict[str, Any]:
    """`policy_kwargs` that the artefact's weights fit into: of a `MultiExpertPolicy`, or of an
    `MlpPolicy` where it was learned without a market.
    """
    if artefact.layout is None:
        sizes = artefact.sizes.as_dict()
        shared = ("n_critics", "n_quantiles", "dropout", "layer_norm")
        return {"net_arch": sizes["critic_hidden"], **{name: sizes[name] for name in shared}}
    return {
        **artefact.sizes.as_dict(),
        "layout": artefact.layout.as_dict(),
        "gate_scale": artefact.gate_scale,
        "with_value": True,
    }


def seed(model: CQSAC, artefact: Artefact) -> SeedReport:
    """Copy the artefact's policy, critics, target critics and V into `model`.

    After it mean, σ, gates, log π, every quantile and V equal the artefact's. An artefact that was
    learned without a market goes into an `MlpPolicy`, which has no V.

    Raises
    ------
    ArtefactError
        If the model's policy is of another kind or shape, or observations are normalised anew
        (the scaler travels with the artefact).
    """
    policy, prefix = model.policy, "policy"
    if artefact.spaces is not None:
        _require_spaces(model, artefact.spaces)
        prefix = "policy.experts"
    else:
        _require_layout(model, artefact)
    if model.get_vec_normalize_env() is not None:
        raise ArtefactError("normalize: a seeded run keeps the artefact's scaler; set it to false")
    parts: dict[str, tuple[nn.Module, str]] = {
        "policy": (policy.actor, prefix),
        "critics": (policy.critic, "critics"),
        "target critics": (policy.critic_target, "target_critics"),
    }
    if policy.reference_value is not None:
        parts["value"] = (policy.reference_value, "value")
    copied = {}
    for name, (module, prefix) in parts.items():
        copied[name] = _load(module, artefact.part(prefix), name)
    return SeedReport(copied, ("optimisers", "entropy coefficient", "replay buffer"))


def _require_layout(model: CQSAC, artefact: Artefact) -> None:
    """Refuse a model whose observations are not those of the artefact's market."""
    policy = model.policy
    if not isinstance(policy, MultiExpertPolicy) or policy.layout is None:
        raise ArtefactError("seeding needs policy MultiExpertPolicy in a portfolio environment")
    layout, _ = artefact.of_market("the artefact")
    layout.require_equal(policy.layout, "the environment")


def _require_spaces(model: CQSAC, spaces: Spaces) -> None:
    """Refuse a model of another policy, or whose environment has other spaces."""
    if type(model.policy) is not MlpPolicy:
        raise ArtefactError("the artefact was pretrained without a market: it seeds an MlpPolicy")
    observation, action = model.observation_space, model.action_space
    assert isinstance(action, Box)  # SB3's SAC takes no other
    if observation.shape != spaces.observation_shape:
        raise ArtefactError(
            f"the environment's observations have shape {observation.shape}; the artefact's "
            f"{spaces.observation_shape}"
        )
    bounds = [np.ravel(bound).tolist() for bound in (action.low, action.high)]
    if action.shape != spaces.action_shape or not np.allclose(bounds, [spaces.low, spaces.high]):
        raise ArtefactError(
            f"the environment's actions lie in {action}; the artefact's from {list(spaces.low)} "
            f"to {list(spaces.high)}"
        )


def _load(module: nn.Module, weights: dict[str, Tensor], name: str) -> int:
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtefactError(f"the artefact's {name} does not fit the model: {reason}") from None
    return sum(tensor.numel() for tensor in weights.values())


@th.no_grad()
def seeded_entropy(model: CQSAC, observations: Tensor, samples: int = 16) -> float:
    """Mean entropy of the policy over `observations` [B, D], estimated from `samples` actions
    each; the target entropy that keeps a seeded policy as wide as it came.
    """
    _, density = sample_policy(model.policy.distribution(observations), samples)
    return float(-density.mean())
