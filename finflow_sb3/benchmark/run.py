"""The verb `benchmark`: algorithms × markets × seeds, each trained and backtested, and a table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.benchmark import pictures
from finflow_sb3.benchmark.cells import LEARNED, Cell
from finflow_sb3.benchmark.matrix import Executor, run_cells
from finflow_sb3.benchmark.plan import REFERENCE, make_cells, market_names
from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.scores import Group, Row, groups_of, profiles, row_of
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.table import cells_csv, markdown, verdict
from finflow_sb3.benchmark.tasks import Listener
from finflow_sb3.config import Settings
from finflow_sb3.config_files import plain_yaml
from finflow_sb3.errors import ArtefactError
from finflow_sb3.evaluation.plot_style import png_bytes
from finflow_sb3.files import write_whole
from finflow_sb3.market.sources import EMBEDDED
from finflow_sb3.opening import open_prices

__all__ = ["ALL", "Benchmark", "benchmark"]

ALL = "all markets"
Float = NDArray[np.float64]


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark came to.

    Attributes
    ----------
    out : folder with `benchmark.md`, `benchmark.csv`, pictures, and the cells
    verdict : whether anything that learned beats equal weight, in one sentence
    rows : of each algorithm on each market
    overall : of each algorithm on all markets together; empty where there is one
    failed : title of a cell → why it failed
    """

    out: Path
    verdict: str
    rows: tuple[Row, ...]
    overall: tuple[Row, ...]
    failed: dict[str, str]


def benchmark(
    settings: Settings,
    algos: Sequence[str] = ("cqsac", "sac", "equal_weight"),
    seeds: int = 3,
    steps: int | None = None,
    markets: Sequence[str] = (),
    out: str | Path = "benchmark",
    executor: Executor | None = None,
    listen: Listener = lambda event: None,
    params: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> Benchmark:
    """Train each algorithm with each seed on each market, backtest it, and compare.

    What has a result in `out` from the same code, prices and settings is not run again: after a
    stop the same call runs the rest.

    Parameters
    ----------
    settings : of all; each algorithm of ours has its section
    algos : `cqsac` (pretrained by IQL), `cqsac_scratch`, `iql`, `td3bc`, SB3's `sac`, `td3`,
        `ddpg`, `ppo`, `a2c`, sb3-contrib's `tqc` and `crossq`, and rules of
        `evaluation.baselines`; equal weight is always there
    seeds : how many, from `settings.run.seed` on; a rule needs one
    steps : environment steps of all that learn online; each one's own where it is None
    markets : sources of prices; the settings' own if none is given
    params, files : overrides of SB3's own algorithms, as "sac.gamma:0.95", and files of theirs

    Raises
    ------
    ConfigError, DataError
        If something is asked for that there is not.
    ArtefactError
        If equal weight failed, without which nothing can be compared.
    KeyboardInterrupt
        At Ctrl-C.
    """
    sources = list(markets) or [settings.market.prices]
    cells = make_cells(settings, algos, seeds, steps, sources, params, files)
    store = Store(out)
    failed = run_cells(cells, store, executor or Executor(), listen)
    lost = {each.cell.key for each in failed}
    results = [store.get(cell) for cell in cells if cell.key not in lost]
    why = {each.cell.title: each.why for each in failed}
    found = _compared(settings, cells, results, store.out, why)
    write_whole(store.out / "config.yml", plain_yaml(settings).encode())
    _write(found, settings, cells, results, market_names(sources))
    return found


def _compared(
    settings: Settings,
    cells: Sequence[Cell],
    results: Sequence[CellResult],
    out: Path,
    failed: dict[str, str],
) -> Benchmark:
    markets = list(dict.fromkeys(cell.market for cell in cells))
    cash = {market: _cash(cells, results, market) for market in markets}
    rows = [row for m in markets for row in _rows(settings, results, [m], m, cash)]
    overall = _rows(settings, results, markets, ALL, cash) if len(markets) > 1 else []
    return Benchmark(out, verdict(overall or rows), tuple(rows), tuple(overall), failed)


def _rows(
    settings: Settings,
    results: Sequence[CellResult],
    markets: Sequence[str],
    name: str,
    cash: Mapping[str, Float],
) -> list[Row]:
    groups = _groups(results, markets, cash)
    by_name = {group.algo: group for group in groups}
    if REFERENCE not in by_name:
        raise ArtefactError(f"equal_weight has no result on {name}; see failed.json, and go on")
    length = settings.env_kwargs.episode_length
    reference, cqsac = by_name[REFERENCE], by_name.get("cqsac")
    return [
        row_of(g, reference, cqsac, name, g.algo in LEARNED, length, settings.evaluation)
        for g in groups
    ]


def _groups(
    results: Sequence[CellResult], markets: Sequence[str], cash: Mapping[str, Float]
) -> list[Group]:
    by_algo: dict[str, list[CellResult]] = {}
    for result in results:
        by_algo.setdefault(result.algo, []).append(result)
    return groups_of(by_algo, markets, cash)


def _cash(cells: Sequence[Cell], results: Sequence[CellResult], market: str) -> Float:
    """Daily rate of cash on the days of a market's curves."""
    settings = next(cell.settings for cell in cells if cell.market == market)
    curve = next((r.curve(0) for r in results if r.market == market), None)
    if curve is None:
        return np.zeros(0)
    table = open_prices(settings)
    return np.asarray(table.cash_rate[np.searchsorted(table.dates, curve.dates)])


# ---------------------------------------------------------------- files


def _write(
    found: Benchmark,
    settings: Settings,
    cells: Sequence[Cell],
    results: Sequence[CellResult],
    sources: Mapping[str, str],
) -> None:
    names = _draw(found, settings, cells, results)
    own = {m: "US20-v0" if s == EMBEDDED else f"Portfolio-v0 ({m})" for m, s in sources.items()}
    env_ids = {market: f"finflow/{name}" for market, name in own.items()}
    page = markdown(found.rows, found.overall, env_ids, found.failed, names, _command())
    write_whole(found.out / "benchmark.md", page.encode())
    write_whole(found.out / "benchmark.csv", cells_csv(results).encode())


def _draw(
    found: Benchmark, settings: Settings, cells: Sequence[Cell], results: Sequence[CellResult]
) -> list[str]:
    """Draw every picture; their names in the order of the page."""
    markets = list(dict.fromkeys(row.market for row in found.rows))
    cash = {market: _cash(cells, results, market) for market in markets}
    order = list(dict.fromkeys(cell.algo for cell in cells))
    every = _groups(results, markets, cash)
    rows = found.overall or found.rows
    drawn = {
        "sharpe.png": pictures.sharpe_plot(rows, every),
        "profile.png": pictures.profile_plot(profiles(every, settings.evaluation), order),
    }
    for market in markets:
        name = "growth.png" if len(markets) == 1 else f"growth_{market.replace(':', '-')}.png"
        drawn[name] = pictures.growth_plot(_groups(results, [market], cash), market, order)
    for name, figure in drawn.items():
        write_whole(found.out / name, png_bytes(figure))
    return list(drawn)


def _command() -> str:
    """The line that was typed, or that Python ran it."""
    if "finflow" not in Path(sys.argv[0]).name:
        return "finflow_sb3.benchmark"
    return shlex.join(["finflow", *sys.argv[1:]])
