"""From an observation to target weights, in torch: what gradients go through.

The same map as `PortfolioBatch.target` on the policy's action. What it takes from the portfolio's
state beside the observation stays as it is: the anchors' weights A_k, the held weights w⁻ and
which assets are tradable. The observation has them too, where the policy's network sees them;
gradients reach that copy alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.simplex import DRIFT_FLOOR

__all__ = ["TargetMap"]


class TargetMap:
    """Observations [B, D] → target weights [B, n+1] (float64), in the present state of a batch.

    Parameters
    ----------
    batch : of one portfolio

    Notes
    -----
    Of several policies it is what they want together before any shrinkage: the mean of their
    weights, or the median scaled to one again.
    """

    def __init__(self, policies: Policies, batch: PortfolioBatch):
        market, row = batch.market, int(batch.row[0])
        self.env, self.policies = batch.settings, policies
        self.anchors = torch.from_numpy(market.anchors.at(row).copy())
        self.held = torch.from_numpy(batch.held[0].copy())
        self.free: Tensor | None = None
        if market.tradable is not None:
            tradable = torch.from_numpy(market.tradable[row].copy())
            self.free = torch.cat([tradable, torch.ones(1, dtype=torch.bool)])
        self.shares = torch.from_numpy(policies.ensemble.weights)

    def __call__(self, observations: Tensor) -> Tensor:
        each = [self.member(i, observations) for i in range(len(self.policies.members))]
        if len(each) == 1:
            return each[0]
        stacked = torch.stack(each)
        if self.policies.combination != "median":
            return torch.einsum("m,mbn->bn", self.shares, stacked)
        # The mean of the middle two where members are even in number, as numpy has it.
        middle = torch.quantile(stacked, 0.5, dim=0)
        return middle / middle.sum(dim=1, keepdim=True)

    def member(self, place: int, observations: Tensor) -> Tensor:
        """What one member wants by itself."""
        action = self.policies.members[place].action(observations.to(torch.float32))
        return self._tradable_part(self._asked_for(action.to(torch.float64)))

    def _asked_for(self, action: Tensor) -> Tensor:
        env = self.env
        if env.action_base == "anchors":
            k = len(self.anchors)
            gates = torch.softmax(env.gate_scale * action[:, :k], dim=1)
            power = torch.exp(env.tilt_scale * action[:, k:])
            return _normalised(power * (gates @ self.anchors))
        if env.action_base == "drift":
            power = torch.exp(env.drift_scale * action)
            moved = _normalised(self.held.clamp(min=DRIFT_FLOOR) * power)
            idle = (action == 0.0).all(dim=1, keepdim=True)
            return torch.where(idle, self.held, moved)
        return torch.softmax(env.softmax_scale * action, dim=1)

    def _tradable_part(self, weights: Tensor) -> Tensor:
        if self.free is None:
            return weights
        kept = torch.where(self.free, weights, 0.0)
        if bool(torch.equal(kept, weights)):
            return weights
        return _normalised(kept)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)
