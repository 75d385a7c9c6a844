"""The flat observation as a set of tokens, one for each asset and one for cash.

Nets that share their weights over tokens and pool them do not depend on the number of assets,
and follow any reordering of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from finflow_sb3.market.layout import ObservationLayout

__all__ = ["TokenView", "Tokens"]


class Tokens(NamedTuple):
    """An observation, taken apart.

    tokens : [B, n+1, f], cash last. Columns: features of all groups (zero for cash), weight,
        weight in each anchor, weight of the pending order if there is one, and 1 for cash.
    context : [B, c], market block, anchor record, portfolio scalars, cash weight.
    """

    tokens: Tensor
    context: Tensor

    def every(self, stride: int) -> Tokens:
        """Every `stride`-th observation."""
        return Tokens(self.tokens[::stride], self.context[::stride])


class TokenView(nn.Module):
    """Takes observations apart as `layout` says. Has no parameters."""

    def __init__(self, layout: ObservationLayout):
        super().__init__()
        self.layout = layout
        self.n, self.k = layout.n_assets, layout.n_anchors
        self.group_sizes = [len(names) for _, names in layout.groups]
        self.n_features = sum(self.group_sizes)
        self.n_common = 1 + self.k + int(layout.lagged) + 1
        self.token_size = self.n_features + self.n_common
        self.record_size = self.k * len(layout.record)
        self.context_size = len(layout.market) + self.record_size + len(layout.scalars) + 1

    def forward(self, obs: Tensor) -> Tensor:
        raise RuntimeError("call view() to take observations apart")

    def view(self, obs: Tensor | Tokens) -> Tokens:
        """Tokens and context of observations [B, layout.size].

        Networks that see the same observations can share what they are taken apart into.
        """
        if isinstance(obs, Tokens):
            return obs
        cut = self.layout.slices
        batch = obs.shape[0]
        groups = [
            obs[:, cut[name]].reshape(batch, self.n, size)
            for (name, _), size in zip(self.layout.groups, self.group_sizes, strict=True)
        ]
        features = nn.functional.pad(torch.cat(groups, dim=2), (0, 0, 0, 1))
        tokens = torch.cat([features, *self._common(obs, batch)], dim=2)
        weights = obs[:, cut["weights"]]
        context = torch.cat(
            [obs[:, cut["market"]], obs[:, cut["anchor_record"]], obs[:, cut["scalars"]]], dim=1
        )
        return Tokens(tokens, torch.cat([context, weights[:, -1:]], dim=1))

    def _common(self, obs: Tensor, batch: int) -> list[Tensor]:
        """What every expert sees of a token: weights, and whether it is cash."""
        cut = self.layout.slices
        risky = obs[:, cut["anchor_weights"]].reshape(batch, self.k, self.n)
        anchors = torch.cat([risky, 1.0 - risky.sum(dim=2, keepdim=True)], dim=2)
        parts = [self._scaled(obs[:, cut["weights"]])[:, :, None]]
        parts.append(self._scaled(anchors).transpose(1, 2))
        if self.layout.lagged:
            parts.append(self._scaled(obs[:, cut["pending"]])[:, :, None])
        cash = torch.zeros(self.n + 1, 1, dtype=obs.dtype, device=obs.device)
        cash[-1] = 1.0
        return [*parts, cash.expand(batch, -1, -1)]

    def _scaled(self, weights: Tensor) -> Tensor:
        """log(1 + n·w): equal weight is 0.69 in any universe, one asset alone log(n + 1)."""
        return torch.log1p(self.n * weights.clamp(min=0.0))

    def expert_mask(self) -> Tensor:
        """[number of groups, token_size]: 1 where an expert may look (its group, the common)."""
        mask = torch.zeros(len(self.group_sizes), self.token_size)
        start = 0
        for i, size in enumerate(self.group_sizes):
            mask[i, start : start + size] = 1.0
            start += size
        mask[:, self.n_features :] = 1.0
        return mask
