"""From what is asked for to cells: each algorithm on each market with each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finflow_sb3.benchmark.cells import LEARNED, OURS, Cell, known_algorithm
from finflow_sb3.benchmark.tasks import prices_key
from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_checks import is_portfolio
from finflow_sb3.config_documents import read_document
from finflow_sb3.config_keys import PLAIN_ALGORITHMS
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.sources import EMBEDDED

__all__ = [
    "REFERENCE",
    "arguments_of",
    "cells_of",
    "check_matrix",
    "make_cells",
    "market_names",
    "own_params",
]

REFERENCE = "equal_weight"
"""The rule that everything is compared with, asked for or not."""


def own_params(params: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of settings, and those of SB3's own algorithms, as "sac.learning_rate:1e-3"."""
    plain = [p for p in params if p.partition(":")[0].strip().partition(".")[0] in PLAIN_ALGORITHMS]
    return [p for p in params if p not in plain], plain


def make_cells(
    settings: Settings,
    algos: Sequence[str],
    seeds: int,
    steps: int | None,
    markets: Sequence[str],
    params: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> list[Cell]:
    """Cells of a benchmark, equal weight among them. A rule has one cell, whatever the seeds.

    Parameters
    ----------
    settings : of all; each algorithm of ours has its section
    seeds : how many, from `settings.run.seed` on
    steps : environment steps of all that learn online; each one's own setting where it is None
    markets : sources of prices
    params, files : where arguments of SB3's own algorithms come from, beside the packaged files

    Raises
    ------
    ConfigError
        If an algorithm or an argument is unknown, something is asked for twice, or an override
        is of an algorithm that is not asked for.
    DataError
        If prices cannot be used.
    """
    algos = list(dict.fromkeys([*(known_algorithm(algo) for algo in algos), REFERENCE]))
    check_matrix(settings, algos, seeds, params)
    if steps is not None:
        settings = settings.replace(cqsac={"n_timesteps": steps})
    arguments: dict[str, dict[str, Any]] = {
        algo: arguments_of(algo, settings, params, files)
        | ({} if steps is None else {"n_timesteps": steps})
        for algo in algos
        if algo in PLAIN_ALGORITHMS
    }
    cells = []
    for name, source in market_names(markets).items():
        here = settings.replace(market={"prices": source})
        cells += cells_of(algos, seeds, name, here, prices_key(here), arguments)
    return cells


def cells_of(
    algos: Sequence[str],
    seeds: int,
    market: str,
    settings: Settings,
    prices: str,
    arguments: Mapping[str, Mapping[str, Any]],
    fold: str = "",
) -> list[Cell]:
    """Cells of one market, or of one fold of it.

    Parameters
    ----------
    seeds : how many, from `settings.run.seed` on; a rule has one cell
    market, prices : its name in tables, and the hash of its prices
    arguments : of SB3's own algorithms, by algorithm
    """
    return [
        Cell(
            algo,
            market,
            _settings(algo, settings).replace(run={"seed": settings.run.seed + i}),
            prices,
            arguments.get(algo, {}),
            fold,
        )
        for algo in algos
        for i in range(seeds if algo in LEARNED else 1)
    ]


def market_names(markets: Sequence[str]) -> dict[str, str]:
    """Sources of prices by what they are called in tables.

    Raises
    ------
    ConfigError
        If two have the same name.
    """
    found: dict[str, str] = {}
    for source in markets:
        is_file = source != EMBEDDED and not source.startswith("yahoo:")
        name = Path(source).name.split(".")[0] if is_file else source
        if name in found:
            raise ConfigError(f"--markets: two are called {name!r}; rename one of the files")
        found[name] = source
    return found


def check_matrix(
    settings: Settings, algos: Sequence[str], seeds: int, params: Sequence[str] = ()
) -> None:
    """Refuse what no matrix can be made of.

    Raises
    ------
    ConfigError
        As `make_cells` says.
    """
    if not is_portfolio(settings.env):
        raise ConfigError(f"--env: {settings.env} is not made of prices; use finflow/Portfolio-v0")
    if seeds < 1:
        raise ConfigError(f"--seeds: {seeds} is out of range (1 to inf)")
    if "index" in algos and settings.evaluation.index is None:
        raise ConfigError("--algos: index needs one; name it with -p evaluation.index:FILE")
    for param in own_params(params)[1]:
        owner = param.partition(".")[0].strip()
        if owner not in algos:
            raise ConfigError(f"--param {param}: {owner} is not among --algos; leave it out")


def _settings(algo: str, settings: Settings) -> Settings:
    """Settings of one algorithm: from scratch there is no offline data to mix in."""
    if algo != "cqsac_scratch":
        return settings
    return settings.replace(cqsac={"offline_fraction": 0.0})


def arguments_of(
    algo: str, settings: Settings, params: Sequence[str] = (), files: Sequence[Path] = ()
) -> dict[str, Any]:
    """Arguments of one of SB3's own algorithms; empty of any other.

    Parameters
    ----------
    params : those of other algorithms are left out, as "tqc.gamma:0.95" for sac
    files : those that name another algorithm are left out

    Raises
    ------
    ConfigError
        If an argument is unknown, wrong, or one that nothing acts on in portfolios.
    """
    if algo not in PLAIN_ALGORITHMS:
        return {}
    own = [p for p in own_params(params)[1] if p.strip().startswith(f"{algo}.")]
    others = [other for other in PLAIN_ALGORITHMS if other != algo] + list(OURS)
    read = [path for path in files if read_document(path).algo not in others]
    found = plain_arguments(algo, settings.env, files=read, params=own)
    for name in found.unused:
        where = found.origins.get(name, algo)
        raise ConfigError(f"{where}: nothing acts on {name} in portfolios; leave it out")
    return found.arguments
