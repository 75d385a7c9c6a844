"""Epochs of pretraining by what fitted Q evaluation thinks of them, beside their backtests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.errors import ArtefactError

__all__ = ["RankedEpoch", "Ranking", "rank_correlation", "ranking"]

Float = NDArray[np.float64]
RESAMPLES = 9999
FEWEST = 3
CHANCE = 0.05


@dataclass(frozen=True)
class RankedEpoch:
    """One epoch's policy.

    Attributes
    ----------
    value : discounted sum of rewards from an episode's start, as fitted Q evaluation estimates it
    error : standard error over fits from different starts; None of a single one
    sharpe : of the validation backtest; None where there is no market
    """

    epoch: int
    value: float
    error: float | None
    sharpe: float | None


@dataclass(frozen=True)
class Ranking:
    """Epochs with both judgements, in the order of validation where there is one.

    Attributes
    ----------
    steps : gradient steps of each fit
    gamma : discount of the values
    correlation : Spearman's, of value and validation Sharpe; None of fewer than three epochs,
        or where all have the same
    p_value : of a two-sided permutation test of it; None likewise
    """

    epochs: tuple[RankedEpoch, ...]
    steps: int
    gamma: float
    correlation: float | None
    p_value: float | None

    @property
    def best(self) -> RankedEpoch:
        """The epoch of the highest value: the one to take where there is no market."""
        return max(self.epochs, key=lambda e: e.value if math.isfinite(e.value) else -math.inf)

    def sentence(self) -> str:
        """What the comparison says, and how little."""
        count = len(self.epochs)
        if all(each.sharpe is None for each in self.epochs):
            return f"No backtest judged these {count} epochs: the highest value chose among them."
        if self.correlation is None or self.p_value is None:
            return f"Over {count} epochs no rank correlation of value and Sharpe can be told."
        told = "more than chance explains" if self.p_value < CHANCE else "as chance may do as well"
        size = f"{self.correlation:.2f}".replace("-", "−")
        return (
            f"Rank correlation of value and validation Sharpe over {count} epochs: "
            f"{size}, {told} (p\u00a0=\u00a0{self.p_value:.2f}). So few epochs, which were "
            "chosen for their Sharpe, say little of how well values choose among all."
        )

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any], what: str) -> Ranking:
        """What `as_dict` gave, from its JSON form.

        Raises
        ------
        ArtefactError
            If a part is missing; `what` names the file.
        """
        try:
            epochs = tuple(_ranked(entry) for entry in data["epochs"])
            if not epochs:
                raise ValueError("no epochs")
            numbers = (_number(data[name]) for name in ("correlation", "p_value"))
            return cls(epochs, int(data["steps"]), float(data["gamma"]), *numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"{what}: is not whole ({error}); pretrain again") from None


def _ranked(entry: dict[str, Any]) -> RankedEpoch:
    value = float(entry["value"])
    return RankedEpoch(
        int(entry["epoch"]), value, _number(entry["error"]), _number(entry["sharpe"])
    )


def _number(entry: Any) -> float | None:
    return None if entry is None else float(entry)


def ranking(epochs: Sequence[RankedEpoch], steps: int, gamma: float) -> Ranking:
    """With the rank correlation of those epochs that have a Sharpe ratio."""
    judged = [(e.value, e.sharpe) for e in epochs if e.sharpe is not None]
    found = rank_correlation(np.array(judged, dtype=np.float64).reshape(-1, 2))
    return Ranking(tuple(epochs), steps, gamma, *found)


def rank_correlation(pairs: Float) -> tuple[float | None, float | None]:
    """Spearman's rank correlation and its two-sided permutation p-value.

    All pairings are gone through up to seven pairs, 9,999 random ones (of a fixed seed) beyond.

    Parameters
    ----------
    pairs : shape [M, 2]

    Returns
    -------
    both None of fewer than three pairs, where one side is constant, or something is not finite
    """
    from scipy.stats import permutation_test, rankdata

    if len(pairs) < FEWEST or not np.isfinite(pairs).all() or np.ptp(pairs, axis=0).min() == 0.0:
        return None, None
    first, second = (rankdata(column) for column in pairs.T)
    second = second - second.mean()

    def correlation(ranks: Float, axis: int = -1) -> Float:
        centred = ranks - ranks.mean(axis=axis, keepdims=True)
        size = np.sqrt((centred**2).sum(axis=axis) * (second**2).sum())
        return np.asarray((centred * second).sum(axis=axis) / size)

    found = permutation_test(
        (first,),
        correlation,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    )
    if not math.isfinite(found.statistic):
        return None, None
    return float(found.statistic), float(found.pvalue)
