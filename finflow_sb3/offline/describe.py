"""What is in a dataset: how the rules did, what they tried, and what it can hardly teach.

Everything is counted in one pass over pieces of the arrays, so that datasets that are larger
than memory can be described where their arrays are memory-mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.errors import ArtefactError, DataError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.offline.coverage import ActionCoverage, coverage_of, warnings_of
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.offline.playing import LARGEST_ACTION
from finflow_sb3.offline.record import PREFIX
from finflow_sb3.offline.tallies import ActionTally, Histogram, Spread, spread_of
from finflow_sb3.offline.trades import environment_of, trades

__all__ = ["Behaviour", "Description", "describe", "describe_dataset"]

Float = NDArray[np.float64]
Progress = Callable[[str, int, int], None]

TRADING_DAYS = 252
CHUNK = 100_000
# Of the widest array that a piece is worked out on: 32 MB of float64.
CHUNK_ELEMENTS = 4_000_000
DISTANCE_BINS = 10_000


@dataclass(frozen=True)
class Behaviour:
    """How one rule traded.

    Attributes
    ----------
    reward : mean of a step
    episode_return : of an episode, the sum of its rewards
    annual_reward : the same for a year: times 252 over the episode's length. The default reward
        is the log return above equal weight in units of the market's daily deviation
    distance : half the sum of |target of the action − target of the rule|, from 0 to 1: what
        noise, the clip and the inverse left of the rule. Of a record: half the sum of |weights
        after the trade − its weights|
    turnover : traded value over value, a day (buys plus sells); None where the file does not
        hold the environment's settings, from which trades are worked out
    gap : half the sum of |weights after the trade − order|, from 0 to 1; None likewise
    rule_gap : means of the least and the most that the weights after the trade can be away from
        the rule's target, which is not stored: |gap − distance| and gap + distance; None
        likewise, and with execution lag 1, where the order is of the day before. Of a record:
        twice the mean of `distance`, which says it
    """

    name: str
    episodes: int
    transitions: int
    reward: float
    episode_return: Spread
    annual_reward: Spread
    distance: Spread
    turnover: Spread | None
    gap: Spread | None
    rule_gap: tuple[float, float] | None


@dataclass(frozen=True)
class Description:
    """A dataset in figures.

    Attributes
    ----------
    path : None for a dataset in memory
    size : of the file, bytes
    first_row, last_row : market rows of the first and last observation, successors included
    first_date, last_date : their ISO dates, where the prices are known
    reward : what rewards are, in words; None where the file does not say
    terminals, timeouts : episodes that ended by ruin, and by time
    coverage : what the actions tried
    warnings : where it would teach little, one sentence each
    """

    path: Path | None
    size: int | None
    transitions: int
    episodes: int
    assets: tuple[str, ...]
    first_row: int
    last_row: int
    first_date: str | None
    last_date: str | None
    reward: str | None
    terminals: int
    timeouts: int
    behaviours: tuple[Behaviour, ...]
    coverage: ActionCoverage = field(repr=False)
    warnings: tuple[str, ...] = ()


def describe(
    path: str | Path, prices: PriceTable | None = None, on_progress: Progress | None = None
) -> Description:
    """Describe a dataset of `finflow collect`.

    Parameters
    ----------
    prices : that it was collected on, which name the dates of its rows; those of `us20` are
        found by themselves
    on_progress : called with the stage ("checking" bytes, then "describing" transitions), what is
        done of it, and its size

    Raises
    ------
    ArtefactError
        If the file is missing, of another kind, or not whole.
    DataError
        If the prices have other rows than the dataset.
    """
    path = Path(path)
    checking = None if on_progress is None else partial(on_progress, "checking")
    return describe_dataset(read_dataset(path, checking), prices, on_progress, path=path)


def describe_dataset(
    dataset: OfflineDataset,
    prices: PriceTable | None = None,
    on_progress: Progress | None = None,
    *,
    path: Path | None = None,
    chunk: int | None = None,
) -> Description:
    """Describe a dataset in memory; arguments as for `describe`.

    Parameters
    ----------
    path : the file that it was read from
    chunk : transitions that are read at a time
    """
    if not len(dataset):
        raise ArtefactError(f"{path or 'the dataset'}: holds no transitions; collect some")
    count = _Count(dataset)
    step = chunk or _chunk(dataset.layout)
    for start in range(0, len(dataset), step):
        stop = min(start + step, len(dataset))
        count.add(start, stop)
        if on_progress is not None:
            on_progress("describing", stop, len(dataset))
    first, last = count.rows
    dates = _dates(dataset, prices)
    coverage = coverage_of(dataset, count.actions)
    behaviours = tuple(count.behaviour(i) for i in np.unique(dataset.behaviour))
    return Description(
        path=path,
        size=None if path is None else path.stat().st_size,
        transitions=len(dataset),
        episodes=dataset.n_episodes,
        assets=dataset.layout.assets,
        first_row=first,
        last_row=last,
        first_date=None if dates is None else str(dates[first]),
        last_date=None if dates is None else str(dates[last]),
        reward=None if count.env is None else _reward(count.env),
        terminals=int(dataset.terminal.sum()),
        timeouts=int(dataset.timeout.sum()),
        behaviours=behaviours,
        coverage=coverage,
        warnings=warnings_of(
            {b.name: b.distance.mean for b in behaviours},
            dataset.n_episodes,
            count.reward_range,
            coverage,
        ),
    )


def _chunk(layout: ObservationLayout) -> int:
    """Transitions at a time, so that what is worked out of them stays small."""
    width = max(layout.action_size, (layout.n_anchors + 1) * (layout.n_assets + 1))
    return max(1, min(CHUNK, CHUNK_ELEMENTS // width))


def _dates(dataset: OfflineDataset, prices: PriceTable | None) -> NDArray[np.datetime64] | None:
    """Dates of the market's rows; None where nobody knows them."""
    from finflow_sb3.market.sources import EMBEDDED, load_prices

    if prices is None:
        if dataset.settings.get("source") != EMBEDDED:
            return None
        prices = load_prices(EMBEDDED)
    if len(prices) < len(dataset.market_rows) or prices.assets != dataset.layout.assets:
        raise DataError(
            f"{prices.source}: has {len(prices)} rows of {prices.n_assets} assets where the "
            f"dataset has {len(dataset.market_rows)} of {dataset.layout.n_assets}; give the prices "
            "that it was collected on"
        )
    first = dataset.settings.get("first_date")
    if first is not None and first != str(prices.dates[0]):
        raise DataError(
            f"{prices.source}: begins on {prices.dates[0]} where the dataset's prices began on "
            f"{first}; give the prices that it was collected on"
        )
    return prices.dates


def _reward(env: EnvSettings) -> str:
    above = " above equal weight" if env.reward_baseline == "equal_weight" else ""
    if env.reward == "differential_sharpe":
        return f"differential Sharpe ratio{above}"
    less = any((env.lambda_turn, env.lambda_cvar, env.lambda_dd))
    return f"net log return{above}, in daily deviations of the market{', less penalties' * less}"


class _Count:
    """What is counted in the pass over a dataset."""

    def __init__(self, dataset: OfflineDataset):
        self.dataset = dataset
        self.env: EnvSettings | None = environment_of(dataset)
        names = len(dataset.behaviours)
        self.actions = ActionTally(dataset.layout.action_size, LARGEST_ACTION)
        self.distance = Histogram(names, 0.0, 1.0, DISTANCE_BINS)
        self.gap = Histogram(names, 0.0, 1.0, DISTANCE_BINS)
        self.turnover = Histogram(names, 0.0, 2.0, DISTANCE_BINS)
        self.nearest, self.farthest = np.zeros(names), np.zeros(names)
        self.returns = np.zeros(dataset.n_episodes)
        self.lengths = np.zeros(dataset.n_episodes, dtype=np.int64)
        self.rows = (len(dataset.market_rows), 0)
        self.reward_range = (np.inf, -np.inf)

    def add(self, start: int, stop: int) -> None:
        """Count transitions `start` to `stop`."""
        data = self.dataset
        episode = np.asarray(data.episode[start:stop])
        reward = np.asarray(data.reward[start:stop])
        row = np.asarray(data.row[start:stop])
        rule = np.asarray(data.behaviour)[episode]
        within = episode - episode[0]
        some = slice(int(episode[0]), int(episode[-1]) + 1)
        self.returns[some] += np.bincount(within, weights=reward)
        self.lengths[some] += np.bincount(within)
        self.rows = min(self.rows[0], int(row.min())), max(self.rows[1], int(row.max()) + 1)
        low, high = self.reward_range
        self.reward_range = min(low, float(reward.min())), max(high, float(reward.max()))
        self.actions.add(np.asarray(data.action[start:stop]))
        distance = np.asarray(data.distance[start:stop])
        self.distance.add(rule, distance)
        if self.env is not None:
            done = trades(data, self.env, start, stop)
            self.turnover.add(rule, done.turnover)
            self.gap.add(rule, done.gap)
            self.nearest += self._sums(rule, np.abs(done.gap - distance))
            self.farthest += self._sums(rule, done.gap + distance)

    def _sums(self, rule: NDArray[np.int32], values: Float) -> Float:
        count = len(self.dataset.behaviours)
        return np.bincount(rule, weights=values, minlength=count).astype(np.float64)

    def behaviour(self, rule: int) -> Behaviour:
        """The figures of one rule that has episodes."""
        own = self.dataset.behaviour == rule
        returns, lengths = self.returns[own], self.lengths[own]
        transitions = int(lengths.sum())
        traded, lagged = self.env is not None, self.dataset.layout.lagged
        name, distance = self.dataset.behaviours[rule], self.distance.spread(rule)
        bounds = (self.nearest[rule] / transitions, self.farthest[rule] / transitions)
        if name.startswith(PREFIX):
            bounds = (distance.mean, distance.mean)
        return Behaviour(
            name=name,
            episodes=len(returns),
            transitions=transitions,
            reward=float(returns.sum() / transitions),
            episode_return=spread_of(returns),
            annual_reward=spread_of(returns * TRADING_DAYS / lengths),
            distance=distance,
            turnover=self.turnover.spread(rule) if traded else None,
            gap=self.gap.spread(rule) if traded else None,
            rule_gap=(float(bounds[0]), float(bounds[1])) if traded and not lagged else None,
        )
