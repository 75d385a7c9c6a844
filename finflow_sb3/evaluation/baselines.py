"""Rules that a policy has to beat, at the same costs, constraints and execution lag.

Every rule but the anchors sees its portfolio only when it rebalances, each `rebalance` days from
the first of the span: then it trades all the way to its target, and drifts until the next one.
The anchors are refitted as the market's settings say and traded a part of the way each day, as
the policy is that mixes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings, EvaluationSettings
from finflow_sb3.envs.batch import PortfolioBatch, default_trade_rate
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.allocators import (
    ALLOCATORS,
    FALLBACKS,
    Fitted,
    fit_allocators,
    listed_on,
)
from finflow_sb3.evaluation.backtest import lagged, rule_curves
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.index_curve import index_curve
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.sixty_forty import equities_and_bonds, sixty_forty
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span

__all__ = ["AVERAGE", "baseline", "baselines", "equal_weight", "left_out", "remarks"]

Float = NDArray[np.float64]
Progress = Callable[[int, int], None]

AVERAGE = "anchors' average"
ANCHOR_RATE = 0.1


@dataclass(frozen=True)
class Rule:
    """What a rule wants at each of its rebalances.

    Attributes
    ----------
    targets : shape [R, n+1], cash last; None for a rule that never trades
    note : what a reader has to know of it
    """

    name: str
    targets: Float | None
    note: str = ""


def baselines(
    market: ObservedMarket,
    span: Span,
    env: EnvSettings,
    evaluation: EvaluationSettings | None = None,
    execution_lag: int | None = None,
    on_progress: Progress | None = None,
) -> list[Curve]:
    """Curves of the rules that `evaluation.baselines` names, equal weight always the first.

    Parameters
    ----------
    env : costs and constraints
    evaluation : the defaults if not given
    execution_lag : the environment's own if not given
    on_progress : called with (fits done, fits to do) where allocators have to be fitted

    Raises
    ------
    ConfigError
        If bonds or equities are named that the universe does not have.
    DataError
        If the index does not cover the span.
    """
    evaluation = evaluation or EvaluationSettings()
    env = lagged(env, execution_lag)
    rules = _rules(market, span, evaluation, on_progress)
    curves = _traded(market, span, env, rules, evaluation.rebalance)
    if "index" in evaluation.baselines and evaluation.index is not None:
        curves.append(index_curve(evaluation.index, market.prices, span, env.execution_lag))
    if "anchors" in evaluation.baselines:
        curves += _anchored(market, span, env)
    return curves


def baseline(
    name: str,
    market: ObservedMarket,
    span: Span,
    env: EnvSettings,
    evaluation: EvaluationSettings | None = None,
    execution_lag: int | None = None,
) -> Curve:
    """The curve of one rule by its name in the settings; for `anchors` that of their average.

    Raises
    ------
    DataError
        If the universe has no such rule: 60/40 without bonds, an index that is not named.
    """
    chosen = dataclasses.replace(evaluation or EvaluationSettings(), baselines=(name,))
    wanted = AVERAGE if name == "anchors" else name
    for curve in baselines(market, span, env, chosen, execution_lag):
        if curve.name == wanted:
            return curve
    why = " ".join(left_out(market.prices.assets, chosen)) or "Name it in evaluation.index."
    raise DataError(f"{name}: {market.prices.source} has none. {why}")


def equal_weight(
    market: ObservedMarket, span: Span, env: EnvSettings, rebalance: int, execution_lag: int
) -> Curve:
    """Equal weight alone, without anything else being fitted."""
    rows = _refits(span, rebalance)
    rules = [Rule("equal_weight", _even(market.prices, rows))]
    return _traded(market, span, lagged(env, execution_lag), rules, rebalance)[0]


def left_out(assets: Sequence[str], evaluation: EvaluationSettings) -> tuple[str, ...]:
    """Why a rule that was asked for has no curve, one sentence each."""
    if "sixty_forty" not in evaluation.baselines or equities_and_bonds(assets, evaluation):
        return ()
    return (
        f"60/40 is left out: none of the {len(assets)} assets is known as a fund of bonds beside "
        "equities; name yours in evaluation.bonds.",
    )


def remarks(
    curves: Sequence[Curve], assets: Sequence[str], evaluation: EvaluationSettings
) -> tuple[str, ...]:
    """What a reader has to know of these curves: their notes, and which rules have none."""
    notes = [f"{label(curve.name)}: {curve.note}." for curve in curves if curve.note]
    return (*dict.fromkeys(notes), *left_out(assets, evaluation))


def _rules(
    market: ObservedMarket,
    span: Span,
    evaluation: EvaluationSettings,
    on_progress: Progress | None,
) -> list[Rule]:
    """The rules that trade on rebalancing days, in the order of the settings."""
    prices, rows = market.prices, _refits(span, evaluation.rebalance)
    names = [name for name in evaluation.baselines if name in ALLOCATORS]
    fits = fit_allocators(prices, names, rows, evaluation.lookback, on_progress=on_progress)
    rules = [Rule("equal_weight", _even(prices, rows))]
    for name in evaluation.baselines:
        if name == "buy_and_hold":
            rules.append(Rule(name, None))
        elif name == "sixty_forty":
            rules += _sixty_forty(prices, rows, evaluation)
        elif name in fits:
            rules.append(Rule(name, fits[name].weights, _note(fits[name])))
    return rules


def _refits(span: Span, rebalance: int) -> NDArray[np.int64]:
    """Rows of `span` at whose close a rule rebalances; the last row earns nothing any more."""
    return np.arange(span.start, span.stop - 1, rebalance)


def _even(prices: PriceTable, rows: NDArray[np.int64]) -> Float:
    """Equal weights over what is listed, shape [R, n+1]; cash where nothing is."""
    listed = listed_on(prices, rows)
    out = np.zeros((len(rows), prices.n_assets + 1))
    out[:, :-1] = listed / np.maximum(listed.sum(axis=1, keepdims=True), 1)
    out[:, -1] = ~listed.any(axis=1)
    return out


def _sixty_forty(
    prices: PriceTable, rows: NDArray[np.int64], evaluation: EvaluationSettings
) -> list[Rule]:
    groups = equities_and_bonds(prices.assets, evaluation)
    if groups is None:
        return []
    targets = [sixty_forty(*groups, listed) for listed in listed_on(prices, rows)]
    equities, bonds = (int(group.sum()) for group in groups)
    note = f"60 % in {equities} equities, 40 % in {bonds} bonds, equal within each"
    return [Rule("sixty_forty", np.stack(targets), note)]


def _note(found: Fitted) -> str:
    total = len(found.weights)
    held = [
        f"{count} of {total} refits had no solution and hold {what}"
        for count, what in zip(found.fallbacks, FALLBACKS, strict=True)
        if count
    ]
    return ", ".join(held)


def _traded(
    market: ObservedMarket, span: Span, env: EnvSettings, rules: list[Rule], rebalance: int
) -> list[Curve]:
    """The rules as one batch: all the way at a rebalance, nothing in between."""
    active = np.array([rule.targets is not None for rule in rules])
    targets = np.stack([rule.targets for rule in rules if rule.targets is not None])

    def wanted(batch: PortfolioBatch) -> Float:
        out = batch.held.copy()
        refit, since = divmod(int(batch.steps[0]), rebalance)
        if since == 0:
            out[active] = targets[:, refit]
        return out

    whole = dataclasses.replace(env, trade_rate=1.0)
    curves = rule_curves(market, span, whole, [rule.name for rule in rules], wanted)
    return [
        dataclasses.replace(curve, note=rule.note)
        for curve, rule in zip(curves, rules, strict=True)
    ]


def _anchored(market: ObservedMarket, span: Span, env: EnvSettings) -> list[Curve]:
    """The anchors' average and each anchor, traded at the environment's rate."""
    rate = default_trade_rate(env) if env.action_base == "anchors" else ANCHOR_RATE
    names = [AVERAGE, *(f"anchor: {name}" for name in market.anchors.names)]
    slow = dataclasses.replace(env, trade_rate=rate)
    return rule_curves(market, span, slow, names, _anchor_targets)


def _anchor_targets(batch: PortfolioBatch) -> Float:
    anchors = batch.market.anchors.at(int(batch.row[0]))
    return np.concatenate([anchors.mean(axis=0, keepdims=True), anchors])
