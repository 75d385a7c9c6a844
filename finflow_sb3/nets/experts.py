"""The five-expert policy network: a soft mixture behind a gate.

Expert k scores every asset from the features of its group; the gate says how much each expert
(and, in action base `anchors`, each anchor) is listened to. Mean and log σ of the squashed
Gaussian are sums over experts weighted by the gate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.hidden import PLAIN, Hidden
from finflow_sb3.nets.stacked import StackedLinear
from finflow_sb3.nets.tokens import Tokens, TokenView, pooled
from finflow_sb3.network_sizes import NetworkSizes, Regularisation

__all__ = ["Components", "FlatExperts", "LayoutExperts", "PolicyOutput", "make_experts"]

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
INITIAL_LOG_STD = -1.0


class Components(NamedTuple):
    """Gaussians of a full mixture: means, log_stds [B, K, A]; log_weights [B, K]."""

    means: Tensor
    log_stds: Tensor
    log_weights: Tensor


class PolicyOutput(NamedTuple):
    """mean, log_std : [B, A], before the tanh, gated sums over experts; gates : [B, K], summing
    to one, None where there are no experts; components : the experts' own Gaussians where the
    mixture is full. Its mean is `mean` too.
    """

    mean: Tensor
    log_std: Tensor
    gates: Tensor | None = None
    components: Components | None = None


def _start_at_zero(layer: nn.Linear | StackedLinear, n_means: int) -> None:
    """The last layer of a head with `n_means` means and as many log σ: mean 0, σ e⁻¹.

    The untrained policy is then the zero action: the anchors' plain average.
    """
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias.zero_()
        layer.bias[..., n_means:] = INITIAL_LOG_STD
        if isinstance(layer, StackedLinear):
            layer.weight[..., :n_means] = 0.0
        else:
            layer.weight[:n_means] = 0.0


class LayoutExperts(nn.Module):
    """Experts over tokens; the same parameters for any number of assets, in any order.

    Parameters
    ----------
    layout : what stands where in observations
    expert_hidden : width of each expert's two layers
    gate_hidden : width of the gate's layers and of its asset embedding
    gate_scale : κ_g of the environment; the gate's experts are weighted by softmax(κ_g·a)
        of its deterministic action a, as the environment weights the anchors
    mixture : `soft` or `full`. The parameters are the same; in `full` component k has expert
        k's tilts, and all have the gate's own mean and σ in the action's gate part
    form : dropout and layer norm of hidden layers
    """

    def __init__(
        self,
        layout: ObservationLayout,
        expert_hidden: int = 16,
        gate_hidden: int = 32,
        gate_scale: float = 5.0,
        mixture: str = "soft",
        form: Regularisation = PLAIN,
    ):
        super().__init__()
        self.full = mixture == "full"
        self.tokens = TokenView(layout)
        view = self.tokens
        k = len(layout.groups)
        self.n_experts, self.hidden, self.gate_scale = k, expert_hidden, gate_scale
        self.acts_by_gate = layout.action_base == "anchors"
        self.look = nn.Linear(view.token_size, k * expert_hidden)
        self.look_context = nn.Linear(view.context_size, k * expert_hidden, bias=False)
        self.looked = Hidden(expert_hidden, k, form)
        self.think = StackedLinear(k, expert_hidden, expert_hidden)
        self.thought = Hidden(expert_hidden, k, form)
        self.score = StackedLinear(k, expert_hidden, 2)
        self.embed = nn.Linear(view.token_size, gate_hidden)
        self.embedded = Hidden(gate_hidden, None, form)
        self.gate_body = nn.Linear(view.context_size + 2 * gate_hidden, gate_hidden)
        self.gated = Hidden(gate_hidden, None, form)
        self.gate_head = nn.Linear(gate_hidden, 2 * k)
        # Last layers by the number of means that they give, as many log σ behind them.
        self.heads = {"score": 1, "gate_head": k}
        # Each expert's first layer sees its own group of features: the rest is masked.
        mask = view.expert_mask().repeat_interleave(expert_hidden, dim=0)
        self.register_buffer("mask", mask, persistent=False)
        _start_at_zero(self.score, 1)
        _start_at_zero(self.gate_head, k)

    def view(self, obs: Tensor | Tokens) -> Tokens:
        """Observations taken apart, for all networks of the same layout that see them."""
        return self.tokens.view(obs)

    def forward(self, obs: Tensor | Tokens) -> PolicyOutput:
        tokens, context, present = self.tokens.view(obs)
        logits, gate_log_std = self._gate(tokens, context, present).chunk(2, dim=1)
        log_gates = torch.log_softmax(self.gate_scale * torch.tanh(logits), dim=1)
        gates = log_gates.exp()
        scores = self._scores(tokens, context)
        mixed = torch.einsum("bk,kbto->bto", gates, scores)
        mean, log_std = mixed[:, :, 0], mixed[:, :, 1]
        if self.acts_by_gate:
            mean = torch.cat([logits, mean], dim=1)
            log_std = torch.cat([gate_log_std, log_std], dim=1)
        components = self._components(scores, logits, gate_log_std, log_gates)
        return PolicyOutput(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), gates, components)

    def voices(self, obs: Tensor | Tokens) -> tuple[Tensor, Tensor]:
        """Who says what: gates [B, K], and each expert's own tilt means [B, K, n+1].

        The policy's tilts are tanh(Σ_k g_k·μ_k).
        """
        tokens, context, present = self.tokens.view(obs)
        logits, _ = self._gate(tokens, context, present).chunk(2, dim=1)
        gates = torch.softmax(self.gate_scale * torch.tanh(logits), dim=1)
        return gates, self._scores(tokens, context)[..., 0].transpose(0, 1)

    def _components(
        self, scores: Tensor, logits: Tensor, gate_log_std: Tensor, log_gates: Tensor
    ) -> Components | None:
        if not self.full:
            return None
        each = scores.transpose(0, 1)
        means, log_stds = each[:, :, :, 0], each[:, :, :, 1]
        if self.acts_by_gate:
            means = torch.cat([_for_each(logits, self.n_experts), means], dim=2)
            log_stds = torch.cat([_for_each(gate_log_std, self.n_experts), log_stds], dim=2)
        return Components(means, log_stds.clamp(LOG_STD_MIN, LOG_STD_MAX), log_gates)

    def _scores(self, tokens: Tensor, context: Tensor) -> Tensor:
        """[K, B, n+1, 2]: tilt mean and log σ of every expert for every token."""
        mask: Any = self.mask
        (batch, count, _), k, width = tokens.shape, self.n_experts, self.hidden
        # Experts come first from the first layer on: nothing has to be moved between the layers.
        weight = (self.look.weight * mask).view(k, width, -1).transpose(1, 2)
        flat = tokens.reshape(1, batch * count, -1).expand(k, -1, -1)
        seen = torch.bmm(flat, weight).view(k, batch, count, width)
        around = (self.look_context(context) + self.look.bias).view(batch, k, width)
        hidden = self.looked(seen + around.transpose(0, 1)[:, :, None])
        hidden = hidden.view(k, batch * count, width)
        scores: Tensor = self.score(self.thought(self.think(hidden)))
        return scores.view(k, batch, count, 2)

    def _gate(self, tokens: Tensor, context: Tensor, present: Tensor | None) -> Tensor:
        """[B, 2K]: logits and log σ of the gate."""
        assets = self.embedded(self.embed(tokens[:, :-1]))
        inside = None if present is None else present[:, :-1]
        seen = torch.cat([*pooled(assets, inside), context], dim=1)
        head: Tensor = self.gate_head(self.gated(self.gate_body(seen)))
        return head


class FlatExperts(nn.Module):
    """Experts for environments without a layout: MLPs on the whole observation."""

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        n_experts: int = 5,
        expert_hidden: int = 64,
        gate_hidden: int = 64,
        mixture: str = "soft",
        form: Regularisation = PLAIN,
    ):
        super().__init__()
        self.n_experts, self.full = n_experts, mixture == "full"
        self.first = StackedLinear(n_experts, obs_size, expert_hidden)
        self.looked = Hidden(expert_hidden, n_experts, form)
        self.second = StackedLinear(n_experts, expert_hidden, expert_hidden)
        self.thought = Hidden(expert_hidden, n_experts, form)
        self.head = StackedLinear(n_experts, expert_hidden, 2 * action_size)
        self.heads = {"head": action_size}
        self.gate = nn.Sequential(
            nn.Linear(obs_size, gate_hidden),
            Hidden(gate_hidden, None, form),
            nn.Linear(gate_hidden, n_experts),
        )

    def forward(self, obs: Tensor) -> PolicyOutput:
        shared = obs[None].expand(self.n_experts, -1, -1)
        each = self.head(self.thought(self.second(self.looked(self.first(shared)))))
        log_gates = torch.log_softmax(self.gate(obs), dim=1)
        gates = log_gates.exp()
        mean, log_std = torch.einsum("bk,kbo->bo", gates, each).chunk(2, dim=1)
        components = None
        if self.full:
            means, log_stds = each.transpose(0, 1).chunk(2, dim=2)
            log_stds = log_stds.clamp(LOG_STD_MIN, LOG_STD_MAX)
            components = Components(means, log_stds, log_gates)
        return PolicyOutput(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX), gates, components)


def _for_each(x: Tensor, k: int) -> Tensor:
    """[B, A] → [B, K, A], the same for every component."""
    return x[:, None].expand(-1, k, -1)


def make_experts(
    obs_size: int,
    action_size: int,
    layout: ObservationLayout | None,
    sizes: NetworkSizes,
    gate_scale: float = 5.0,
) -> LayoutExperts | FlatExperts:
    """The policy network for a layout, or for flat observations where there is none."""
    form = sizes.regularisation
    if layout is not None:
        return LayoutExperts(
            layout, sizes.expert_hidden, sizes.gate_hidden, gate_scale, sizes.mixture, form
        )
    return FlatExperts(
        obs_size,
        action_size,
        expert_hidden=sizes.expert_hidden,
        gate_hidden=sizes.gate_hidden,
        mixture=sizes.mixture,
        form=form,
    )
