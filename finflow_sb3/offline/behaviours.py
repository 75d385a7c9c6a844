"""Known allocation rules, whose episodes are the offline data.

A rule maps what is known at a row to target weights; all members of a batch that follow it are
computed together. Rules read prices at or before the row only. A rule is added by writing it
here, with its name in `config.BEHAVIOURS`; a user's own come from `offline.own_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import BEHAVIOURS
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.offline.own_rules import OwnRule

__all__ = ["RULES", "RuleBook"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Rule = Callable[["RuleBook", Int], Float]
"""Target weights [M, n+1] of M members of a batch, who are given by their places in it."""

GATE_STEP = 0.15
TILT = 0.5

RULES: dict[str, Rule] = {}
"""The rules by the name that settings call them by."""


def rule(function: Rule) -> Rule:
    """Have a rule under its own name in `RULES`."""
    RULES[function.__name__] = function
    return function


class RuleBook:
    """The rules of a batch of episodes: which portfolio follows which, with what parameters.

    Parameters
    ----------
    batch : the portfolios
    rules : shape [B], index into `BEHAVIOURS`, followed by `own`, of each portfolio's rule
    rng : draws the rules' parameters and their walks
    own : rules of the user's own
    """

    def __init__(
        self,
        batch: PortfolioBatch,
        rules: Int,
        rng: np.random.Generator,
        own: Sequence[OwnRule] = (),
    ):
        self.batch, self.rules, self.rng, self.own = batch, rules, rng, tuple(own)
        k = len(batch.market.anchors.names)
        b = batch.n_envs
        self.anchor = rng.integers(k, size=b)
        self.mixture = rng.dirichlet(np.ones(k), size=b)
        self.logits = rng.normal(0.0, 1.0, size=(b, k))
        self.strength = rng.uniform(0.2, 1.0, size=b)
        self.cash = rng.uniform(0.3, 0.9, size=b)
        log_close = np.log(batch.market.prices.close)
        among = batch.market.tradable
        self.slow = _standard(_trailing(log_close, 252, 21), among)
        self.fast = _standard(_trailing(log_close, 21, 0), among)

    def targets(self) -> Float:
        """Target weights [B, n+1] of every portfolio's rule at its present row."""
        out = np.empty_like(self.batch.held)
        for index, name in enumerate(BEHAVIOURS):
            members = np.flatnonzero(self.rules == index)
            if len(members):
                out[members] = RULES[name](self, members)
        for index, own in enumerate(self.own, start=len(BEHAVIOURS)):
            for member in np.flatnonzero(self.rules == index):
                out[member] = own.target(self.batch, int(member))
        return out

    def anchors(self, members: Int) -> Float:
        """Every anchor's weights at the members' rows, shape [M, K, n+1]."""
        return self.batch.anchors(members)

    def mixed(self, members: Int, shares: Float) -> Float:
        """Mixtures of the anchors by shares [M, K]."""
        return np.asarray((shares[:, :, None] * self.anchors(members)).sum(axis=1))

    def tilted(self, members: Int, scores: Float) -> Float:
        """The anchors' average, tilted by scores [M, n] of the assets."""
        average = self.anchors(members).mean(axis=1)
        power = TILT * self.strength[members, None] * scores
        average[:, :-1] *= np.exp(power)
        return np.asarray(average / average.sum(axis=1, keepdims=True))


@rule
def anchor(book: RuleBook, members: Int) -> Float:
    """One anchor alone, drawn for each episode."""
    return book.anchors(members)[np.arange(len(members)), book.anchor[members]]


@rule
def mixture(book: RuleBook, members: Int) -> Float:
    """A mixture of the anchors, drawn for each episode."""
    return book.mixed(members, book.mixture[members])


@rule
def gate_walk(book: RuleBook, members: Int) -> Float:
    """A mixture of the anchors that changes slowly, by chance."""
    step = book.rng.normal(0.0, GATE_STEP, size=(len(members), book.logits.shape[1]))
    book.logits[members] = 0.995 * book.logits[members] + step
    shares = np.exp(book.logits[members])
    return book.mixed(members, shares / shares.sum(axis=1, keepdims=True))


@rule
def momentum_tilt(book: RuleBook, members: Int) -> Float:
    """More of what rose over twelve months but the last."""
    return book.tilted(members, book.slow[book.batch.row[members]])


@rule
def contrarian(book: RuleBook, members: Int) -> Float:
    """Less of what rose over the last month."""
    return book.tilted(members, -book.fast[book.batch.row[members]])


@rule
def equal_weight(book: RuleBook, members: Int) -> Float:
    """The same of every asset that is tradable, no cash."""
    return book.batch.even_weights(members)


@rule
def buy_and_hold(book: RuleBook, members: Int) -> Float:
    """What is held, wherever it has drifted."""
    return book.batch.held[members]


@rule
def cash_heavy(book: RuleBook, members: Int) -> Float:
    """The anchors' average with much cash beside it."""
    invested = book.anchors(members).mean(axis=1) * (1.0 - book.cash[members, None])
    invested[:, -1] += book.cash[members]
    return np.asarray(invested)


def _trailing(log_close: Float, window: int, skip: int) -> Float:
    """Log return from t−window to t−skip, shape [T, n]; zero where there is no such past."""
    out = np.zeros_like(log_close)
    out[window:] = log_close[window - skip : len(log_close) - skip] - log_close[:-window]
    return out


def _standard(scores: Float, among: NDArray[np.bool_] | None) -> Float:
    """Scores of each row centred and scaled over the assets `among` (all if None), within ±1;
    zero for the others.
    """
    where: Any = True if among is None else among | ~among.any(axis=1, keepdims=True)
    centred = scores - scores.mean(axis=1, keepdims=True, where=where)
    deviation = np.maximum(centred.std(axis=1, keepdims=True, where=where), 1e-12)
    return np.where(where, np.clip(centred / (2.0 * deviation), -1.0, 1.0), 0.0)
