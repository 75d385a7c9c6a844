"""The verb `evaluate`: a run's best policy on the test split, beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.backtest import backtest, baselines
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report import ReportInput, ReportMarket, write_report
from finflow_sb3.market.summary import SURVIVORSHIP_NOTE
from finflow_sb3.opening import open_market
from finflow_sb3.results import Evaluated, Watch
from finflow_sb3.run_notes import noted_ranking
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.training.trained import load_policy

__all__ = ["evaluate"]

LAGS = (0, 1)


def evaluate(run: str | Path, prices: str | None = None, watch: Watch | None = None) -> Evaluated:
    """Backtest a run's best policy on its test split, and write the report.

    Parameters
    ----------
    prices : other prices of the same universe; the run's own if not given
    """
    watch = watch or Watch()
    folder = RunFolder.open(run)
    settings = folder.settings()
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
    policy = load_policy(folder.path)
    market = open_market(settings, policy.scaler, watch)
    market.layout.require_equal(policy.layout, str(run))
    env, span = settings.env_kwargs, market.splits.test
    curves: list[Curve] = []
    others: list[Curve] = []
    for lag in LAGS:
        watch.progress("backtests", lag, len(LAGS))
        curves.append(backtest(market, span, env, policy.act, policy.name, lag))
        others += baselines(market, span, env, lag)
    watch.progress("backtests", len(LAGS), len(LAGS))
    paths = write_report(_report(folder, settings, market, policy, curves, others), folder.report)
    return Evaluated(
        run=folder.path,
        policy=policy.name,
        report=paths.index,
        verdict=paths.verdict.sentence,
        dates=span.dates(market.prices.dates),
        measures=_measures([*curves, *others], market),
    )


def _measures(
    curves: list[Curve], market: ObservedMarket
) -> dict[str, dict[str, dict[str, float]]]:
    span = market.splits.test
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    out: dict[str, dict[str, dict[str, float]]] = {}
    for curve in curves:
        out.setdefault(curve.name, {})[f"lag_{curve.execution_lag}"] = measures(curve, cash)
    return out


def _report(
    folder: RunFolder,
    settings: Settings,
    market: ObservedMarket,
    policy: Any,
    curves: list[Curve],
    others: list[Curve],
) -> ReportInput:
    prices, span = market.prices, market.splits.test
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
        cash_rate=prices.cash_rate[span.start + 1 : span.stop],
        extra=_chosen(policy.facts),
        pretraining=noted_ranking(folder),
    )


def _chosen(facts: dict[str, Any]) -> dict[str, Any]:
    """When in training the policy was taken, and on what grounds."""
    unit = "epoch" if "epoch" in facts else "step"
    out: dict[str, Any] = {f"taken at {unit}": f"{facts[unit]:,}"} if unit in facts else {}
    sharpe = facts.get("validation", {}).get("sharpe")
    return out if sharpe is None else {**out, "its validation Sharpe": f"{sharpe:.3f}"}
