"""A broker's record: read from a file, laid over a market, and played again with costs."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from checkers import check_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import random_prices, small_market, table_of
from numpy.typing import NDArray

from finflow_sb3.config import BEHAVIOURS, CollectSettings, EnvSettings, MarketSettings
from finflow_sb3.envs.observations import ObservedMarket, observe
from finflow_sb3.envs.simplex import nearest_on_simplex
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.offline.collect import collect_dataset, dataset_key
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.describe import describe_dataset
from finflow_sb3.offline.own import Own
from finflow_sb3.offline.record import Record, decision_days, read_record, replay

FREE = EnvSettings(
    action_base="none", reward_baseline="none", fee=0.001, episode_length=12, ruin=0.0
)
COLLECT = CollectSettings(episodes=20, n_envs=2)
ALONE = {"alone": True}


def record_of(
    market: ObservedMarket, rows: list[int], weights: Any, assets: tuple[str, ...] | None = None
) -> Record:
    """A record of weights of the assets on these rows of the market; the rest is cash."""
    table = np.asarray(weights, dtype=np.float64)
    whole = np.column_stack([table, 1.0 - table.sum(axis=1)])
    dates = market.prices.dates[np.array(rows)]
    return Record("held.csv", dates, assets or market.prices.assets, whole)


def played(
    market: ObservedMarket, env: EnvSettings, record: Record, n_envs: int = 2
) -> OfflineDataset:
    """The record's episodes and no others."""
    own = Own(replays=(replay(record, market),), **ALONE)
    return collect_dataset(market, env, dataclasses.replace(COLLECT, n_envs=n_envs), 0, own=own)


def executed(data: OfflineDataset, market: ObservedMarket) -> NDArray[np.float64]:
    """Weights after every trade [N, n+1], from what they had drifted to a day later."""
    width = len(data.layout.assets) + 1
    after = np.arange(len(data)) + data.episode + 1
    weights = data.states[after, :width] / (1.0 + market.returns[data.row + 1])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


# ------------------------------------------------------------------ by hand


def test_four_days_by_hand() -> None:
    """Three assets, 10 bps a trade: what the portfolio is worth after each of four days.

    Held are (0.5, 0.3, 0.1) on the first day, nothing is traded on the second, (0.2, 0.2, 0.2) on
    the third and (0.1, 0.6, 0.2) on the fourth; the rest is cash, which earns nothing.
    """
    days = np.random.default_rng(0).normal(0.0, 0.01, size=(600, 3))
    start = 300
    days[start + 1 : start + 5] = [
        [0.02, -0.01, 0.00],
        [0.01, 0.03, -0.02],
        [-0.05, 0.00, 0.04],
        [0.02, 0.02, -0.01],
    ]
    market = observe(table_of(days), MarketSettings(anchor_refit=63), FREE)
    held = [[0.5, 0.3, 0.1], [0.2, 0.2, 0.2], [0.1, 0.6, 0.2]]
    data = played(market, FREE, record_of(market, [start, start + 2, start + 3], held))

    # Day 1, nothing is traded: 0.5·1.02 + 0.3·0.99 + 0.1·1.00 + 0.1.
    first = 1.007
    # Day 2, nothing is traded: 0.51·1.01 + 0.297·1.03 + 0.1·0.98 + 0.1.
    second = 1.01901
    # Day 3: shares before are (0.5151, 0.30591, 0.098)/1.01901; two are sold, the last is bought.
    # μ = 1 − 0.001·((w1 − 0.2μ) + (w2 − 0.2μ) + (0.2μ − w3)), so that
    # μ·(1 − 0.001·0.2) = 1 − 0.001·(w1 + w2 − w3).
    w1, w2, w3 = 0.5151 / 1.01901, 0.30591 / 1.01901, 0.098 / 1.01901
    mu = (1 - 0.001 * (w1 + w2 - w3)) / (1 - 0.001 * 0.2)
    third = second * mu * (0.2 * 0.95 + 0.2 * 1.00 + 0.2 * 1.04 + 0.4)
    # Day 4: shares are (0.19, 0.2, 0.208)/0.998; the first and third are sold, the second bought.
    # μ·(1 + 0.001·(0.6 − 0.1 − 0.2)) = 1 − 0.001·(w1 − w2 + w3).
    w1, w2, w3 = 0.19 / 0.998, 0.2 / 0.998, 0.208 / 0.998
    mu = (1 - 0.001 * (w1 - w2 + w3)) / (1 + 0.001 * (0.6 - 0.1 - 0.2))
    fourth = third * mu * (0.1 * 1.02 + 0.6 * 1.02 + 0.2 * 0.99 + 0.1)

    values = np.exp(np.cumsum(data.reward.astype(np.float64) * market.sigma))
    np.testing.assert_allclose(values, [first, second, third, fourth], rtol=2e-7)
    np.testing.assert_array_equal(data.row, np.arange(start, start + 4))
    assert data.distance.max() < 1e-6
    np.testing.assert_allclose(executed(data, market)[[0, 2, 3], :3], held, atol=1e-6)
    assert (data.n_episodes, data.timeout.tolist()) == (1, [True])


def test_what_is_not_held_is_almost_not_held_again() -> None:
    """Actions of base `none` reach no zero: e^-9.5 of the largest weight is what is left of it."""
    held = [[0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    data = played(MARKET, FREE, record_of(MARKET, [TRAIN.start, TRAIN.start + 1], held))
    left = math.exp(-2 * 0.95 * FREE.softmax_scale)
    np.testing.assert_allclose(data.distance, [3 * 0.6 * left, 4 * left], rtol=1e-2)


# ------------------------------------------------------------------ whatever was held


MARKET = observe(random_prices(4, 600), MarketSettings(anchor_refit=63), FREE)
TRAIN = MARKET.splits.train


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Interior weights on some days of the training split."""
    rows = draw(
        st.lists(
            st.integers(TRAIN.start, TRAIN.start + 40), min_size=1, max_size=12, unique=True
        ).map(sorted)
    )
    parts = st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5)
    table = np.array([draw(parts) for _ in rows])
    return record_of(MARKET, rows, (table / table.sum(axis=1, keepdims=True))[:, :4])


@settings(max_examples=25, deadline=None)
@given(records(), st.integers(1, 4), st.integers(3, 30))
def test_what_was_held_is_held_again(record: Record, n_envs: int, length: int) -> None:
    """Whatever the batch and the episodes: the same days, weights of the record, and budgets."""
    env = dataclasses.replace(FREE, episode_length=length)
    laid = replay(record, MARKET)
    data = played(MARKET, env, record, n_envs)
    check_budget(laid.before)
    check_budget(laid.after)
    np.testing.assert_array_equal(data.row, laid.first_row + np.arange(len(laid.after)))
    np.testing.assert_array_equal(data.episode, np.arange(len(data)) // length)
    np.testing.assert_allclose(executed(data, MARKET), laid.after, atol=1e-5)
    assert data.distance.max() < 1e-5
    again = played(MARKET, env, record, 3)
    np.testing.assert_array_equal(data.action, again.action)
    np.testing.assert_array_equal(data.states, again.states)


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
@pytest.mark.parametrize("lag", [0, 1])
def test_a_record_is_followed_as_far_as_actions_reach(base: Any, lag: int) -> None:
    """A portfolio that is held for months is come near to in every base, and nearest where
    actions reach far. The distance is that of the weights after each trade."""
    env = EnvSettings(action_base=base, execution_lag=lag, episode_length=60)
    market = small_market(EnvSettings(action_base=base, execution_lag=lag))
    rows = list(range(market.splits.train.start, market.splits.train.start + 60))
    data = played(market, env, record_of(market, rows, [[0.3, 0.1, 0.2, 0.2, 0.1]] * 60))
    wanted = np.array([0.3, 0.1, 0.2, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(
        0.5 * np.abs(executed(data, market) - wanted).sum(axis=1), data.distance, atol=1e-6
    )
    late = data.distance[30:].mean()
    assert late < {"anchors": 0.06, "drift": 0.01, "none": 0.01}[base]


def test_the_target_lies_beyond_where_a_tenth_of_the_way_is_traded() -> None:
    """With a trade rate of 0.1 and targets that reach all, small changes arrive the same day."""
    env = dataclasses.replace(FREE, trade_rate=0.1)
    first = [0.3, 0.2, 0.2, 0.2]
    rows = [TRAIN.start, TRAIN.start + 5]
    data = played(MARKET, env, record_of(MARKET, rows, [first, [0.31, 0.19, 0.2, 0.2]]))
    assert data.distance.max() < 1e-5
    # A quarter of the portfolio would need a weight of 2.8: the nearest that there is is traded.
    data = played(MARKET, env, record_of(MARKET, rows, [first, [0.05, 0.2, 0.2, 0.45]]))
    assert 0.1 < data.distance[5] < 0.25


@given(st.lists(st.floats(-20.0, 20.0), min_size=2, max_size=6))
def test_nearest_on_simplex(point: list[float]) -> None:
    """It is on the simplex, and no step to a corner comes nearer."""
    points = np.array([point])
    (near,) = nearest_on_simplex(points)
    check_budget(near)
    away = near - points[0]
    for corner in np.eye(len(point)):
        assert away @ (corner - near) >= -1e-9 * (1.0 + np.abs(away).max())


# ------------------------------------------------------------------ among other episodes


def test_a_record_follows_the_rules() -> None:
    market = small_market()
    rows = [market.splits.train.start + 3, market.splits.train.start + 30]
    own = Own(replays=(replay(record_of(market, rows, [[0.2] * 5] * 2), market),))
    env = EnvSettings(episode_length=12)
    collect = CollectSettings(episodes=8, n_envs=3)
    data = collect_dataset(market, env, collect, 0, own=own)
    assert data.behaviours == (*BEHAVIOURS, "record:held")
    np.testing.assert_array_equal(data.behaviour, [*range(8), 8, 8, 8])
    assert data.transitions_by_behaviour()["record:held"] == 28
    np.testing.assert_array_equal(np.bincount(data.episode), [12] * 10 + [4])
    without = collect_dataset(market, env, collect, 0)
    np.testing.assert_array_equal(data.action[:96], without.action)
    found = describe_dataset(data).behaviours[-1]
    assert found.name == "record:held"
    assert found.rule_gap == (found.distance.mean, found.distance.mean)
    assert data.settings["own"]["records"][0][0] == "held.csv"


def test_episodes_go_on_with_what_was_held_before_the_trade() -> None:
    """An episode that begins within a record pays for the trade of its first day."""
    rows = [TRAIN.start, TRAIN.start + 12]
    data = played(MARKET, FREE, record_of(MARKET, rows, [[0.7, 0.1, 0.1, 0.05], [0.1] * 4]))
    assert data.n_episodes == 2
    np.testing.assert_allclose(data.states[12, :5], data.states[13, :5], atol=1e-6)
    np.testing.assert_allclose(executed(data, MARKET)[12], [0.1, 0.1, 0.1, 0.1, 0.6], atol=1e-5)


def test_ruin_ends_an_episode_of_a_record() -> None:
    days = np.random.default_rng(0).normal(0.0, 0.01, size=(600, 3))
    days[304] = [-0.99, -0.99, -0.99]
    env = dataclasses.replace(FREE, ruin=0.1)
    market = observe(table_of(days), MarketSettings(anchor_refit=63), env)
    data = played(market, env, record_of(market, [300, 310], [[0.4, 0.3, 0.3]] * 2))
    assert (len(data), data.terminal.tolist()) == (4, [True])


def test_the_key_holds_what_a_record_says() -> None:
    def key(*records: Record) -> str:
        own = Own(replays=tuple(replay(record, MARKET) for record in records))
        return dataset_key(MARKET, FREE, COLLECT, 0, own)

    rows = [TRAIN.start, TRAIN.start + 9]
    one = record_of(MARKET, rows, [[0.2] * 4] * 2)
    others = [
        record_of(MARKET, rows, [[0.2] * 4, [0.21, 0.19, 0.2, 0.2]]),
        record_of(MARKET, [rows[0], rows[1] + 1], [[0.2] * 4] * 2),
        dataclasses.replace(one, path="other.csv"),
    ]
    assert len({key(), key(one), *map(key, others)}) == 5


def test_two_records_of_one_name() -> None:
    laid = replay(record_of(MARKET, [TRAIN.start], [[0.2] * 4]), MARKET)
    with pytest.raises(ConfigError, match="record:held: two behaviours are called so"):
        Own(replays=(laid, laid))


# ------------------------------------------------------------------ outside of training


@pytest.mark.parametrize(
    ("first", "last", "kept", "left_out"),
    [
        (TRAIN.start, TRAIN.start, 1, 0),
        (TRAIN.start - 10, TRAIN.start + 4, 5, 10),
        (TRAIN.stop - 5, TRAIN.stop + 20, 4, 22),
        (TRAIN.start - 1, TRAIN.stop - 1, len(TRAIN) - 1, 2),
    ],
)
def test_days_outside_training_are_left_out(
    first: int, last: int, kept: int, left_out: int
) -> None:
    record = record_of(MARKET, sorted({first, last}), [[0.3, 0.2, 0.2, 0.2]] * len({first, last}))
    laid = replay(record, MARKET)
    assert (len(laid.after), laid.left_out) == (kept, left_out)
    data = played(MARKET, FREE, record)
    assert data.row.min() >= TRAIN.start
    assert data.row.max() + 1 <= TRAIN.stop - 1


def test_what_was_held_before_training_drifts_into_it() -> None:
    """The first day is that of the split, with what prices have made of the record's weights."""
    row = TRAIN.start - 10
    laid = replay(record_of(MARKET, [row, TRAIN.start + 4], [[0.4, 0.3, 0.2, 0.1]] * 2), MARKET)
    closes = MARKET.prices.close
    value = np.array([0.4, 0.3, 0.2, 0.1]) * closes[TRAIN.start] / closes[row]
    np.testing.assert_allclose(laid.before[0, :4], value / value.sum(), atol=1e-12)


def test_days_that_the_market_does_not_have_are_counted() -> None:
    dates = np.array(["1999-12-01", "1999-12-02", str(MARKET.prices.dates[TRAIN.start])], "M8[D]")
    weights = np.tile([0.2, 0.2, 0.2, 0.2, 0.2], (3, 1))
    laid = replay(Record("held.csv", dates, MARKET.prices.assets, weights), MARKET)
    assert (len(laid.after), laid.left_out) == (1, 2)


@pytest.mark.parametrize(
    ("dates", "assets", "part"),
    [
        (["2001-01-06"], ("S00",), "2001-01-06 is no day of synthetic; .* trading day before it"),
        (["2001-01-05"], ("S0X",), "'S0X' is no asset of synthetic; did you mean 'S0"),
        (
            ["2002-03-01"],
            ("S00",),
            r"none of its days .* days of decision \(2000-12-20",
        ),
        (["1990-03-01"], ("S00",), "none of its days"),
    ],
)
def test_records_that_do_not_fit(dates: list[str], assets: tuple[str, ...], part: str) -> None:
    record = Record("held.csv", np.array(dates, "M8[D]"), assets, np.array([[0.5, 0.5]]))
    with pytest.raises(DataError, match=f"held.csv: {part}") as caught:
        replay(record, MARKET)
    assert "\n" not in str(caught.value)


def test_the_last_day_of_the_split_has_no_decision() -> None:
    """Its return comes after the split: the day before it is the last one of a record."""
    days = MARKET.prices.dates[TRAIN.stop - 3 : TRAIN.stop]
    weights = np.array([[0.5, 0.5]])
    laid = replay(Record("held.csv", days, ("S00",), weights.repeat(3, axis=0)), MARKET)
    assert (laid.days, laid.left_out) == (3, 1)
    assert f" to {days[1]}: what is held at the end of {days[2]} earns" in decision_days(MARKET)
    with pytest.raises(DataError, match=f"to {days[1]}: what is held"):
        replay(Record("held.csv", days[2:], ("S00",), weights), MARKET)


@pytest.mark.parametrize(
    ("file", "name"),
    [("a/b.c.CSV.GZ", "b.c"), ("v1.2.parquet", "v1.2"), ("held.csv", "held"), ("held", "held")],
)
def test_a_name_goes_without_its_ending(file: str, name: str) -> None:
    record = Record(file, MARKET.prices.dates[:1], ("S00",), np.array([[0.5, 0.5]]))
    assert record.name == f"record:{name}"


# ------------------------------------------------------------------ the file


def test_a_file_of_some_assets(tmp_path: Path) -> None:
    path = tmp_path / "my.weights.csv"
    path.write_text("date,S02,cash,S00\n2001-01-02,0.25,0.5,0.25\n2001-01-05,0.1,0.2,0\n")
    record = read_record(path)
    assert record.name == "record:my.weights"
    assert record.assets == ("S02", "S00")
    np.testing.assert_allclose(record.weights, [[0.25, 0.25, 0.5], [0.1, 0.0, 0.9]])
    laid = replay(record, MARKET)
    np.testing.assert_allclose(laid.after[0], [0.25, 0.0, 0.25, 0.0, 0.5])


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_kinds_of_files(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"held.{ending}"
    frame = pd.DataFrame({"date": pd.to_datetime(["2001-01-02"]), "A": [0.5], "B": [0.25]})
    if ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    record = read_record(path)
    np.testing.assert_allclose(record.weights, [[0.5, 0.25, 0.25]])
    assert record.name == "record:held"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("date,A,B\n2001-01-02,0.6,0.5\n", r"line 2 \(2001-01-02\): weights sum to 1.1, more"),
        ("date,A,B\n2001-01-02,60,40\n", r"sum to 100, more than 1; .*\(0.25, not 25 %\)"),
        ("date,A,B\n2001-01-02,1,0.000002\n", "sum to 1.000002"),
        ("date,A,cash\n2001-01-02,1,0.1\n", "sum to 1.1"),
        ("date,A,B\n2001-01-02,-0.1,0.5\n", r"'A', line 2 .*: weight -0.1 is negative"),
        ("date,A,B\n2001-01-02,,0.5\n", r"'A', line 2 \(2001-01-02\): no weight; write 0"),
        ("date,A,B\n2001-01-02,25%,0.5\n", "'25%' is not a number; correct the cell$"),
        ("date,A,B\n2001-01-02,inf,0.5\n", "inf is not a finite number"),
        ("date,A,B\n2001-01-02,0,0\n2001-01-02,0,0\n", "2001-01-02 stands twice"),
        ("date,A,B\n2001-01-03,0,0\n2001-01-02,0,0\n", "comes after 2001-01-03"),
        ("date,A,B\n2001-13-02,0,0\n", "'2001-13-02' is not a date"),
        ("date,symbol,weight\n2001-01-02,A,0.5\n", "'symbol' makes it one row an asset"),
        ("date,A\n", "no rows; write the record again"),
        ("2001-01-02,1\n", "line 1 holds a row of the record, not names"),
        ("", "the file is empty; write the record again"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "held.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=part) as caught:
        read_record(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_record(tmp_path / "held.csv")


def test_rounding_over_one_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "held.csv"
    path.write_text("date,A,B\n2001-01-02,0.5000005,0.5000004\n")
    weights = read_record(path).weights
    check_budget(weights)
    assert math.isclose(weights[0, 0], 0.5, abs_tol=1e-6)
