"""One decision explained: who spoke, what moved each weight, risk, outlook and alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.ensembles import Policies
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.explain.attribution import Attribution
from finflow_sb3.explain.gradients import (
    TOLERANCE,
    Attributions,
    attribute_features,
)
from finflow_sb3.explain.mapping import TargetMap
from finflow_sb3.explain.returns import Outlook, critic_of, outlook
from finflow_sb3.explain.risk import Risk, risk_of
from finflow_sb3.explain.state import CASH, Asked, ask
from finflow_sb3.explain.voices import Voice, hear
from finflow_sb3.explain.what_if import Counterfactual, WhatIf, answer

__all__ = ["Explained", "explain_decision"]

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Explained:
    """Everything that is known of one decision; n+1 weights, cash last.

    Attributes
    ----------
    date : of the close at which it was decided
    policy : its name; "ensemble" of several
    combination : of several policies, how
    base : action base
    assets, anchors : n+1 and K names
    held : before the trade
    reference : what the zero action asks for (`anchors`: the anchors' average)
    target : what is traded towards
    traded : what this close's trade ends with; None where orders wait for the next close
    trade_rate : share of the way that is traded a day, limits apart
    trust, disagreement : of an ensemble, as in `Decision`
    voices : of each member
    features : of the target weights (before an ensemble's shrinkage)
    risk : of "held", "target" and "traded", by name
    outlooks : of each member; None where no critic is known
    counterfactual : None where it was not asked for
    attribution : what the time up to this day came from; None where no backtest led here
    left_out : what is missing and why, one sentence each
    """

    date: str
    policy: str
    combination: str
    base: str
    assets: tuple[str, ...]
    anchors: tuple[str, ...]
    held: Float
    reference: Float
    target: Float
    traded: Float | None
    trade_rate: float
    trust: float
    disagreement: float
    voices: tuple[Voice, ...]
    features: Attributions
    risk: dict[str, Risk]
    outlooks: tuple[Outlook | None, ...]
    counterfactual: Counterfactual | None
    attribution: Attribution | None
    left_out: tuple[str, ...]

    @property
    def gates(self) -> Float | None:
        """What the members together listen to each anchor, shape [K]."""
        return _together(self.voices, "anchors")

    @property
    def experts(self) -> Float | None:
        """What the members together listen to each expert, shape [K]."""
        return _together(self.voices, "experts")


def _together(voices: Sequence[Voice], kind: str) -> Float | None:
    parts = [getattr(voice, kind) for voice in voices]
    if any(part is None for part in parts):
        return None
    shares = [voice.share for voice in voices]
    return np.asarray(sum(s * part.gates for s, part in zip(shares, parts, strict=True)))


def explain_decision(
    policies: Policies,
    market: ObservedMarket,
    batch: PortfolioBatch,
    what_if: WhatIf | None = None,
    attribution: Attribution | None = None,
    tolerance: float = TOLERANCE,
) -> Explained:
    """Explain what these policies want in the batch's present state, which stays as it is.

    Any state will do, that of the last day of the prices too: see `state_with`.

    Parameters
    ----------
    market : the batch's
    batch : of one portfolio
    what_if : a question to answer
    attribution : of the time up to this state, where there was one
    tolerance : of the completeness of integrated gradients, in weight

    Raises
    ------
    ConfigError
        If the question names what there is not.
    DataError
        If attributions are not complete to within the tolerance.
    """
    layout, row = market.layout, int(batch.row[0])
    zero = np.zeros((1, layout.action_size))
    reference, asked = batch.target(zero)[0], ask(policies, batch)
    mapped = TargetMap(policies, batch)
    observation = batch.observations()[0].astype(np.float64)
    voices = hear(policies, batch, asked.members, asked.gates, asked.shares)
    traded = None
    if not batch.settings.execution_lag:
        traded = batch.reached(asked.target[None], asked.idle)[0]
    portfolios = {"held": batch.held[0].copy(), "target": asked.target}
    if traded is not None:
        portfolios["traded"] = traded
    outlooks, reasons = _outlooks(policies, batch, asked)
    answered = None if what_if is None else answer(what_if, mapped, market, row, observation)
    return Explained(
        date=str(market.prices.dates[row]),
        policy=policies.name,
        combination=policies.combination if policies.together else "",
        base=layout.action_base,
        assets=(*layout.assets, CASH),
        anchors=layout.anchors,
        held=portfolios["held"],
        reference=reference,
        target=asked.target,
        traded=traded,
        trade_rate=batch.trade_rate,
        trust=asked.trust,
        disagreement=asked.disagreement,
        voices=voices,
        features=attribute_features(mapped, layout, market.scaler, observation, tolerance),
        risk={name: risk_of(w, market.returns, row) for name, w in portfolios.items()},
        outlooks=outlooks,
        counterfactual=answered,
        attribution=attribution,
        left_out=(*_left_out(voices, asked, policies, attribution), *reasons),
    )


def _outlooks(
    policies: Policies, batch: PortfolioBatch, asked: Asked
) -> tuple[tuple[Outlook | None, ...], tuple[str, ...]]:
    found: list[Outlook | None] = []
    reasons: list[str] = []
    for run, action in zip(policies.runs, asked.actions, strict=True):
        critic = critic_of(run)
        if isinstance(critic, str):
            found.append(None)
            reasons.append(f"The critic's expectations: {critic}.")
        else:
            found.append(outlook(critic, batch, action))
    return tuple(found), tuple(reasons)


def _left_out(
    voices: Sequence[Voice], asked: Asked, policies: Policies, attribution: Attribution | None
) -> list[str]:
    out = []
    without = sorted({voice.name for voice in voices if voice.experts is None})
    if without:
        out.append(f"Experts: the network of {', '.join(without)} has none.")
    if asked.gates is None:
        out.append("Anchors: actions of this base do not mix them.")
    if asked.shrunk:
        out.append(
            "Shrinkage: features are explained of what the members want together, before "
            f"disagreement cuts it down (λ {policies.shrinkage:g})."
        )
    if attribution is None:
        out.append("Realised return: no backtest led to these holdings.")
    return out
