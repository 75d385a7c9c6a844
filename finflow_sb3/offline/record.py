"""A broker's record: what was held day by day, read from a file and played again with costs.

A row of the file says what was held after trading on its day; between rows nothing was traded,
and weights drifted with the prices. The record's days in the training split become episodes of
the environment, whose actions have the portfolio follow the record as nearly as actions reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.accounting import grow, move_towards
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.simplex import nearest_on_simplex
from finflow_sb3.errors import DataError
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.cells import check_order, parse_dates, parse_numbers
from finflow_sb3.market.readers import FILE_ENDINGS, RawTable, plain, read_file
from finflow_sb3.messages import remedy
from finflow_sb3.offline.own_rules import CASH, TOLERANCE
from finflow_sb3.offline.playing import Recorder, nearest_action
from finflow_sb3.offline.waves import Wave

__all__ = [
    "PREFIX",
    "Record",
    "Replay",
    "decision_days",
    "read_record",
    "record_episodes",
    "record_waves",
    "replay",
]

Float = NDArray[np.float64]
PREFIX = "record:"
HOLDINGS = ("held", "weights", "pending")


@dataclass(frozen=True)
class Record:
    """Weights held after trading, on the days of R rows.

    Attributes
    ----------
    path : the file
    dates : datetime64[D], shape [R], strictly increasing
    assets : k names
    weights : shape [R, k+1], each row summing to one, cash last
    """

    path: str
    dates: NDArray[np.datetime64]
    assets: tuple[str, ...]
    weights: Float

    @property
    def name(self) -> str:
        """By which datasets call it: ``record:`` and the file's name without its ending."""
        name = Path(self.path).name
        ending = next((end for end in FILE_ENDINGS if name.lower().endswith(end)), "")
        return f"{PREFIX}{name[: len(name) - len(ending)]}"

    @property
    def key(self) -> str:
        """A hash of what it says."""
        return content_key(self.dates, self.assets, self.weights)


@dataclass(frozen=True)
class Replay:
    """A record on the D days of the training split that it has in common with a market.

    Attributes
    ----------
    first_row : of the market
    before : shape [D, n+1], weights when the day closes and before it trades, cash last
    after : shape [D, n+1], weights after it traded
    days : of the record in all, those that are left out too
    """

    record: Record
    first_row: int
    before: Float
    after: Float
    days: int

    @property
    def left_out(self) -> int:
        """Days of the record on which the training split has no decision."""
        return self.days - len(self.after)


# ------------------------------------------------------------------ reading


def read_record(path: str | Path) -> Record:
    """Read a record: a CSV, CSV.gz or Parquet file of dates × weights.

    Columns are assets by name, and ``cash`` where the file has it. Weights are shares of the
    portfolio's value; what a row is short of 1 is cash.

    Raises
    ------
    DataError
        At the first date or weight that can't be used, with its row and remedy.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise DataError(f"{path}: no such file; give one of weights, dates × assets")
    raw = read_file(file, name=str(path), what="record")
    if raw.symbol_column is not None:
        raise DataError(
            f"{raw.name}: column {raw.columns[raw.symbol_column]!r} makes it one row an asset; "
            "write one row a day, with one column an asset"
        )
    dates = parse_dates(raw)
    check_order(raw, dates)
    columns = {c: i for i, c in enumerate(raw.columns) if i != raw.date_column}
    assets = tuple(c for c in columns if plain(c) != CASH)
    weights = np.zeros((len(dates), len(assets) + 1))
    for name, column in columns.items():
        place = assets.index(name) if name in assets else -1
        weights[:, place] = _weights(raw, column, dates)
    return Record(str(path), dates, assets, _whole(raw, dates, weights))


def _weights(raw: RawTable, column: int, dates: NDArray[np.datetime64]) -> Float:
    values = parse_numbers(raw, column, dates, "weight")
    empty = np.isnan(values)
    if empty.any():
        i = int(empty.argmax())
        raise DataError(
            f"{raw.name}: column {raw.columns[column]!r}, {raw.row(i)} ({dates[i]}): no weight; "
            "write 0 for what was not held, and leave whole days out on which nothing was traded"
        )
    return values


def _whole(raw: RawTable, dates: NDArray[np.datetime64], weights: Float) -> Float:
    """Rows that sum to one: what is missing is cash."""
    total = weights.sum(axis=1)
    over = total > 1.0 + TOLERANCE
    if over.any():
        i = int(over.argmax())
        raise DataError(
            f"{raw.name}: {raw.row(i)} ({dates[i]}): weights sum to {total[i]:.8g}, more than 1; "
            "write shares of the portfolio's value (0.25, not 25 %), without borrowed money"
        )
    weights = weights / np.maximum(total, 1.0)[:, None]
    weights[:, -1] += np.maximum(0.0, 1.0 - weights.sum(axis=1))
    return weights


# ------------------------------------------------------------------ on a market


def replay(record: Record, market: ObservedMarket) -> Replay:
    """Lay a record over a market's training split.

    Raises
    ------
    DataError
        If it names an asset that the market lacks or a day on which that does not trade, or no
        day of it lies in the training split.
    """
    first, paths, days = _paths(record, market)
    train = market.splits.train
    # The day after a decision has to lie in the split too: its return is what is earned.
    start, stop = max(first, train.start), min(first + len(paths), train.stop - 1)
    if stop <= start:
        raise DataError(
            f"{record.path}: none of its days ({record.dates[0]} to {record.dates[-1]}) is one of "
            f"{decision_days(market)}; move the split, or give other days"
        )
    before, after = paths[start - first : stop - first].transpose(1, 0, 2)
    return Replay(record, start, before, after, days)


def decision_days(market: ObservedMarket) -> str:
    """The days of the training split that a record may fill, in words."""
    begin, end = market.splits.train.dates(market.prices.dates)
    last = market.prices.dates[market.splits.train.stop - 2]
    return (
        f"the training split's days of decision ({begin} to {last}: what is held at the end of "
        f"{end} earns its return after the split)"
    )


def _paths(record: Record, market: ObservedMarket) -> tuple[int, Float, int]:
    """First row, weights before and after each day's trade [D, 2, n+1], and days in all."""
    rows, weights = _rows(record, market), _columns(record, market)
    inside = rows >= 0
    outside = int((~inside).sum())
    if not inside.any():
        return 0, np.zeros((0, 2, weights.shape[1])), outside
    rows, weights = rows[inside], weights[inside]
    first, last = int(rows[0]), int(rows[-1])
    traded = dict(zip(rows.tolist(), weights, strict=True))
    paths = np.empty((last - first + 1, 2, weights.shape[1]))
    held = weights[0]
    for row in range(first, last + 1):
        after = traded.get(row, held)
        paths[row - first] = held, after
        if row < last:
            _require_listed(record, market, after, row)
            _, drifted = grow(after[None], market.returns[row + 1][None])
            held = drifted[0]
    return first, paths, len(paths) + outside


def _require_listed(record: Record, market: ObservedMarket, after: Float, row: int) -> None:
    """Refuse a holding that no price of the next day values."""
    listed = market.prices.listed
    if listed is None:
        return
    lost = np.flatnonzero((after[:-1] > 0.0) & ~(listed[row] & listed[row + 1]))
    if len(lost):
        raise DataError(
            f"{record.path}: on {market.prices.dates[row]} it holds "
            f"{market.prices.assets[lost[0]]!r}, which has no price then or no later one; write 0 "
            "for it until the day of its first price, and from that of its last"
        )


def _rows(record: Record, market: ObservedMarket) -> NDArray[np.int64]:
    """The market's row of every day of the record, −1 before its first or after its last day."""
    dates = market.prices.dates
    rows = np.minimum(np.searchsorted(dates, record.dates), len(dates) - 1)
    within = (record.dates >= dates[0]) & (record.dates <= dates[-1])
    strange = within & (dates[rows] != record.dates)
    if strange.any():
        day = record.dates[int(strange.argmax())]
        raise DataError(
            f"{record.path}: {day} is no day of {market.prices.source}; give its weights to the "
            "trading day before it"
        )
    return np.where(within, rows, -1)


def _columns(record: Record, market: ObservedMarket) -> Float:
    """The record's weights in the order of the market's assets, shape [R, n+1]; 0 for others."""
    names = market.prices.assets
    for asset in record.assets:
        if asset not in names:
            raise DataError(
                f"{record.path}: {asset!r} is no asset of {market.prices.source}; "
                f"{remedy(asset, names)}"
            )
    weights = np.zeros((len(record.dates), len(names) + 1))
    weights[:, [*map(names.index, record.assets), -1]] = record.weights
    return weights


# ------------------------------------------------------------------ playing it again


def record_waves(
    market: ObservedMarket, env: EnvSettings, found: Replay, n_envs: int
) -> Iterator[Wave]:
    """The episodes of a record, one after the other in time, the last being what is left over."""
    days = len(found.after)
    length = min(env.episode_length, days)
    starts = np.arange(0, days, length)
    whole = starts[starts + length <= days]
    for i in range(0, len(whole), n_envs):
        yield _one_wave(market, env, found, whole[i : i + n_envs], length)
    if len(whole) < len(starts):
        yield _one_wave(market, env, found, starts[-1:], days - int(starts[-1]))


def record_episodes(env: EnvSettings, found: Replay) -> int:
    """Number of episodes that `record_waves` gives."""
    return -(-len(found.after) // env.episode_length)


def _one_wave(
    market: ObservedMarket,
    env: EnvSettings,
    found: Replay,
    starts: NDArray[np.int64],
    length: int,
) -> Wave:
    """Episodes of one length from these days of a record on."""
    env = dataclasses.replace(env, episode_length=length)
    batch = PortfolioBatch(market, market.splits.train, len(starts), env)
    arrays, random = batch.state()
    held = found.before[starts]
    batch.restore(
        {**arrays, "row": found.first_row + starts} | dict.fromkeys(HOLDINGS, held), random
    )
    recorder = Recorder(batch)
    for day in range(length):
        wanted = found.after[starts + day]
        recorder.step(nearest_action(batch, target_towards(batch, wanted)))
        recorder.distances.append(0.5 * np.abs(batch.weights - wanted).sum(axis=1))
    return recorder.wave()


def target_towards(batch: PortfolioBatch, wanted: Float) -> Float:
    """The target [B, n+1] that has the portfolio hold `wanted` after the trade, or come nearest.

    Where η of the way to the target is traded, it lies 1/η times as far off as `wanted`. Where
    that is off the simplex, its nearest point there gives the nearest weights.
    """
    held = batch.held
    if batch.settings.execution_lag:  # what was ordered the day before is traded first
        ordered = move_towards(held, batch.pending, batch.trade_rate)
        held = np.where(batch.idle[:, None], held, ordered)
    return nearest_on_simplex(held + (wanted - held) / batch.trade_rate)
