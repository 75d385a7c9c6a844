"""Seeding CQSAC with a pretrained artefact, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch as th
from torch import Tensor, nn

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.policies import MultiExpertPolicy
from finflow_sb3.errors import ArtefactError
from finflow_sb3.nets.policy import sample_policy
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
    """`policy_kwargs` of a `MultiExpertPolicy` that the artefact's weights fit into."""
    return {
        **artefact.sizes.as_dict(),
        "layout": artefact.layout.as_dict(),
        "gate_scale": artefact.gate_scale,
        "with_value": True,
    }


def seed(model: CQSAC, artefact: Artefact) -> SeedReport:
    """Copy the artefact's policy, critics, target critics and V into `model`.

    After it mean, σ, gates, log π, every quantile and V equal the artefact's.

    Raises
    ------
    ArtefactError
        If the model's policy is of another kind or shape, or observations are normalised anew
        (the scaler travels with the artefact).
    """
    policy = model.policy
    if not isinstance(policy, MultiExpertPolicy) or policy.layout is None:
        raise ArtefactError("seeding needs policy MultiExpertPolicy in a portfolio environment")
    if model.get_vec_normalize_env() is not None:
        raise ArtefactError("normalize: a seeded run keeps the artefact's scaler; set it to false")
    artefact.layout.require_equal(policy.layout, "the environment")
    parts: dict[str, tuple[nn.Module, str]] = {
        "policy": (policy.actor, "policy"),
        "critics": (policy.critic, "critics"),
        "target critics": (policy.critic_target, "target_critics"),
    }
    if policy.reference_value is not None:
        parts["value"] = (policy.reference_value, "value")
    copied = {}
    for name, (module, prefix) in parts.items():
        copied[name] = _load(module, artefact.part(prefix), name)
    return SeedReport(copied, ("optimisers", "entropy coefficient", "replay buffer"))


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
