"""The flat observation as a set of tokens, one for each asset and one for cash.

Nets that share their weights over tokens and pool them do not depend on the number of assets,
and follow any reordering of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from finflow_sb3.market.layout import ObservationLayout

__all__ = ["TokenView", "Tokens", "pooled"]


class Tokens(NamedTuple):
    """An observation, taken apart.

    tokens : [B, n+1, f], cash last. Columns: features of all groups (zero for cash), weight,
        weight in each anchor, weight of the pending order if there is one, and 1 for cash.
    context : [B, c], market block, anchor record, portfolio scalars, cash weight.
    present : [B, n+1], 1 for the tokens of the episode's universe and 0 for the others, which
        are zero and have no part in `pooled`; None where all are in it.
    """

    tokens: Tensor
    context: Tensor
    present: Tensor | None = None

    def every(self, stride: int) -> Tokens:
        """Every `stride`-th observation."""
        present = None if self.present is None else self.present[::stride]
        return Tokens(self.tokens[::stride], self.context[::stride], present)


def pooled(hidden: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and maximum over tokens.

    Parameters
    ----------
    hidden : [..., T, H]
    present : [..., T], of the tokens that count; all if None. Without any both are zero
    """
    if present is None:
        return hidden.mean(dim=-2), hidden.amax(dim=-2)
    inside = present[..., None]
    count = inside.sum(dim=-2)
    mean = (hidden * inside).sum(dim=-2) / count.clamp(min=1.0)
    most = hidden.masked_fill(inside == 0.0, -torch.inf).amax(dim=-2)
    return mean, torch.where(count > 0.0, most, 0.0)


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
        present = self._present(obs) if self.layout.masked else None
        features = nn.functional.pad(torch.cat(groups, dim=2), (0, 0, 0, 1))
        tokens = torch.cat([features, *self._common(obs, batch, present)], dim=2)
        if present is not None:
            tokens = tokens * present[:, :, None]
        weights = obs[:, cut["weights"]]
        context = torch.cat(
            [obs[:, cut["market"]], obs[:, cut["anchor_record"]], obs[:, cut["scalars"]]], dim=1
        )
        return Tokens(tokens, torch.cat([context, weights[:, -1:]], dim=1), present)

    def _present(self, obs: Tensor) -> Tensor:
        """[B, n+1]; cash is always there. Noise on observations makes no asset come or go."""
        inside = (obs[:, self.layout.slices["present"]] > 0.5).to(obs.dtype)
        return nn.functional.pad(inside, (0, 1), value=1.0)

    def _common(self, obs: Tensor, batch: int, present: Tensor | None) -> list[Tensor]:
        """What every expert sees of a token: weights, and whether it is cash."""
        cut = self.layout.slices
        risky = obs[:, cut["anchor_weights"]].reshape(batch, self.k, self.n)
        anchors = torch.cat([risky, 1.0 - risky.sum(dim=2, keepdim=True)], dim=2)
        count: Tensor | int = self.n
        if present is not None:
            anchors = _within(anchors, present)
            count = present[:, :-1].sum(dim=1, keepdim=True)
        every = count if isinstance(count, int) else count[:, :, None]
        parts = [_scaled(obs[:, cut["weights"]], count)[:, :, None]]
        parts.append(_scaled(anchors, every).transpose(1, 2))
        if self.layout.lagged:
            parts.append(_scaled(obs[:, cut["pending"]], count)[:, :, None])
        cash = torch.zeros(self.n + 1, 1, dtype=obs.dtype, device=obs.device)
        cash[-1] = 1.0
        return [*parts, cash.expand(batch, -1, -1)]

    def expert_mask(self) -> Tensor:
        """[number of groups, token_size]: 1 where an expert may look (its group, the common)."""
        mask = torch.zeros(len(self.group_sizes), self.token_size)
        start = 0
        for i, size in enumerate(self.group_sizes):
            mask[i, start : start + size] = 1.0
            start += size
        mask[:, self.n_features :] = 1.0
        return mask


def _scaled(weights: Tensor, count: Tensor | int) -> Tensor:
    """log(1 + n·w): equal weight is 0.69 in any universe, one asset alone log(n + 1)."""
    return torch.log1p(count * weights.clamp(min=0.0))


def _within(anchors: Tensor, present: Tensor) -> Tensor:
    """Anchors [B, K, n+1] of the tokens that are present, scaled to one; cash if none is left."""
    kept = anchors * present[:, None]
    total = kept.sum(dim=2, keepdim=True)
    cash = torch.zeros_like(anchors)
    cash[:, :, -1] = 1.0
    return torch.where(total > 0.0, kept / torch.where(total > 0.0, total, 1.0), cash)
