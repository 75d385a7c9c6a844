"""Known allocation rules, whose episodes are the offline data.

A rule maps what is known at a row to target weights; all members of a batch that follow it are
computed together. Rules read prices at or before the row only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import BEHAVIOURS
from finflow_sb3.envs.batch import PortfolioBatch

__all__ = ["RuleBook"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]

GATE_STEP = 0.15
TILT = 0.5


class RuleBook:
    """The rules of a batch of episodes: which portfolio follows which, with what parameters.

    Parameters
    ----------
    batch : the portfolios
    rules : shape [B], index into `BEHAVIOURS` of each portfolio's rule
    rng : draws the rules' parameters and their walks
    """

    def __init__(self, batch: PortfolioBatch, rules: Int, rng: np.random.Generator):
        self.batch, self.rules, self.rng = batch, rules, rng
        k = len(batch.market.anchors.names)
        b = batch.n_envs
        self.anchor = rng.integers(k, size=b)
        self.mixture = rng.dirichlet(np.ones(k), size=b)
        self.logits = rng.normal(0.0, 1.0, size=(b, k))
        self.strength = rng.uniform(0.2, 1.0, size=b)
        self.cash = rng.uniform(0.3, 0.9, size=b)
        log_close = np.log(batch.market.prices.close)
        self.slow = _standard(_trailing(log_close, 252, 21))
        self.fast = _standard(_trailing(log_close, 21, 0))
        self._targets: dict[str, Callable[[Int], Float]] = {
            "anchor": self._anchor,
            "mixture": self._mixture,
            "gate_walk": self._gate_walk,
            "momentum_tilt": self._momentum_tilt,
            "contrarian": self._contrarian,
            "equal_weight": self._equal_weight,
            "buy_and_hold": self._buy_and_hold,
            "cash_heavy": self._cash_heavy,
        }

    def targets(self) -> Float:
        """Target weights [B, n+1] of every portfolio's rule at its present row."""
        out = np.empty_like(self.batch.held)
        for index, name in enumerate(BEHAVIOURS):
            members = np.flatnonzero(self.rules == index)
            if len(members):
                out[members] = self._targets[name](members)
        return out

    def _anchors(self, members: Int) -> Float:
        return self.batch.market.anchors.at(self.batch.row[members])

    def _mixed(self, members: Int, shares: Float) -> Float:
        return np.asarray((shares[:, :, None] * self._anchors(members)).sum(axis=1))

    def _anchor(self, members: Int) -> Float:
        return self._anchors(members)[np.arange(len(members)), self.anchor[members]]

    def _mixture(self, members: Int) -> Float:
        return self._mixed(members, self.mixture[members])

    def _gate_walk(self, members: Int) -> Float:
        step = self.rng.normal(0.0, GATE_STEP, size=(len(members), self.logits.shape[1]))
        self.logits[members] = 0.995 * self.logits[members] + step
        shares = np.exp(self.logits[members])
        return self._mixed(members, shares / shares.sum(axis=1, keepdims=True))

    def _tilted(self, members: Int, scores: Float) -> Float:
        """The anchors' average, tilted by scores of the assets."""
        average = self._anchors(members).mean(axis=1)
        power = TILT * self.strength[members, None] * scores
        average[:, :-1] *= np.exp(power)
        return np.asarray(average / average.sum(axis=1, keepdims=True))

    def _momentum_tilt(self, members: Int) -> Float:
        return self._tilted(members, self.slow[self.batch.row[members]])

    def _contrarian(self, members: Int) -> Float:
        return self._tilted(members, -self.fast[self.batch.row[members]])

    def _equal_weight(self, members: Int) -> Float:
        n = self.batch.held.shape[1] - 1
        return np.tile(np.append(np.full(n, 1.0 / n), 0.0), (len(members), 1))

    def _buy_and_hold(self, members: Int) -> Float:
        return self.batch.held[members]

    def _cash_heavy(self, members: Int) -> Float:
        invested = self._anchors(members).mean(axis=1) * (1.0 - self.cash[members, None])
        invested[:, -1] += self.cash[members]
        return np.asarray(invested)


def _trailing(log_close: Float, window: int, skip: int) -> Float:
    """Log return from t−window to t−skip, shape [T, n]; zero where there is no such past."""
    out = np.zeros_like(log_close)
    out[window:] = log_close[window - skip : len(log_close) - skip] - log_close[:-window]
    return out


def _standard(scores: Float) -> Float:
    """Scores of each row centred and scaled over assets, within ±1."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    deviation = np.maximum(centred.std(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.clip(centred / (2.0 * deviation), -1.0, 1.0))
