"""Seeding CQSAC with a pretrained artefact, exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium.spaces import Box
from torch import Tensor

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.policies import MlpPolicy, MultiExpertPolicy
from finflow_sb3.errors import ArtefactError
from finflow_sb3.nets.mean_rows import load_mean
from finflow_sb3.nets.policy import sample_policy
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.pretrain.artefact import Artefact

__all__ = ["SeedReport", "policy_kwargs_for", "seed", "seeded_entropy"]


Load = Callable[[dict[str, Tensor]], Any]
"""Takes weights in, or raises a `RuntimeError` where they do not fit."""


@dataclass(frozen=True)
class SeedReport:
    """What seeding did.

    Attributes
    ----------
    copied : part → number of parameters taken from the artefact
    fresh : what starts anew
    absent : what the artefact lacks and the model goes without
    """

    copied: dict[str, int]
    fresh: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        out = [f"seeded {name}: {count:,} parameters" for name, count in self.copied.items()]
        out.append(f"fresh: {', '.join(self.fresh)}")
        return [*out, f"absent: {', '.join(self.absent)}"] if self.absent else out


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
        "with_value": artefact.has_value,
    }


def seed(model: CQSAC, artefact: Artefact) -> SeedReport:
    """Copy what the artefact holds of policy, critics, target critics and V into `model`.

    After it mean, gates, every quantile, and σ, log π and V equal the artefact's. Where that has
    no σ, log σ keeps the rows of the last layers that the model was made with, so that σ is near
    e⁻¹ everywhere as an untrained policy's; where it has no V, the model has none either. An
    artefact that was learned without a market goes into an `MlpPolicy`, which has no V.

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
    copied = {
        name: _load(load, artefact.part(source), name)
        for name, source, load in _parts(policy, artefact, prefix)
    }
    sigma = () if artefact.has_sigma else ("σ",)
    fresh = (*sigma, "optimisers", "entropy coefficient", "replay buffer")
    return SeedReport(copied, fresh, () if artefact.has_value else ("V",))


def _parts(policy: Any, artefact: Artefact, prefix: str) -> Iterator[tuple[str, str, Load]]:
    """What is seeded: its name, where the artefact has it, and what takes it in.

    Parameters
    ----------
    prefix : of the policy's weights in the artefact
    """
    if artefact.has_sigma:
        yield "policy", prefix, policy.actor.load_state_dict
    else:
        yield "policy mean", "policy_mean.experts", partial(load_mean, policy.actor.experts)
    yield "critics", "critics", policy.critic.load_state_dict
    yield "target critics", "target_critics", policy.critic_target.load_state_dict
    if policy.reference_value is not None:
        yield "value", "value", policy.reference_value.load_state_dict


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


def _load(load: Load, weights: dict[str, Tensor], name: str) -> int:
    try:
        load(weights)
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
