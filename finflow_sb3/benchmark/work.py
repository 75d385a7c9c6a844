"""Running one cell: train what learns, backtest the test split at both lags."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from finflow_sb3.allocator import keep_freed_memory
from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError
from finflow_sb3.evaluation.backtest import backtest, baselines
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.files import present, whole_folder
from finflow_sb3.market.cache import content_key
from finflow_sb3.opening import open_market
from finflow_sb3.pipeline import finetune, pretrain
from finflow_sb3.results import Watch
from finflow_sb3.training.trained import load_policy

__all__ = ["LAGS", "run_cell"]

LAGS = (0, 1)


def run_cell(cell: Cell, scratch: Path, shared: Path, watch: Watch | None = None) -> CellResult:
    """The result of a cell, which depends on the cell alone.

    Parameters
    ----------
    scratch : folder for what is of no use afterwards
    shared : folder in which cells of one machine leave pretrained networks to each other; one
        that is not there is made again
    """
    watch = watch or Watch()
    begun = time.perf_counter()
    keep_freed_memory()
    if cell.learns:
        run, facts = _train(cell, scratch, shared, watch)
        curves, policy = _learned(cell, run, watch)
    else:
        market, facts, policy = open_market(cell.settings, watch=watch), {}, {}
        curves = _rule(cell, market)
    return CellResult(
        key=cell.key,
        algo=cell.algo,
        market=cell.market,
        fold=cell.fold,
        seed=cell.seed,
        facts={**facts, "seconds": time.perf_counter() - begun},
        measures=_measures(curves, cell, watch),
        curves=tuple(curves),
        policy=policy,
    )


def _train(cell: Cell, scratch: Path, shared: Path, watch: Watch) -> tuple[Path, dict[str, Any]]:
    """A folder that `load_policy` reads, and what training took."""
    settings = cell.settings.replace(run={"log_dir": str(scratch), "tensorboard": False})
    if cell.algo in OFFLINE_ALGORITHMS:
        return _pretrained(cell, cell.algo, scratch, shared, watch)
    if cell.algo not in ("cqsac", "cqsac_scratch"):
        from finflow_sb3.plain_training import train_plain

        plain = train_plain(settings, cell.algo, cell.arguments, watch=watch)
        return plain.run, {"steps": plain.steps, "validation": plain.validation}
    start, facts = None, {}
    if cell.algo == "cqsac":
        start, facts = _pretrained(cell, "iql", scratch, shared, watch)
    tuned = finetune(settings, start, watch=watch)
    if not tuned.finished:
        raise ConfigError(f"{cell.title}: stopped after {tuned.steps:,} steps: {tuned.stopped}")
    return tuned.run, {**facts, "steps": tuned.steps, "validation": tuned.validation}


def _pretrained(
    cell: Cell, algo: OfflineAlgorithm, scratch: Path, shared: Path, watch: Watch
) -> tuple[Path, dict[str, Any]]:
    """The pretrained networks of a cell: what another cell of this machine made, or made now."""
    own = cell.settings.offline(algo)
    facts = {
        "gradient_steps": own.epochs * own.steps_per_epoch,
        "offline_transitions": cell.settings.collect.episodes
        * cell.settings.env_kwargs.episode_length,
    }
    content = cell.settings.as_dict()
    parts = [content[name] for name in ("env_kwargs", "collect", algo)]
    market = {k: v for k, v in content["market"].items() if k != "prices"}
    target = shared / f"{algo}-{content_key(cell.prices, market, cell.seed, *parts)[:16]}"
    shared.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not (present(target) / "artefact.json").is_file():
            settings = cell.settings.replace(run={"log_dir": str(scratch), "tensorboard": False})
            made = pretrain(settings, watch=watch, algo=algo)
            best = present(made.run / "best")
            with whole_folder(target) as new:
                for path in sorted(best.iterdir()):
                    (new / path.name).write_bytes(path.read_bytes())
    return present(target), facts


def _learned(cell: Cell, run: Path, watch: Watch) -> tuple[list[Curve], dict[str, bytes]]:
    policy = load_policy(run)
    market = open_market(cell.settings, policy.scaler, watch)
    market.layout.require_equal(policy.layout, str(run))
    env, span = cell.settings.env_kwargs, market.splits.test
    curves = [backtest(market, span, env, policy.act, cell.algo, lag) for lag in LAGS]
    best = present(run / "best")
    folder = best if best.is_dir() else run
    return curves, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _rule(cell: Cell, market: ObservedMarket) -> list[Curve]:
    env, span = cell.settings.env_kwargs, market.splits.test
    name = {"anchors": "anchors' average"}.get(cell.algo, cell.algo)
    return [c for lag in LAGS for c in baselines(market, span, env, lag) if c.name == name]


def _measures(curves: list[Curve], cell: Cell, watch: Watch) -> dict[str, dict[str, float]]:
    market = open_market(cell.settings, watch=watch)
    span = market.splits.test
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    return {f"lag_{c.execution_lag}": measures(c, cash) for c in curves}
