"""Assets that start or end inside the data: prices, features, anchors and what is traded."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from checkers import check_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import (
    batch_of,
    partial_market,
    partial_prices,
    random_actions,
    random_prices,
    whole_span,
)

from finflow_sb3.config import CollectSettings, EnvSettings, MarketSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket, observe
from finflow_sb3.errors import DataError
from finflow_sb3.evaluation.baselines import baselines
from finflow_sb3.market.anchors import _window, fit_anchors
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.features import FEATURES, WARMUP, compute_features
from finflow_sb3.market.listing import even_weights, tradable_days, tradable_part
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices, write_prices
from finflow_sb3.market.summary import summarise
from finflow_sb3.offline.behaviours import RuleBook
from finflow_sb3.offline.collect import collect_dataset, dataset_key, market_key
from finflow_sb3.offline.own_rules import past_of
from finflow_sb3.offline.record import Record, replay
from finflow_sb3.offline.trades import trades

REFIT = MarketSettings(anchor_refit=63)
BASES = ("anchors", "drift", "none")
ENDS = {2: 330, 5: 480}
EXAMPLES = settings(max_examples=6, deadline=None)
CSV = "date,A,B,C\n2020-01-01,1,,3\n2020-01-02,2,5,3\n2020-01-03,,6,\n2020-01-06,4,7,\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(CSV)
    return path


# ------------------------------------------------------------------ prices


def test_listed_from_first_to_last_price(file: Path) -> None:
    with pytest.raises(DataError, match=r"'B' starts inside .*market\.partial: true") as caught:
        load_prices(file)
    assert "\n" not in str(caught.value)
    table = load_prices(file, partial=True)
    assert table.listed is not None
    np.testing.assert_array_equal(table.listed.T, [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(table.close.T, [[1, 2, 2, 4], [5, 5, 6, 7], [3, 3, 3, 3]])
    assert table.filled.tolist() == [1, 0, 0]
    np.testing.assert_allclose(table.returns()[:, 1], [0, 0, 0.2, 7 / 6 - 1])
    np.testing.assert_array_equal(table.earning().T[1], [False, False, True, True])


def test_gaps_inside_are_still_gaps(file: Path) -> None:
    with pytest.raises(DataError, match="'A' has no price on 1 rows in a row, 2020-01-03"):
        load_prices(file, partial=True, max_gap=0)
    file.write_text("date,A,B\n2020-01-01,1,\n2020-01-02,1,\n")
    with pytest.raises(DataError, match="'B' has no prices at all"):
        load_prices(file, partial=True)


def test_written_prices_are_read_back(file: Path, tmp_path: Path) -> None:
    table = load_prices(file, partial=True)
    path = write_prices(table, tmp_path / "prices.parquet")
    back = load_prices(path, partial=True)
    for name in ("dates", "close", "listed", "filled"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name), err_msg=name)
    with pytest.raises(DataError, match="starts inside"):
        load_prices(path)


def test_cuts_carry_the_listing(file: Path) -> None:
    table = load_prices(file, partial=True)
    assert table.select(("A", "C")).listed is not None
    assert load_prices(file, assets=["A", "B"], partial=True).rows(1, 4).listed is None
    begun = table.rows(0, 1)
    np.testing.assert_array_equal(begun.listed, [[True, False, True]])
    assert begun.close[0, 1] == 1.0, "a price that lies in the future shows in no cut"


def test_two_stretches_are_refused() -> None:
    whole = random_prices(2, 20)
    listed = np.ones((20, 2), dtype=bool)
    listed[5, 1] = False
    with pytest.raises(DataError, match="'S01' is listed on two stretches"):
        dataclasses.replace(whole, listed=listed)


def test_a_complete_table_says_nothing() -> None:
    whole = random_prices(3, 30)
    table = dataclasses.replace(whole, listed=np.ones((30, 3), dtype=bool))
    assert table.listed is None
    np.testing.assert_array_equal(table.close, whole.close)


def test_summary_is_of_the_listed_days(file: Path) -> None:
    found = summarise(load_prices(file, partial=True))
    assert not found.complete
    assert found.first_listed == ("2020-01-01", "2020-01-02", "2020-01-01")
    assert found.last_listed == ("2020-01-06", "2020-01-06", "2020-01-02")
    # B: from 5 to 7 in two days; C: one return of 0.
    assert found.annual_return[1] == pytest.approx((7 / 5) ** 126 - 1, rel=1e-9)
    assert found.annual_return[2] == 0.0
    assert np.isnan(found.annual_volatility[2])
    assert found.as_dict()["last_listed"]["C"] == "2020-01-02"


def test_tradable_by_hand() -> None:
    """Warm-up 2: listed on rows 1 to 4 of 6, so held from row 3's close to row 4's."""
    listed = np.zeros((6, 2), dtype=bool)
    listed[1:5, 0] = listed[:, 1] = True
    tradable = tradable_days(listed, 2)
    assert tradable is not None
    np.testing.assert_array_equal(tradable.T, [[0, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(
        even_weights(tradable)[[2, 3, 0]], [[0, 1, 0], [0.5, 0.5, 0], [0, 0, 1]]
    )
    weights = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    part = tradable_part(weights, np.array([[False, True], [False, True]]))
    np.testing.assert_array_equal(part, [[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])


# ------------------------------------------------------------------ features, anchors


def market_of(prices: PriceTable, like: ObservedMarket | None = None) -> ObservedMarket:
    return observe(prices, REFIT, EnvSettings(), scaler=like.scaler if like else None)


@EXAMPLES
@given(seed=st.integers(0, 10_000))
def test_placeholders_change_nothing(seed: int) -> None:
    """Whatever a table is given where an asset is not listed; also no number at all."""
    prices, market = partial_market().prices, partial_market()
    assert prices.listed is not None
    noise = np.random.default_rng(seed).choice([np.nan, -1.0, 0.0, 1e9, 3.0], prices.close.shape)
    other = dataclasses.replace(prices, close=np.where(prices.listed, prices.close, noise))
    found = market_of(other)
    np.testing.assert_array_equal(found.frames, market.frames)
    np.testing.assert_array_equal(found.anchors.weights, market.anchors.weights)
    np.testing.assert_array_equal(found.equal_weight, market.equal_weight)
    assert found.scaler == market.scaler
    assert (found.sigma, found.moments) == (market.sigma, market.moments)
    assert dataset_key(found, found.env, CollectSettings(), 0) == dataset_key(
        market, market.env, CollectSettings(), 0
    )


def blocks(market: ObservedMarket) -> np.ndarray:
    """Asset features of all rows, [T, n, all]."""
    shape = (len(market.prices), market.layout.n_assets, -1)
    parts = [market.rows[:, market.layout.slices[group]].reshape(shape) for group in FEATURES]
    return np.concatenate(parts, axis=2)


def test_features_are_zero_until_they_are_real() -> None:
    market = partial_market()
    first, tradable = market.splits.train.start, market.tradable
    assert tradable is not None
    shown = blocks(market)
    assert np.isfinite(market.frames).all()
    np.testing.assert_array_equal((shown != 0.0).any(axis=2)[first:], tradable[first:])
    assert (shown != 0.0).all(axis=2)[first:][tradable[first:]].mean() > 0.9
    # Asset 1's first price is on row 60: the last feature needs 252 returns.
    assert not tradable[60 + WARMUP - 1, 1]
    assert tradable[60 + WARMUP, 1]
    assert tradable[329, 2]
    assert not tradable[330, 2], "what is held at the last close nothing prices any more"


def test_features_of_a_late_asset_are_those_of_a_table_that_begins_with_it() -> None:
    prices = partial_prices(starts={1: 60})
    late, own = compute_features(prices), compute_features(prices.rows(60, 600))
    for group in FEATURES:
        if group in ("volatility", "growth", "momentum"):
            mine = [i for i, name in enumerate(FEATURES[group]) if "rank" not in name]
            np.testing.assert_allclose(
                late.groups[group][60 + WARMUP :, 1][:, mine],
                own.groups[group][WARMUP:, 1][:, mine],
                rtol=1e-6,
                atol=1e-8,
            )
            assert np.isnan(late.groups[group][60 + 20, 1]).any()


def test_scaler_leaves_out_what_is_not_tradable() -> None:
    market, features = partial_market(), compute_features(partial_market().prices)
    train, tradable = market.splits.train, market.tradable
    assert tradable is not None
    inside = tradable[train.start : train.stop]
    assert not inside.all()
    for group, block in features.groups.items():
        real = block[train.start : train.stop][inside]
        np.testing.assert_allclose(market.scaler.means[group], real.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(market.scaler.deviations[group], real.std(axis=0), rtol=1e-12)


def test_averages_are_over_listed_assets() -> None:
    market, prices = partial_market(), partial_market().prices
    assert prices.listed is not None
    returns = prices.returns()
    for row in (40, 100, 331, 500):
        there = prices.listed[row] & prices.listed[row - 1]
        assert market.equal_weight[row] == pytest.approx(returns[row, there].mean(), rel=1e-12)


def test_anchors_hold_what_is_tradable() -> None:
    """Members only at refits; what ends in between is shared out on that very day."""
    market = partial_market()
    anchors, tradable = market.anchors, market.tradable
    assert tradable is not None
    rows = np.arange(anchors.first_row, len(market.prices))
    weights = anchors.at(rows)
    np.testing.assert_allclose(weights.sum(axis=2), 1.0, atol=1e-12)
    assert not weights[:, :, :-1][
        ~np.broadcast_to(tradable[rows][:, None], (len(rows), 5, 6))
    ].any()
    before, after = anchors.at(329), anchors.at(330)
    assert before[:, 2].max() > 0.0
    kept = np.delete(before, 2, axis=1)
    expected = kept / kept.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.delete(after, 2, axis=1), expected, atol=1e-12)
    # Asset 1 is tradable from row 312, and an anchor's from the refit after that.
    assert not anchors.at(314)[:, 1].any()
    assert anchors.at(315)[:, 1].any()


def test_a_refit_is_that_of_its_members_alone() -> None:
    prices = partial_prices(starts={1: 60, 4: 150})
    fitted = fit_anchors(prices, REFIT)
    members = ["S00", "S02", "S03", "S05"]
    alone = fit_anchors(prices.select(members), REFIT)
    columns = [0, 2, 3, 5, 6]
    np.testing.assert_array_equal(fitted.at(252)[:, columns], alone.at(252))
    # With asset 1 the window begins with its first price.
    five = prices.select(["S00", "S01", "S02", "S03", "S05"]).rows(60, 320)
    later = fit_anchors(five, dataclasses.replace(REFIT, anchor_refit=3))
    np.testing.assert_array_equal(fitted.at(315)[:, [0, 1, 2, 3, 5, 6]], later.at(315 - 60))


def test_too_few_assets_for_anchors() -> None:
    with pytest.raises(DataError, match=r"the anchors have 1 of the 3 assets.* need 2; cut the"):
        fit_anchors(partial_prices(starts={0: 30, 1: 30}, n_assets=3), REFIT)


def test_keys_of_complete_universes_know_nothing_of_this() -> None:
    """They are hashes of what they were hashes of before."""
    market = observe(random_prices(4, 600), REFIT, EnvSettings())
    prices, stop = market.prices, market.splits.train.stop
    window = _window(prices, None, 252, REFIT)
    assert window.key == content_key(prices.close[:253])
    known = (prices.dates[:stop], prices.close[:stop], prices.cash_rate[:stop])
    assert market_key(market) == content_key(*known, prices.assets, market.scaler.as_dict())
    allowed = dataclasses.replace(market, settings=dataclasses.replace(REFIT, partial=True))
    keys = [dataset_key(m, m.env, CollectSettings(), 0) for m in (market, allowed)]
    assert keys[0] == keys[1]


# ------------------------------------------------------------------ no look-ahead


@pytest.mark.parametrize("end", [300, 315, 400])
def test_an_end_does_not_show_before_its_day(end: int) -> None:
    """Features, anchors, averages and trades of days before an asset's last are the same as if
    it went on; on refit days (315) and between them.
    """
    whole = observe(partial_prices(starts={1: 60}), REFIT, EnvSettings())
    ended = market_of(partial_prices(starts={1: 60}, ends={3: end}), like=whole)
    np.testing.assert_array_equal(ended.frames[:end], whole.frames[:end])
    np.testing.assert_array_equal(ended.equal_weight[: end + 1], whole.equal_weight[: end + 1])
    rows = np.arange(whole.anchors.first_row, end)
    np.testing.assert_array_equal(ended.anchors.at(rows), whole.anchors.at(rows))
    assert np.any(ended.frames[end] != whole.frames[end])
    # The same episode in both: nothing differs until the asset is sold.
    pair = [batch_of(market, EnvSettings(fee=0.01)) for market in (whole, ended)]
    rng = np.random.default_rng(end)
    for _ in range(int(pair[0].row[0]), end):
        actions = random_actions(whole, 1, rng)
        for batch in pair:
            batch.step(actions)
        np.testing.assert_array_equal(pair[0].weights, pair[1].weights)
        assert pair[0].value == pair[1].value
    assert pair[1].held[0, 3] > 0.0


@EXAMPLES
@given(row=st.integers(300, 560), seed=st.integers(0, 1000))
def test_the_future_changes_nothing(row: int, seed: int) -> None:
    """Neither prices after a row, nor what starts or ends after it."""
    market = partial_market()
    prices, rng = market.prices, np.random.default_rng(seed)
    assert prices.listed is not None
    close, listed = prices.close.copy(), prices.listed.copy()
    close[row + 1 :] *= rng.uniform(0.9, 1.1, close[row + 1 :].shape)
    going_on = np.flatnonzero(listed[row] & listed[min(row + 1, 599)])
    listed[row + 2 :, rng.choice(going_on)] = False
    other = market_of(dataclasses.replace(prices, close=close, listed=listed), like=market)
    np.testing.assert_array_equal(other.frames[: row + 1], market.frames[: row + 1])
    rows = np.arange(market.anchors.first_row, row + 1)
    np.testing.assert_array_equal(other.anchors.at(rows), market.anchors.at(rows))


# ------------------------------------------------------------------ trading


def check_step(batch: PortfolioBatch, value: np.ndarray, fee: float, row: np.ndarray) -> None:
    """What was held over a day has prices on both of its ends, and its value is accounted for."""
    market, listed = batch.market, batch.market.prices.listed
    assert listed is not None
    assert market.tradable is not None
    check_budget(batch.weights)
    check_budget(batch.held)
    risky = batch.weights[:, :-1]
    assert not risky[~market.tradable[row]].any()
    assert listed[row][risky > 0].all()
    assert listed[row + 1][risky > 0].all()
    np.testing.assert_allclose(batch.cost, fee * batch.turnover * value, atol=1e-13)
    growth = (batch.weights * (1.0 + market.returns[row + 1])).sum(axis=1)
    np.testing.assert_allclose(batch.value, (value - batch.cost) * growth, rtol=1e-12)


LIMITS = (
    {},
    {"trade_rate": 0.05},
    {"no_trade_band": 0.3, "trade_rate": 1.0},
    {"max_turnover": 0.01, "max_position": 0.2},
)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("base", "lag"), itertools.product(BASES, (0, 1)))
def test_nothing_is_held_without_a_price(base: str, lag: int, limits: dict[str, float]) -> None:
    """Under every limit, over refits, starts and ends; with idle days in base `drift`."""
    market = partial_market(EnvSettings(action_base=base, execution_lag=lag))
    env = dataclasses.replace(market.env, fee=0.01, episode_length=200, **limits)
    batch = batch_of(market, env, 8, evaluation=False, seed=3)
    rng, sold = np.random.default_rng(1), 0
    for step in range(190):
        row, value, held = batch.row.copy(), batch.value.copy(), batch.held.copy()
        actions = random_actions(market, 8, rng)
        if step % 3 == 0:
            actions[:4] = 0.0
        out = batch.step(actions)
        assert np.isfinite(out.observations).all()
        check_step(batch, value, 0.01, row)
        for asset, end in ENDS.items():
            sold += int((held[row == end, asset] > 0.0).sum())
        batch.reset(np.flatnonzero(out.terminated | out.truncated))
    assert sold > 0


@pytest.mark.parametrize("base", BASES)
def test_rows_do_not_depend_on_the_batch(base: str) -> None:
    market = partial_market(EnvSettings(action_base=base))
    env = dataclasses.replace(market.env, no_trade_band=0.01, max_turnover=0.3)
    many = PortfolioBatch(market, whole_span(market), 5, env, seeds=list(range(5)))
    ones = [PortfolioBatch(market, whole_span(market), 1, env, seeds=[i]) for i in range(5)]
    for batch in (many, *ones):
        batch.reset()
    rng = np.random.default_rng(1)
    for _ in range(80):
        actions = random_actions(market, 5, rng)
        out = many.step(actions)
        for i, one in enumerate(ones):
            alone = one.step(actions[i : i + 1])
            np.testing.assert_array_equal(out.observations[i], alone.observations[0])
            assert out.rewards[i] == alone.rewards[0]
            assert many.value[i] == one.value[0]
            np.testing.assert_array_equal(many.invert(many.weights)[i], one.invert(one.weights)[0])


@pytest.mark.parametrize("base", BASES)
def test_an_action_is_found_again_from_its_target(base: str) -> None:
    """Within the reach of the inverse, whatever is tradable."""
    market = partial_market(EnvSettings(action_base=base, trade_rate=1.0))
    batch = batch_of(market, n_envs=6, evaluation=False)
    rng = np.random.default_rng(2)
    for _ in range(60):
        target = batch.target(0.3 * random_actions(market, 6, rng))
        again = batch.target(batch.invert(target))
        np.testing.assert_allclose(again, target, atol=1e-6)
        batch.step_to(target)


@pytest.mark.parametrize("initial", ["random", "equal", "anchors"])
def test_episodes_begin_with_tradable_assets(initial: str) -> None:
    market = partial_market()
    env = EnvSettings(initial_weights=initial, episode_length=20)
    batch = batch_of(market, env, 40, evaluation=False)
    assert market.tradable is not None
    check_budget(batch.held)
    assert not batch.held[:, :-1][~market.tradable[batch.row]].any()
    if initial == "equal":
        count = market.tradable[batch.row].sum(axis=1)
        np.testing.assert_allclose(batch.held.max(axis=1), 1.0 / count)


def test_an_end_by_hand() -> None:
    """Half in A and half in B at 1 %, A's last day: A is sold for cash, though nothing may be
    traded. A trace of B pays for it: μ = 1 − 0.01·(0.5 + 0.5 − 0.5·μ).
    """
    market = partial_market()
    batch = batch_of(market, EnvSettings(fee=0.01, max_turnover=0.0))
    arrays, states = batch.state()
    half = np.array([[0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0]])
    batch.restore({**arrays, "row": np.array([330]), "held": half}, states)
    batch.step_to(half)
    mu = (1.0 - 0.01) / (1.0 - 0.01 * 0.5)
    assert batch.cost[0] == pytest.approx(1.0 - mu, abs=1e-12)
    np.testing.assert_allclose(batch.weights[0], [0, 0, 0, 0.5, 0, 0, 0.5], atol=1e-15)


# ------------------------------------------------------------------ offline, baselines


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("lag", [0, 1])
def test_datasets_say_what_was_traded(base: str, lag: int) -> None:
    """Turnover that is worked out from a dataset is what was traded, on last days too."""
    env = EnvSettings(action_base=base, execution_lag=lag, episode_length=100)
    market = partial_market(EnvSettings(action_base=base, execution_lag=lag))
    data = collect_dataset(market, env, CollectSettings(episodes=8, n_envs=8), 0)
    assert (data.row == 330).any()
    found = trades(data, env, 0, len(data.row)).turnover
    batch = PortfolioBatch(market, market.splits.train, 1, env)
    batch.reset()
    arrays, states = batch.state()
    width, size = 7, len(data.row)
    for i in np.flatnonzero(np.isin(data.row, [329, 330, 331])):
        if data.row[i] + 1 >= market.splits.train.stop or i + 1 >= size:
            continue
        state = data.states[i + data.episode[i]].astype(np.float64)
        held = state[None, :width] / state[:width].sum()
        pending = state[None, -width:] / state[-width:].sum() if lag else held
        first = i == 0 or data.episode[i] != data.episode[i - 1]
        idle = np.array([first or (base == "drift" and not data.action[i - 1].any())])
        now = {"row": data.row[i : i + 1].astype(np.int64), "held": held, "pending": pending}
        batch.restore({**arrays, **now, "idle": idle}, states)
        batch.step(data.action[i : i + 1])
        assert found[i] == pytest.approx(batch.turnover[0], abs=1e-6)


def test_rules_give_weight_to_what_is_tradable() -> None:
    market = partial_market()
    batch = batch_of(market, n_envs=8, evaluation=False)
    book = RuleBook(batch, np.arange(8), np.random.default_rng(0))
    assert market.tradable is not None
    for _ in range(40):
        wanted = book.targets()
        check_budget(wanted)
        gone = ~market.tradable[batch.row] & (wanted[:, :-1] > 0.0)
        assert not gone[np.arange(8) != 6].any(), "only what is held (rule 6) may have its last day"
        batch.step_to(wanted)
    first = market.splits.train.start
    for scores in (book.slow, book.fast):
        assert np.isfinite(scores).all()
        assert not scores[first:][~market.tradable[first:]].any()
        assert scores[first:].any(axis=1).all()


def test_own_rules_see_no_price_of_later_days() -> None:
    market = partial_market()
    batch = batch_of(market)
    past = past_of(batch, 0)
    assert market.prices.listed is not None
    np.testing.assert_array_equal(np.isnan(past.close), ~market.prices.listed[: len(past.close)])
    assert past.tradable.tolist() == [True, False, True, True, False, True]


@pytest.mark.parametrize(("day", "asset"), [(330, "S02"), (340, "S02"), (300, "S00")])
def test_a_record_holds_what_has_prices(day: int, asset: str) -> None:
    market = partial_market()
    dates = market.prices.dates[[day, day + 1]]
    record = Record("mine.csv", dates, (asset,), np.array([[0.5, 0.5], [0.0, 1.0]]))
    if asset == "S00":
        assert len(replay(record, market).after) == 2
    else:
        with pytest.raises(DataError, match=f"mine.csv: on {dates[0]} it holds 'S02'"):
            replay(record, market)


def test_baselines_hold_what_has_prices() -> None:
    market = partial_market()
    for curve in baselines(market, whole_span(market), market.env):
        rows = np.searchsorted(market.prices.dates, curve.decisions)
        assert market.tradable is not None
        assert not curve.weights[:, :-1][~market.tradable[rows]].any(), curve.name
        assert np.isfinite(curve.returns).all()
