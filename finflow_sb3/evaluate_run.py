"""The verb `evaluate`: a run's best policy on the test split, beside the baselines."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from finflow_sb3.backtest_rules import LAGS, measured
from finflow_sb3.config import EvaluationSettings, Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.analysis import analyse
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.baselines import baselines, remarks
from finflow_sb3.evaluation.break_even import BreakEven, break_even
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report import ReportInput, ReportMarket, write_report
from finflow_sb3.market.summary import SURVIVORSHIP_NOTE
from finflow_sb3.opening import open_market
from finflow_sb3.results import Evaluated, Watch
from finflow_sb3.run_notes import noted_ranking
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.training.trained import load_policy

__all__ = ["evaluate"]


def evaluate(
    run: str | Path,
    prices: str | None = None,
    watch: Watch | None = None,
    evaluation: EvaluationSettings | None = None,
) -> Evaluated:
    """Backtest a run's best policy on its test split, and write the report.

    Parameters
    ----------
    prices : other prices of the same universe; the run's own if not given
    evaluation : what it is compared with, and how; the run's own if not given
    """
    watch = watch or Watch()
    folder = RunFolder.open(run)
    settings = folder.settings()
    if evaluation is not None:
        settings = dataclasses.replace(settings, evaluation=evaluation)
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
    policy = load_policy(folder.path)
    market = open_market(settings, policy.scaler, watch)
    market.layout.require_equal(policy.layout, str(run))
    env, span = settings.env_kwargs, market.splits.test
    curves: list[Curve] = []
    others: list[Curve] = []
    rules = settings.evaluation
    for lag in LAGS:
        watch.progress("backtests", lag, len(LAGS))
        curves.append(backtest(market, span, env, policy.act, policy.name, lag))
        others += baselines(market, span, env, rules, lag, partial(watch.progress, "baselines"))
    watch.progress("backtests", len(LAGS), len(LAGS))
    search = partial(watch.progress, "break-even fees")
    fees = break_even(market, span, env, policy.act, rules.rebalance, LAGS, on_progress=search)
    notes = remarks(others, market.prices.assets, rules)
    report = _report(folder, settings, market, policy, curves, others, fees, notes)
    paths = write_report(report, folder.report)
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    return Evaluated(
        run=folder.path,
        policy=policy.name,
        report=paths.index,
        verdict=paths.verdict.sentence,
        dates=span.dates(market.prices.dates),
        measures=measured([*curves, *others], cash),
        break_even=fees,
        notes=notes,
    )


def _report(
    folder: RunFolder,
    settings: Settings,
    market: ObservedMarket,
    policy: Any,
    curves: list[Curve],
    others: list[Curve],
    fees: tuple[BreakEven, ...],
    notes: tuple[str, ...],
) -> ReportInput:
    prices, span = market.prices, market.splits.test
    cash = prices.cash_rate[span.start + 1 : span.stop]
    return ReportInput(
        title=f"{label(policy.name)} on {prices.source}",
        run=str(folder.path),
        market=ReportMarket(
            source=prices.source,
            assets=prices.assets,
            first=str(prices.dates[0]),
            last=str(prices.dates[-1]),
            survivorship=SURVIVORSHIP_NOTE if prices.survivorship else None,
        ),
        splits={name: s.dates(prices.dates) for name, s in market.splits.named().items()},
        policy=tuple(curves),
        baselines=tuple(others),
        settings=settings.as_dict(),
        command=folder.command(),
        cash_rate=cash,
        notes=notes,
        extra=_chosen(policy.facts),
        pretraining=noted_ranking(folder),
        analysis=analyse(
            next(c for c in curves if c.execution_lag == 0),
            [c for c in others if c.execution_lag == 0],
            cash,
            settings.evaluation,
        ),
        break_even=fees,
    )


def _chosen(facts: dict[str, Any]) -> dict[str, Any]:
    """When in training the policy was taken, and on what grounds."""
    unit = "epoch" if "epoch" in facts else "step"
    out: dict[str, Any] = {f"taken at {unit}": f"{facts[unit]:,}"} if unit in facts else {}
    sharpe = facts.get("validation", {}).get("sharpe")
    return out if sharpe is None else {**out, "its validation Sharpe": f"{sharpe:.3f}"}
