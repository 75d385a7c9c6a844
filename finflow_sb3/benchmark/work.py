"""Running one cell: train what learns, backtest the test split at both lags."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finflow_sb3.allocator import keep_freed_memory
from finflow_sb3.backtest_rules import LAGS, measured
from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.pretrained import pretrained_for
from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.tasks import table_key
from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import DataError, FinflowError
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.baselines import baseline
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.files import present
from finflow_sb3.opening import open_market
from finflow_sb3.pipeline import finetune
from finflow_sb3.plain_training import train_plain
from finflow_sb3.results import Watch
from finflow_sb3.training.trained import load_policy

__all__ = ["episode_rewards", "run_cell"]


@dataclass(frozen=True)
class _Trained:
    """What training has left: a folder that `load_policy` reads, and what it took."""

    run: Path
    facts: dict[str, Any] = field(default_factory=dict)


def run_cell(cell: Cell, scratch: Path, watch: Watch | None = None) -> CellResult:
    """The result of a cell, which depends on the cell alone.

    Parameters
    ----------
    scratch : folder for what is of no use afterwards

    Raises
    ------
    DataError
        If the prices are not those that the cell was made for.
    FinflowError
        If the training ended before its end; and as training and backtests do.
    """
    watch = watch or Watch()
    begun = time.perf_counter()
    keep_freed_memory()
    trained = _train(cell, scratch, watch) if cell.learns else None
    policy = None if trained is None else load_policy(trained.run)
    market = open_market(cell.settings, None if policy is None else policy.scaler, watch)
    if table_key(market.prices) != cell.prices:
        raise DataError(f"{market.prices.source}: has changed since this was started; start again")
    if policy is None:
        curves = _rule(cell, market)
    else:
        env, span = cell.settings.env_kwargs, market.splits.test
        curves = [backtest(market, span, env, policy.act, cell.algo, lag) for lag in LAGS]
    span = market.splits.test
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    facts: dict[str, Any] = {
        "env_steps": 0,
        "gradient_steps": 0,
        "offline_transitions": 0,
        "seconds": 0.0,
    }
    facts |= {} if trained is None else trained.facts
    length = cell.settings.env_kwargs.episode_length
    facts["episodes"] = {f"lag_{c.execution_lag}": episode_rewards(c, length) for c in curves}
    facts["seconds"] += time.perf_counter() - begun
    return CellResult(
        key=cell.key,
        algo=cell.algo,
        market=cell.market,
        fold=cell.fold,
        seed=cell.seed,
        facts=facts,
        measures=measured(curves, cash)[curves[0].name],
        curves=tuple(curves),
        policy={} if trained is None else _policy_files(trained.run),
    )


def _train(cell: Cell, scratch: Path, watch: Watch) -> _Trained:
    settings = cell.settings.replace(
        run={"log_dir": str(scratch), "tensorboard": False, "save_latest": False, "track": "off"}
    )
    if cell.algo.startswith("cqsac"):
        return _train_cqsac(cell, settings, scratch, watch)
    if cell.pretrains is not None:
        begun = time.perf_counter()
        made = pretrained_for(cell, cell.pretrains, scratch, watch)
        return _Trained(made.folder, _as_taken(made.facts, begun))
    plain = train_plain(settings, cell.algo, cell.arguments, watch=watch)
    return _Trained(plain.run, {"env_steps": plain.steps, "validation": plain.validation})


def _train_cqsac(cell: Cell, settings: Settings, scratch: Path, watch: Watch) -> _Trained:
    """Seeded by IQL, or from scratch: then nothing of an offline phase is mixed in either."""
    start, facts, begun = None, {}, time.perf_counter()
    if cell.algo == "cqsac":
        made = pretrained_for(cell, "iql", scratch, watch)
        start, facts = made.folder, _as_taken(made.facts, begun)
    tuned = finetune(settings, start, watch=watch)
    if not tuned.finished:
        raise FinflowError(f"stopped after {tuned.steps:,} steps: {tuned.stopped}")
    return _Trained(tuned.run, {**facts, "env_steps": tuned.steps, "validation": tuned.validation})


def _as_taken(facts: dict[str, Any], begun: float) -> dict[str, Any]:
    """Facts of a pretraining with the time that it took when it was made, now or before."""
    return {**facts, "seconds": facts["seconds"] - (time.perf_counter() - begun)}


def _rule(cell: Cell, market: ObservedMarket) -> list[Curve]:
    env, evaluation = cell.settings.env_kwargs, cell.settings.evaluation
    span = market.splits.test
    return [baseline(cell.algo, market, span, env, evaluation, lag) for lag in LAGS]


def episode_rewards(curve: Curve, length: int) -> list[float]:
    """Total reward of each whole episode of `length` days, one after the other.

    Days at the end that make none are left out; a shorter curve is one episode. A curve that no
    environment ran has none.
    """
    if curve.rewards is None:
        return []
    length = min(length, len(curve))
    whole = len(curve) // length
    sums: list[float] = curve.rewards[: whole * length].reshape(whole, length).sum(axis=1).tolist()
    return sums


def _policy_files(run: Path) -> dict[str, bytes]:
    """Files of the policy in a run, or of a folder that is one."""
    folders = (present(run / name) for name in ("best", "last"))
    folder = next((f for f in folders if f.is_dir()), run)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
