"""The verb `benchmark`: algorithms x markets x seeds, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finflow_sb3.benchmark.cells import Cell, known_algorithm
from finflow_sb3.benchmark.matrix import Executor, run_cells
from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.summary import EQUAL_WEIGHT, Summary, summarise
from finflow_sb3.benchmark.tables import write_tables
from finflow_sb3.benchmark.tasks import Listener, table_key
from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import algorithm_arguments
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.messages import shown

__all__ = ["DEFAULT_ALGOS", "Benchmark", "Tables", "benchmark", "cells_of"]

DEFAULT_ALGOS = ("cqsac", "iql", "sac", "tqc", "ppo", "anchors", EQUAL_WEIGHT)


@dataclass(frozen=True)
class Benchmark:
    """What a matrix came to.

    Attributes
    ----------
    out : folder with benchmark.md, benchmark.csv, pictures and the cells
    cells : how many there are
    summaries : one for each algorithm and market, best median Sharpe first
    failed : title of a cell → why it failed
    """

    out: Path
    cells: int
    summaries: tuple[Summary, ...]
    failed: dict[str, str]


def benchmark(
    settings: Settings,
    algos: Sequence[str] = DEFAULT_ALGOS,
    seeds: int = 3,
    steps: int | None = None,
    markets: Sequence[str] = (),
    out: str | Path = "benchmark",
    executor: Executor | None = None,
    listen: Listener = lambda event: None,
    params: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> Benchmark:
    """Run every algorithm on every market with every seed, and write table and pictures.

    Results are stored as they come: the same call again runs only what is missing.

    Parameters
    ----------
    algos : of `LEARNED` and the rules; equal weight is always among them
    seeds : how many, from `settings.run.seed` on; a rule has one cell whatever the seeds
    steps : environment steps of all that learn online, each one's own number if not given
    markets : sources of prices; that of the settings if not given
    params, files : overrides of SB3's own algorithms, which `settings` do not hold

    Raises
    ------
    ConfigError
        If an algorithm is unknown, or a market or an algorithm is named twice.
    DataError
        If every cell of equal weight failed, so that there is nothing to compare with.
    """
    executor, store = executor or Executor(), Store(Path(out))
    tables = _tables(settings, markets)
    cells = cells_of(settings, tables, algos, seeds, steps, params, files)
    failed = run_cells(cells, store, executor, listen)
    lost = {f.cell.key for f in failed}
    results = [store.get(cell) for cell in cells if cell.key not in lost]
    _require_equal_weight(results, {cell.market for cell in cells}, store.out)
    summaries = summarise(
        results, {market: table for market, (_, table) in tables.items()}, settings.evaluation
    )
    why = {f.cell.title: f.why for f in failed}
    found = Benchmark(store.out, len(cells), summaries, why)
    write_tables(found.out, results, summaries, settings, why)
    return found


Tables = dict[str, tuple[str, PriceTable]]
"""By market its source and its prices."""


def _tables(settings: Settings, markets: Sequence[str]) -> Tables:
    found: Tables = {}
    for source in markets or [settings.market.prices]:
        label = Path(source).name.split(".")[0]
        if label in found:
            raise ConfigError(f"--markets: {shown(label)} stands twice; name each once")
        found[label] = source, load_prices(source, max_gap=settings.market.max_gap)
    return found


def cells_of(
    settings: Settings,
    tables: Tables,
    algos: Sequence[str],
    seeds: int,
    steps: int | None = None,
    params: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> list[Cell]:
    """The cells of a matrix; arguments are `benchmark`'s."""
    names = [known_algorithm(name) for name in algos]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"--algos: {shown(twice[0])} stands twice; name each once")
    names += [] if EQUAL_WEIGHT in names else [EQUAL_WEIGHT]
    settings = _with_steps(settings, steps)
    arguments = {name: _arguments(name, settings, steps, params, files) for name in names}
    cells = []
    for market, (source, table) in tables.items():
        own, key = settings.replace(market={"prices": source}), table_key(table)
        for i in range(seeds):
            seeded = own.replace(run={"seed": settings.run.seed + i})
            made = [Cell(name, market, seeded, key, arguments[name]) for name in names]
            cells += [cell for cell in made if cell.learns or i == 0]
    return cells


def _with_steps(settings: Settings, steps: int | None) -> Settings:
    return settings if steps is None else settings.replace(cqsac={"n_timesteps": steps})


def _arguments(
    algo: str,
    settings: Settings,
    steps: int | None,
    params: Sequence[str],
    files: Sequence[Path],
) -> dict[str, Any]:
    if algo not in PLAIN_ALGORITHMS:
        return {}
    own = [p for p in params if _concerns(p, algo)]
    found = algorithm_arguments(algo, settings.env, files=files, params=own)
    return found if steps is None else {**found, "n_timesteps": steps}


def _concerns(param: str, algo: str) -> bool:
    """Whether `algo.key:value` is this algorithm's; a matrix has no bare keys of one algorithm."""
    return param.partition(":")[0].partition(".")[0] == algo


def _require_equal_weight(results: Sequence[CellResult], markets: set[str], out: Path) -> None:
    there = {r.market for r in results if r.algo == EQUAL_WEIGHT}
    for market in sorted(markets - there):
        raise DataError(
            f"{market}: equal weight has failed, and without it nothing can be compared; see "
            f"{out / 'failed.json'}"
        )
