"""Quantile critics: C networks with N quantiles each, as one batched module.

Each takes an observation apart from an action: what only depends on the observation is
computed once, and any number of actions is scored on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.hidden import PLAIN, Hidden
from finflow_sb3.nets.stacked import StackedLinear
from finflow_sb3.nets.tokens import Tokens, TokenView, pooled
from finflow_sb3.network_sizes import NetworkSizes, Regularisation

__all__ = ["FlatEncoder", "SetEncoder", "ValueEncoder", "make_encoder"]


class FlatEncoder(nn.Module):
    """C multi-layer perceptrons on (features, action), without the last linear layer.

    Parameters
    ----------
    stack : C
    hidden : widths of the hidden layers
    form : dropout and layer norm of hidden layers
    """

    def __init__(
        self,
        stack: int,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int] = (256, 256),
        activation: type[nn.Module] = nn.ReLU,
        form: Regularisation = PLAIN,
    ):
        super().__init__()
        self.stack, self.obs_size = stack, obs_size
        sizes = [obs_size + action_size, *hidden]
        self.layers = nn.ModuleList(StackedLinear(stack, a, b) for a, b in pairwise(sizes))
        self.after = nn.ModuleList(Hidden(b, stack, form, activation) for b in sizes[1:])
        self.out_size = sizes[-1]

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Hidden state [C, B·M, H] for observations [B, D] and actions [B, M, A]."""
        hidden = self._first(obs, actions)
        for layer, after in zip(self.layers[1:], self.after, strict=False):
            hidden = layer(after(hidden))
        return self.after[-1](hidden) if len(self.after) else hidden

    def _first(self, obs: Tensor, actions: Tensor) -> Tensor:
        """The first linear layer, [C, B·M, H]; its input where there are no layers.

        Where several actions share an observation, or only the action gets a gradient, it is
        taken apart into an observation's half, computed once, and an action's half.
        """
        batch, count, _ = actions.shape
        if not len(self.layers):
            both = torch.cat([obs[:, None].expand(-1, count, -1), actions], dim=2)
            return both.reshape(1, batch * count, -1).expand(self.stack, -1, -1)
        first = self.layers[0]
        assert isinstance(first, StackedLinear)
        if count == 1 and first.weight.requires_grad:
            both = torch.cat([obs, actions[:, 0]], dim=1)
            joined: Tensor = first(both.expand(self.stack, -1, -1))
            return joined
        seen, done = first.weight[:, : self.obs_size], first.weight[:, self.obs_size :]
        from_obs = torch.baddbmm(first.bias, obs.expand(self.stack, -1, -1), seen)
        flat = actions.reshape(1, batch * count, -1).expand(self.stack, -1, -1)
        if count == 1:
            return torch.baddbmm(from_obs, flat, done)
        from_action = (flat @ done).view(self.stack, batch, count, -1)
        return (from_obs[:, :, None] + from_action).view(self.stack, batch * count, -1)


class SetEncoder(nn.Module):
    """C encoders over tokens: (features, weights, tilt) of each asset, mean- and max-pooled,
    joined with the context and the gate's action; then a perceptron. No last linear layer.
    """

    def __init__(
        self,
        stack: int,
        layout: ObservationLayout,
        token_hidden: int = 32,
        hidden: Sequence[int] = (128, 128),
        form: Regularisation = PLAIN,
    ):
        super().__init__()
        self.tokens = TokenView(layout)
        view = self.tokens
        self.stack = stack
        self.n_gates = layout.n_anchors if layout.action_base == "anchors" else 0
        self.embed = StackedLinear(stack, view.token_size, token_hidden)
        self.tilt = nn.Parameter(torch.empty(stack, 1, 1, 1, token_hidden).uniform_(-0.2, 0.2))
        sizes = [2 * token_hidden + view.context_size + self.n_gates, *hidden]
        self.context_start = 2 * token_hidden
        self.embedded = Hidden(token_hidden, stack, form)
        self.layers = nn.ModuleList(StackedLinear(stack, a, b) for a, b in pairwise(sizes))
        self.after = nn.ModuleList(Hidden(b, stack, form) for b in sizes[1:])
        self.out_size = sizes[-1]

    def forward(self, obs: Tensor | Tokens, actions: Tensor) -> Tensor:
        """Hidden state [C, B·M, H] for observations [B, D] and actions [B, M, A]."""
        tokens, context, present = self.tokens.view(obs)
        c, (batch, count, _) = self.stack, actions.shape
        n_tokens = tokens.shape[1]
        flat = tokens.reshape(1, batch * n_tokens, -1).expand(c, -1, -1)
        seen = self.embed(flat).view(c, batch, 1, n_tokens, -1)
        gates, tilts = actions[:, :, : self.n_gates], actions[:, :, self.n_gates :]
        hidden = self.embedded(torch.addcmul(seen, tilts[None, :, :, :, None], self.tilt))
        inside = None if present is None else present[None, :, None].expand(c, -1, count, -1)
        summary = torch.cat(pooled(hidden, inside), dim=3)
        around = torch.cat([context[:, None].expand(-1, count, -1), gates], dim=2)
        joined = torch.cat([summary, around.expand(c, -1, -1, -1)], dim=3)
        out: Tensor = joined.view(c, batch * count, -1)
        for layer, after in zip(self.layers, self.after, strict=True):
            out = after(layer(out))
        return out


class ValueEncoder(nn.Module):
    """A state encoder for V: `SetEncoder` without an action, or a perceptron; C = 1."""

    def __init__(self, encoder: FlatEncoder | SetEncoder, action_size: int):
        super().__init__()
        self.encoder = encoder
        self.action_size = action_size
        self.out_size = encoder.out_size

    def forward(self, obs: Tensor | Tokens) -> Tensor:
        """Hidden state [B, H]. The action's inputs are held at zero."""
        like = obs.context if isinstance(obs, Tokens) else obs
        nothing = like.new_zeros(like.shape[0], 1, self.action_size)
        hidden: Tensor = self.encoder(obs, nothing)
        return hidden[0]


def make_encoder(
    stack: int,
    obs_size: int,
    action_size: int,
    layout: ObservationLayout | None,
    sizes: NetworkSizes,
) -> FlatEncoder | SetEncoder:
    """The critics' encoder for a layout, or for flat observations where there is none."""
    hidden, form = sizes.critic_hidden, sizes.regularisation
    if layout is None:
        return FlatEncoder(stack, obs_size, action_size, hidden, form=form)
    return SetEncoder(stack, layout, sizes.token_hidden, hidden, form)
