"""Walk-forward: train again on each fold's past, and join what follows into one net curve.

Fold f trains on the days before its test days and is tested on those; the next fold's test days
follow at once. An account that was run so would have followed the first policy, then the second,
and so on, and paid for the trades from one to the next: that account's curve is the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finflow_sb3.backtest_rules import LAGS, measured
from finflow_sb3.benchmark.cells import LEARNED, known_algorithm
from finflow_sb3.benchmark.matrix import Executor, run_cells
from finflow_sb3.benchmark.plan import arguments_of, cells_of, check_matrix, market_names
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.tasks import Listener, prices_key
from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.evaluation.baselines import baselines
from finflow_sb3.evaluation.chained import Piece, chained_backtest
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.market.splits import Span, make_splits, walk_forward
from finflow_sb3.opening import open_market
from finflow_sb3.results import Watch
from finflow_sb3.training.trained import load_policy
from finflow_sb3.walkforward_report import write_walk_forward

__all__ = ["Fold", "WalkForward", "folds_of", "walkforward"]

YEAR = 252


@dataclass(frozen=True)
class Fold:
    """Days of one fold, as ISO dates, all of them included.

    Attributes
    ----------
    train_start : None where training begins with the first usable day
    """

    number: int
    train_start: str | None
    train_end: str
    validation_end: str
    test_end: str

    @property
    def name(self) -> str:
        return f"fold{self.number:02d}"

    def of(self, settings: Settings) -> Settings:
        """`settings` whose splits are this fold's."""
        return settings.replace(market=self.days)

    @property
    def days(self) -> dict[str, Any]:
        """Settings of the market, by which splits become the fold's."""
        names = ("train_start", "train_end", "validation_end", "test_end")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class WalkForward:
    """What a walk-forward came to.

    Attributes
    ----------
    out : folder with table, figures and picture, and the cells
    curves : net curves over all test days: of every algorithm and seed, then of the rules
    measures : name of the curve → "lag_0" and "lag_1" → measures
    left_out : days at the end that make no whole fold
    failed : title of a cell → why it failed; an algorithm and seed that miss a fold have no curve
    """

    out: Path
    folds: tuple[Fold, ...]
    curves: tuple[Curve, ...]
    measures: dict[str, dict[str, dict[str, float]]]
    left_out: int
    failed: dict[str, str]


def folds_of(
    market: ObservedMarket, test_days: int, train_days: int, expanding: bool = True
) -> tuple[list[Fold], int]:
    """Folds of a market, and how many days at its end make no whole one.

    The last part of a fold's training days chooses the best checkpoint, in the proportion of
    `validation_fraction` to `train_fraction`. Between the parts the label's horizon is left out,
    as in every split.

    Raises
    ------
    DataError
        If there are too few days for one fold, or for a split of one.
    """
    dates, first = market.prices.dates, market.splits.train.start
    settings = market.settings
    share = settings.validation_fraction / (settings.train_fraction + settings.validation_fraction)
    found = list(_spans(len(dates), first, test_days, train_days, expanding))
    if not found:
        raise DataError(
            f"{len(dates) - first} usable days make no fold of {train_days} to train and "
            f"{test_days} to test; lower --train-days or --test-days"
        )
    folds = [
        Fold(
            number=number,
            train_start=None if expanding else str(dates[train.start]),
            train_end=str(dates[train.stop - 1 - round(len(train) * share)]),
            validation_end=str(dates[train.stop - 1]),
            # The day on which the next one takes over is this one's last return.
            test_end=str(dates[min(test.stop, len(dates) - 1)]),
        )
        for number, (train, test) in enumerate(found, start=1)
    ]
    purge = market.env.execution_lag + 1
    for fold in folds:
        make_splits(dates, first, dataclasses.replace(settings, **fold.days), purge)
    return folds, len(dates) - 1 - min(found[-1][1].stop, len(dates) - 1)


def _spans(
    rows: int, first: int, test_days: int, train_days: int, expanding: bool
) -> Iterator[tuple[Span, Span]]:
    if rows - first < train_days + test_days:
        return
    yield from walk_forward(rows, first, test_days, train_days, 0, expanding)


def walkforward(
    settings: Settings,
    algos: Sequence[str] = ("cqsac",),
    seeds: int = 1,
    test_days: int = 2 * YEAR,
    train_days: int = 8 * YEAR,
    expanding: bool = True,
    out: str | Path = "walkforward",
    executor: Executor | None = None,
    watch: Watch | None = None,
    listen: Listener = lambda event: None,
    params: Sequence[str] = (),
    files: Sequence[Path] = (),
) -> WalkForward:
    """Train each algorithm on each fold with each seed, and join the test days.

    What was run already, with the same settings into the same folder, is not run again.

    Parameters
    ----------
    seeds : how many, from `settings.run.seed` on
    test_days, train_days : of a fold; `train_days` of the first one where training expands
    params, files : overrides of SB3's own algorithms, as "sac.gamma:0.95", and files of theirs
    """
    watch, executor = watch or Watch(), executor or Executor()
    algos = list(dict.fromkeys(map(known_algorithm, algos)))
    check_matrix(settings, algos, seeds, params)
    for algo in algos:
        if algo not in LEARNED:
            raise ConfigError(f"--algos: {algo} does not learn; rules stand beside every result")
    arguments = {algo: arguments_of(algo, settings, params, files) for algo in algos}
    market = open_market(settings, watch=watch)
    folds, left_out = folds_of(market, test_days, train_days, expanding)
    key, store = prices_key(settings), Store(Path(out))
    (title,) = market_names([settings.market.prices])
    cells = {
        (cell.algo, cell.seed, fold): cell
        for fold in folds
        for cell in cells_of(algos, seeds, title, fold.of(settings), key, arguments, fold.name)
    }
    failed = run_cells(list(cells.values()), store, executor, listen)
    lost = {(f.cell.algo, f.cell.seed) for f in failed}
    curves: list[Curve] = []
    for algo in algos:
        for i in range(seeds):
            seed = settings.run.seed + i
            if (algo, seed) not in lost:
                runs = [store.folder(cells[algo, seed, fold]) for fold in folds]
                name = algo if seeds == 1 else f"{algo} (seed {seed})"
                curves += _joined(name, folds, runs, settings, watch)
    curves += _rules(market, folds, settings)
    span = _test_days(market, folds)
    found = measured(curves, market.prices.cash_rate[span.start + 1 : span.stop])
    why = {f.cell.title: f.why for f in failed}
    result = WalkForward(Path(out), tuple(folds), tuple(curves), found, left_out, why)
    write_walk_forward(result, settings)
    return result


def _joined(
    name: str,
    folds: Sequence[Fold],
    runs: Sequence[Path],
    settings: Settings,
    watch: Watch,
) -> list[Curve]:
    """The account that follows the folds' policies in turn, at both lags."""
    pieces = []
    for fold, run in zip(folds, runs, strict=True):
        policy = load_policy(run)
        market = open_market(fold.of(settings), policy.scaler, watch)
        market.layout.require_equal(policy.layout, str(run))
        pieces.append(Piece(market, market.splits.test, policy.act))
    return [chained_backtest(pieces, settings.env_kwargs, name, lag) for lag in LAGS]


def _rules(market: ObservedMarket, folds: Sequence[Fold], settings: Settings) -> list[Curve]:
    """Rules over the same days as one account each; they have nothing to retrain."""
    span = _test_days(market, folds)
    env, rules = settings.env_kwargs, settings.evaluation
    return [c for lag in LAGS for c in baselines(market, span, env, rules, lag)]


def _test_days(market: ObservedMarket, folds: Sequence[Fold]) -> Span:
    dates = market.prices.dates
    start = int(np.searchsorted(dates, np.datetime64(folds[0].validation_end))) + 1
    stop = int(np.searchsorted(dates, np.datetime64(folds[-1].test_end))) + 1
    return Span(start, stop)
