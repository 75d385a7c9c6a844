"""The verb `evaluate`: policies of one or several runs on the test split, beside the baselines."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from finflow_sb3.backtest_rules import LAGS, measured
from finflow_sb3.config import EnvSettings, EvaluationSettings, Settings
from finflow_sb3.ensembles import (
    Policies,
    Runs,
    load_policies,
    new_ensemble,
    write_members,
)
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.analysis import analyse
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.baselines import baselines, remarks
from finflow_sb3.evaluation.break_even import BreakEven, break_even
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.ensemble import Combination
from finflow_sb3.evaluation.plot_style import label
from finflow_sb3.evaluation.report import ReportInput, ReportMarket, write_report
from finflow_sb3.market.splits import Span
from finflow_sb3.market.summary import SURVIVORSHIP_NOTE
from finflow_sb3.opening import open_market
from finflow_sb3.results import Evaluated, Watch
from finflow_sb3.run_notes import noted_ranking
from finflow_sb3.runs.folder import RunFolder

__all__ = ["evaluate"]


def evaluate(
    run: Runs,
    prices: str | None = None,
    watch: Watch | None = None,
    evaluation: EvaluationSettings | None = None,
    combination: Combination | None = None,
    shrinkage: float | None = None,
    partial: bool | None = None,
) -> Evaluated:
    """Backtest a run's best policy on its test split, and write the report.

    Several runs act together as an ensemble, each of them is backtested too, and all of it is
    kept in a folder of its own under `ensemble`, which stands for these runs from then on.

    Parameters
    ----------
    run : a run, an ensemble's folder, or several runs
    prices : a newer history of the run's assets, or prices of any others, on which its policy
        then acts as it is; the run's own if not given
    evaluation : what it is compared with, and how; the run's own if not given
    combination, shrinkage : of several runs, see `Ensemble`; as for `load_policies`
    partial : `market.partial` of other prices; as the run has it if not given

    Raises
    ------
    ArtefactError
        As `load_policies` does.
    """
    watch = watch or Watch()
    policies = load_policies(run, combination, shrinkage)
    settings = policies.settings
    if evaluation is not None:
        settings = dataclasses.replace(settings, evaluation=evaluation)
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
    if partial is not None:
        settings = settings.replace(market={"partial": partial})
    market = open_market(settings, policies.scaler, watch)
    moved = policies.on(market.layout)
    env, span = settings.env_kwargs, market.splits.test
    curves: list[Curve] = []
    others: list[Curve] = []
    rules, fitted = settings.evaluation, functools.partial(watch.progress, "baselines")
    for lag in LAGS:
        watch.progress("backtests", lag, len(LAGS))
        curves.append(backtest(market, span, env, moved.policy, moved.name, lag))
        others += _members(moved, market, span, env, lag)
        others += baselines(market, span, env, rules, lag, fitted)
    watch.progress("backtests", len(LAGS), len(LAGS))
    search = functools.partial(watch.progress, "break-even fees")
    fees = break_even(market, span, env, moved.policy, rules.rebalance, LAGS, on_progress=search)
    notes = (*_foreign(policies, market), *remarks(others, market.prices.assets, rules))
    folder = _folder(run, policies, settings)
    report = _report(folder, settings, market, policies, curves, others, fees, notes)
    foreign = moved is not policies
    paths = write_report(report, _elsewhere(folder, market) if foreign else folder.report)
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    return Evaluated(
        run=folder.path,
        policy=policies.name,
        report=paths.index,
        verdict=paths.verdict.sentence,
        dates=span.return_dates(market.prices.dates),
        measures=measured([*curves, *others], cash),
        break_even=fees,
        notes=notes,
    )


def _folder(run: Runs, policies: Policies, settings: Settings) -> RunFolder:
    """Where the report goes: into the one folder that is given, or a new one of an ensemble."""
    alone = [run] if isinstance(run, (str, Path)) else list(run)
    if len(alone) == 1:
        return RunFolder.open(alone[0])
    folder = new_ensemble(settings)
    write_members(folder.path, policies.runs, policies.combination, policies.shrinkage)
    return folder


def _elsewhere(folder: RunFolder, market: ObservedMarket) -> Path:
    """Where a report on other assets goes: the run's own stays."""
    name = Path(market.prices.source).name.removeprefix("yahoo:")
    return folder.path / f"report-{''.join(c if c.isalnum() else '-' for c in name)[:40]}"


def _foreign(policies: Policies, market: ObservedMarket) -> tuple[str, ...]:
    """What figures on other assets than the run's own mean."""
    if market.layout.assets == policies.layout.assets:
        return ()
    known = len({*market.layout.assets} & {*policies.layout.assets})
    return (
        f"Another universe: the policy was trained on {policies.layout.n_assets} assets, of which "
        f"{known} are among these {market.layout.n_assets}. Days that it was trained on are days "
        "of this market too, and markets move together: this tells how far the policy carries "
        "over, and is no test of its skill here.",
    )


def _members(
    policies: Policies, market: ObservedMarket, span: Span, env: EnvSettings, lag: int
) -> list[Curve]:
    """The members of an ensemble by themselves."""
    if len(policies.members) == 1:
        return []
    return [
        backtest(market, span, env, member.act, f"member {i}: {member.name}", lag)
        for i, member in enumerate(policies.members, start=1)
    ]


def _report(
    folder: RunFolder,
    settings: Settings,
    market: ObservedMarket,
    policies: Policies,
    curves: list[Curve],
    others: list[Curve],
    fees: tuple[BreakEven, ...],
    notes: tuple[str, ...],
) -> ReportInput:
    prices, span = market.prices, market.splits.test
    cash = prices.cash_rate[span.start + 1 : span.stop]
    return ReportInput(
        title=f"{label(policies.name)} on {prices.source}",
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
        extra=_chosen(policies.facts()),
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
