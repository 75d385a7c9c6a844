"""Policies as one torch module: unscaled features and a portfolio in, target weights out.

The scaler, the networks of all members, the action base and how members are combined are inside,
as `PortfolioBatch.target` and `Ensemble.decide` have them; in float32, which ONNX Runtime computes
in. Trading part of the way, limits and costs are not: they need no network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.observations import CLIP
from finflow_sb3.envs.simplex import DRIFT_FLOOR

__all__ = ["DecisionNetwork"]


class DecisionNetwork(nn.Module):
    """From the inputs of `shapes`, in their order, to the outputs of `outputs`.

    Parameters
    ----------
    policies : one or several, with the environment and the scaler that they share

    Attributes
    ----------
    shapes : by input its shape behind the batch
    outputs : names; `target` [B, n+1] first, cash last; of one policy its `action` [B, A], of
        several their `disagreement` [B]
    """

    def __init__(self, policies: Policies):
        super().__init__()
        layout, env = policies.layout, policies.settings.env_kwargs
        self.layout, self.env = layout, env
        self.partial = policies.settings.market.partial
        self.actions: tuple[Callable[[Tensor], Tensor], ...] = tuple(
            member.action for member in policies.members
        )
        self.median, self.shrinkage = policies.combination == "median", policies.shrinkage
        self._keep("shares", policies.ensemble.weights)
        self.scaled = [*(name for name, _ in layout.groups), "market", "anchor_record"]
        for name in self.scaled:
            self._keep(f"mean_{name}", policies.scaler.means[name])
            self._keep(f"deviation_{name}", policies.scaler.deviations[name])
        self.shapes = self._shapes()
        self.outputs = ("target", "action" if len(self.actions) == 1 else "disagreement")

    def _keep(self, name: str, values: object) -> None:
        self.register_buffer(name, torch.tensor(np.asarray(values), dtype=torch.float32))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        layout, n, k = self.layout, self.layout.n_assets, self.layout.n_anchors
        shapes: dict[str, tuple[int, ...]] = {
            name: (n, len(features)) for name, features in layout.groups
        }
        shapes |= {
            "market": (len(layout.market),),
            "anchor_weights": (k, n + 1),
            "anchor_record": (k, len(layout.record)),
            "weights": (n + 1,),
            "scalars": (len(layout.scalars),),
        }
        if layout.masked:
            shapes["present"] = (n,)
        if layout.lagged:
            shapes["pending"] = (n + 1,)
        if self.partial:
            shapes["tradable"] = (n,)
        return shapes

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.shapes, inputs, strict=True))
        seen = self._observation(given)
        actions = [act(seen) for act in self.actions]
        wanted = torch.stack(
            [self._tradable_part(self._asked_for(a, given), given) for a in actions]
        )
        combined = self._combined(wanted)
        apart = 0.5 * (wanted - combined).abs().sum(dim=2).mean(dim=0)
        target = combined
        if self.shrinkage > 0.0:
            held = given["weights"]
            trust = self._trust(held, combined, apart)[:, None]
            target = self._tradable_part(held + trust * (combined - held), given)
        return target, actions[0] if len(actions) == 1 else apart

    def _observation(self, given: dict[str, Tensor]) -> Tensor:
        """[B, layout.size], in the order of the layout."""
        parts = []
        for name in self.layout.slices:
            block = self._scale(name, given[name]) if name in self.scaled else given[name]
            if name == "anchor_weights":
                block = block[:, :, :-1]  # cash is what is missing to one
            parts.append(block.flatten(start_dim=1))
        return torch.cat(parts, dim=1)

    def _scale(self, name: str, block: Tensor) -> Tensor:
        mean, deviation = getattr(self, f"mean_{name}"), getattr(self, f"deviation_{name}")
        scaled = ((block - mean) / deviation).clamp(-CLIP, CLIP)
        return torch.where(torch.isnan(block), 0.0, scaled) if self.partial else scaled

    def _asked_for(self, action: Tensor, given: dict[str, Tensor]) -> Tensor:
        env, action = self.env, action.clamp(-1.0, 1.0)
        if env.action_base == "anchors":
            k = self.layout.n_anchors
            gates = torch.softmax(env.gate_scale * action[:, :k], dim=1)
            mixed = (gates[:, :, None] * given["anchor_weights"]).sum(dim=1)
            return _normalised(mixed * torch.exp(env.tilt_scale * action[:, k:]))
        if env.action_base == "drift":
            held = given["weights"]
            moved = _normalised(held.clamp(min=DRIFT_FLOOR) * torch.exp(env.drift_scale * action))
            idle = action.abs().amax(dim=1, keepdim=True) == 0.0
            return torch.where(idle, held, moved)
        return torch.softmax(env.softmax_scale * action, dim=1)

    def _tradable_part(self, weights: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Without what is not tradable, scaled to one again; cash if nothing is left."""
        if not self.partial:
            return weights
        free = nn.functional.pad(given["tradable"], (0, 1), value=1.0)
        kept = torch.where(free > 0.5, weights, 0.0)
        total = kept.sum(dim=1, keepdim=True)
        cash = nn.functional.pad(torch.zeros_like(given["tradable"]), (0, 1), value=1.0)
        return torch.where(total > 0.0, kept / torch.where(total > 0.0, total, 1.0), cash)

    def _combined(self, wanted: Tensor) -> Tensor:
        if len(self.actions) == 1:
            return wanted[0]
        if not self.median:
            shares: Tensor = self.shares  # type: ignore[assignment]
            return (shares[:, None, None] * wanted).sum(dim=0)
        count = len(self.actions)
        ordered = torch.sort(wanted, dim=0).values
        return _normalised(0.5 * (ordered[(count - 1) // 2] + ordered[count // 2]))

    def _trust(self, held: Tensor, combined: Tensor, apart: Tensor) -> Tensor:
        distance = 0.5 * (combined - held).abs().sum(dim=1)
        ratio = torch.where(distance > 0.0, apart / torch.where(distance > 0.0, distance, 1.0), 0.0)
        return (1.0 - self.shrinkage * ratio).clamp(min=0.0)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)
