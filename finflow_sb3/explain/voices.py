"""Who spoke, and how loud: experts behind their gate, and the anchors that stand for them.

In action base `anchors` a member's target is ∝ (Σ_k g_k·A_k)·exp(κ_t·tanh(Σ_k g_k·μ_k)): g_k is
what expert k and anchor k are listened to, μ_k are the expert's own tilts. A voice's loudness is
the part of the portfolio that lies elsewhere when it falls silent, half the sum of absolute
differences of weights: an anchor is left out of the mixture and the rest scaled to one, an
expert's part g_k·μ_k is left out of the tilts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.simplex import drift_target, softmax_target, tilted_mixture
from finflow_sb3.nets.experts import LayoutExperts
from finflow_sb3.training.trained import TrainedPolicy

__all__ = ["AnchorVoices", "ExpertVoices", "Voice", "hear"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class AnchorVoices:
    """The anchors in one member's decision; K of them.

    Attributes
    ----------
    names : K
    gates : shape [K], summing to one
    weights : what each anchor holds, shape [K, n+1]
    loudness : shape [K]
    """

    names: tuple[str, ...]
    gates: Float
    weights: Float
    loudness: Float


@dataclass(frozen=True)
class ExpertVoices:
    """The experts in one member's decision; K of them.

    Attributes
    ----------
    names : K, after the features that each sees
    gates : shape [K], summing to one
    tilts : g_k·μ_k, shape [K, n+1], which add up to the policy's tilts before their tanh
    loudness : shape [K]
    """

    names: tuple[str, ...]
    gates: Float
    tilts: Float
    loudness: Float


@dataclass(frozen=True)
class Voice:
    """One member's decision, taken apart.

    Attributes
    ----------
    name : its algorithm
    share : how much it counts in a mean of members
    target : what it wants by itself, shape [n+1]
    anchors : None in other action bases than `anchors`
    experts : None where the policy's network has none
    """

    name: str
    share: float
    target: Float
    anchors: AnchorVoices | None
    experts: ExpertVoices | None


def hear(
    policies: Policies, batch: PortfolioBatch, members: Float, gates: Float | None, shares: Float
) -> tuple[Voice, ...]:
    """Every member's voice in the batch's present state.

    Parameters
    ----------
    batch : of one portfolio
    members, gates, shares : as in `Asked`
    """
    observation = torch.from_numpy(batch.observations())
    found = []
    for i, member in enumerate(policies.members):
        with torch.no_grad():
            action = member.action(observation)[0].numpy().astype(np.float64)
        anchors = None if gates is None else _anchors(batch, gates[i], action)
        found.append(
            Voice(
                name=member.name,
                share=float(shares[i]),
                target=members[i],
                anchors=anchors,
                experts=_experts(member, batch, observation, action),
            )
        )
    return tuple(found)


def _anchors(batch: PortfolioBatch, gates: Float, action: Float) -> AnchorVoices:
    market, k = batch.market, len(gates)
    weights = market.anchors.at(int(batch.row[0]))
    # The gates without each anchor in turn; where it alone was heard, the others share evenly.
    without = np.where(np.eye(k) == 1.0, 0.0, gates)
    left = without.sum(axis=1, keepdims=True)
    even = (1.0 - np.eye(k)) / max(k - 1, 1)
    without = np.where(left > 0.0, without / np.where(left > 0.0, left, 1.0), even)
    every = np.concatenate([gates[None], without])
    tilts = np.broadcast_to(action[k:], (k + 1, len(action) - k))
    mixed = tilted_mixture(
        every, np.broadcast_to(weights, (k + 1, *weights.shape)), tilts, batch.settings.tilt_scale
    )
    return AnchorVoices(market.anchors.names, gates, weights, _apart(batch, mixed))


def _experts(
    member: TrainedPolicy, batch: PortfolioBatch, observation: torch.Tensor, action: Float
) -> ExpertVoices | None:
    network: LayoutExperts | None = member.experts
    if network is None:
        return None
    with torch.no_grad():
        shares, means = network.voices(observation)
    gates, tilts = shares[0].numpy().astype(np.float64), means[0].numpy().astype(np.float64)
    spoken = gates[:, None] * tilts
    total = spoken.sum(axis=0)
    without = np.concatenate([total[None], total - spoken])
    names = tuple(name for name, _ in member.layout.groups)
    targets = _tilted(batch, action[: len(action) - len(total)], np.tanh(without))
    return ExpertVoices(names, gates, spoken, _apart(batch, targets))


def _tilted(batch: PortfolioBatch, gate: Float, tilts: Float) -> Float:
    """Targets [V, n+1] of one gate action [K or 0] with each of `tilts` [V, n+1]."""
    env: EnvSettings = batch.settings
    count = len(tilts)
    if env.action_base == "anchors":
        weights = batch.market.anchors.at(int(batch.row[0]))
        power = np.exp(env.gate_scale * gate)
        gates = np.broadcast_to(power / power.sum(), (count, len(gate)))
        anchors = np.broadcast_to(weights, (count, *weights.shape))
        return tilted_mixture(gates, anchors, tilts, env.tilt_scale)
    if env.action_base == "drift":
        return drift_target(tilts, np.repeat(batch.held, count, axis=0), env.drift_scale)
    return softmax_target(tilts, env.softmax_scale)


def _apart(batch: PortfolioBatch, targets: Float) -> Float:
    """Half the absolute difference of each target but the first from that; tradable parts."""
    kept = np.concatenate([batch.tradable_part(each[None]) for each in targets])
    return np.asarray(0.5 * np.abs(kept[1:] - kept[0]).sum(axis=1))
