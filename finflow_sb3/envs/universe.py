"""The universe of each portfolio of a batch: which assets it may hold, and what follows from that.

Without `asset_dropout` all portfolios share the market's universe, and everything here is read
from tables that were made once. With it every episode draws its own, and anchors, equal weights
and the average return are those of the assets that were kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.market.listing import even_weights, tradable_part

__all__ = ["Universes"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Index = NDArray[np.int64]


class Universes:
    """The universes of B portfolios in one market.

    Parameters
    ----------
    market : what the portfolios are in
    n_envs : B
    dropout : chance of an asset to be left out of an episode; 0 keeps all

    Attributes
    ----------
    kept : shape [B, n], the assets of each portfolio's episode, listed by now or not
    """

    def __init__(self, market: ObservedMarket, n_envs: int, dropout: float):
        self.market, self.dropout = market, dropout
        self.kept = np.ones((n_envs, market.layout.n_assets), dtype=bool)
        anchors = market.anchors.weights
        # The anchors of each portfolio's row, which change when a refit day is passed.
        self._refit = np.full(n_envs, -1, dtype=np.int64)
        self._anchors = np.zeros((n_envs, *anchors.shape[1:]))
        self._each = np.arange(n_envs)
        self._log_average = np.log1p(market.equal_weight)
        self._earning = market.prices.earning() if dropout else None

    def draw(self, i: int, rng: np.random.Generator) -> None:
        """A new universe for portfolio i: each asset stays but with chance `dropout`, two do."""
        if not self.dropout:
            return
        drawn = rng.random(self.kept.shape[1])
        self.kept[i] = drawn >= self.dropout
        self.kept[i, np.argsort(drawn)[-2:]] = True

    def tradable(self, rows: Index, which: Index | None = None) -> Bool | None:
        """Assets that these portfolios (all, if not given) may hold until the next close.

        Parameters
        ----------
        rows : shape [B], the row of each portfolio of the batch

        Returns
        -------
        bool, shape [len(which), n]; None where that is all assets on all days
        """
        listed = self.market.tradable
        if listed is None and not self.dropout:
            return None
        kept = self.kept
        if which is not None:
            rows, kept = rows[which], kept[which]
        if listed is None:
            return kept
        return listed[rows] & kept if self.dropout else listed[rows]

    def even_weights(self, rows: Index, which: Index) -> Float:
        """The same of every tradable asset, shape [len(which), n+1]."""
        if self.dropout:
            tradable = self.tradable(rows, which)
            assert tradable is not None
            return even_weights(tradable)
        return np.stack([self.market.even_weights(int(row)) for row in rows[which]])

    def anchors(self, rows: Index, which: Index) -> Float:
        """The anchors of these portfolios' rows, within their universes: [len(which), K, n+1]."""
        anchors: Float = self.market.anchors.at(rows[which])
        return tradable_part(anchors, self.kept[which][:, None]) if self.dropout else anchors

    def all_anchors(self, rows: Index) -> Float:
        """`anchors` of all, copied only where a refit day was passed; shape [B, K, n+1]."""
        if self.dropout:
            return self.anchors(rows, self._each)
        anchors = self.market.anchors
        refit = anchors.index.take(rows)
        moved = np.flatnonzero(refit != self._refit)
        if len(moved):
            self._anchors[moved] = anchors.weights[refit[moved]]
            self._refit = refit
        return self._anchors

    def average_return(self, rows: Index) -> Float:
        """Average return of each portfolio's listed assets on the day that ends now, shape [B]."""
        if self._earning is None:
            return np.asarray(self.market.equal_weight.take(rows))
        earning = self.kept & self._earning[rows]
        total = np.einsum("bn,bn->b", self.market.returns[rows, :-1], earning)
        return np.asarray(total / np.maximum(earning.sum(axis=1), 1))

    def log_average_return(self, rows: Index) -> Float:
        """Logarithm of one plus `average_return`, shape [B]."""
        if self._earning is None:
            return np.asarray(self._log_average.take(rows))
        return np.log1p(self.average_return(rows))
