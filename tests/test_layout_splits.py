"""Slices of the observation; spans of the history."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from markets import business_days, small_market, us20_market

from finflow_sb3.config import ANCHORS, EnvSettings, MarketSettings
from finflow_sb3.errors import ArtefactError, DataError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.market.splits import Span, make_splits, walk_forward

LAYOUT = ObservationLayout(
    assets=("A", "B", "C"), anchors=ANCHORS, scalars=("drawdown",), action_base="anchors"
)
DATES = business_days(1000)


# ------------------------------------------------------------------ layout


@pytest.mark.parametrize("lagged", [False, True])
@pytest.mark.parametrize("n", [1, 3, 100])
def test_slices_cover_the_observation_once(n: int, lagged: bool) -> None:
    layout = dataclasses.replace(LAYOUT, assets=tuple(f"a{i}" for i in range(n)), lagged=lagged)
    covered = np.zeros(layout.size, dtype=int)
    for piece in layout.slices.values():
        covered[piece] += 1
    np.testing.assert_array_equal(covered, 1)
    assert layout.market_size + layout.portfolio_size == layout.size
    # 22 features an asset, 10 of the market, 5·n weights, 5·3 record, n+1 held, drawdown.
    expected = 22 * n + 10 + 5 * n + 15 + (n + 1) + 1 + lagged * (n + 1)
    assert layout.size == expected
    assert ("pending" in layout.slices) == lagged


@pytest.mark.parametrize(("base", "size"), [("anchors", 5 + 4), ("drift", 4), ("none", 4)])
def test_action_size(base: str, size: int) -> None:
    assert dataclasses.replace(LAYOUT, action_base=base).action_size == size


@pytest.mark.parametrize("lagged", [False, True])
def test_json_round_trip(lagged: bool) -> None:
    layout = dataclasses.replace(LAYOUT, lagged=lagged, scalars=("drawdown", "moment_1"))
    again = ObservationLayout.from_dict(json.loads(json.dumps(layout.as_dict())))
    assert again == layout
    layout.require_equal(again, "this")


@pytest.mark.parametrize("damage", [{}, {"assets": None}, {"groups": [1]}, None])
def test_damaged_layouts_are_refused(damage: dict[str, object] | None) -> None:
    data = None if damage is None else ({**LAYOUT.as_dict(), **damage} if damage else {})
    with pytest.raises(ArtefactError, match="not whole"):
        ObservationLayout.from_dict(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"assets": ("A", "B", "X")}, "this has other assets: without C and with X"),
        ({"assets": ("A", "C", "B")}, "other assets: the order differs"),
        ({"market": LAYOUT.market[:-1]}, "other market: without breadth_200"),
        ({"anchors": (*ANCHORS, "value")}, "other anchors: with value"),
        ({"scalars": ("drawdown", "moment_1")}, "other scalars: with moment_1"),
        ({"groups": LAYOUT.groups[:-1]}, "other groups: without .*growth"),
        ({"action_base": "drift"}, "action_base 'drift' where 'anchors' is needed"),
        ({"lagged": True}, "lagged True where False is needed"),
    ],
)
def test_differences_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ArtefactError, match=message) as caught:
        LAYOUT.require_equal(dataclasses.replace(LAYOUT, **changes), "this")
    assert "\n" not in str(caught.value)


def test_blocks_hold_what_they_are_named_for() -> None:
    market = small_market()
    row = 400
    seen, slices = market.rows[row], market.layout.slices
    anchors = seen[slices["anchor_weights"]].reshape(5, -1)
    np.testing.assert_allclose(anchors, market.anchors.at(row)[:, :-1], atol=1e-7)
    from finflow_sb3.market.features import compute_features

    features = compute_features(market.prices)
    for group in ("volatility", "growth"):
        scaled = market.scaler(group, features.groups[group][row])
        shown = seen[slices[group]].reshape(market.layout.n_assets, -1)
        np.testing.assert_allclose(shown, scaled, rtol=1e-6, atol=1e-6)
    assert np.all(market.rows[: market.splits.train.start] == 0.0)


def test_scaler_standardises_the_training_split() -> None:
    market = small_market()
    rows = market.rows[market.splits.train.start : market.splits.train.stop]
    shown = rows[:, market.layout.slices["market"]]
    np.testing.assert_allclose(shown.mean(axis=0), 0.0, atol=0.1)
    np.testing.assert_allclose(shown.std(axis=0), 1.0, atol=0.1)


# ------------------------------------------------------------------ splits


def test_fractions_by_hand() -> None:
    """900 usable rows: 540 for training, 135 for validation, less a purge of 3 each."""
    splits = make_splits(DATES, 100, MarketSettings(), purge=3)
    assert splits.train == Span(100, 637)
    assert splits.validation == Span(640, 772)
    assert splits.test == Span(775, 1000)


@pytest.mark.parametrize("purge", [0, 1, 5])
def test_dates_are_the_last_days(purge: int) -> None:
    settings = MarketSettings(train_end=str(DATES[500]), validation_end=str(DATES[700]))
    splits = make_splits(DATES, 100, settings, purge)
    assert splits.train == Span(100, 501 - purge)
    assert splits.validation == Span(501, 701 - purge)
    assert splits.test == Span(701, 1000)
    assert splits.train.dates(DATES) == (str(DATES[100]), str(DATES[500 - purge]))
    assert splits.train.return_dates(DATES) == (str(DATES[101]), str(DATES[500 - purge]))


def test_a_weekend_counts_as_the_friday_before() -> None:
    saturday = np.datetime64("2002-06-01")
    settings = MarketSettings(train_end=str(saturday))
    splits = make_splits(DATES, 100, settings)
    assert DATES[splits.validation.start] == np.datetime64("2002-06-03")
    assert DATES[splits.train.stop] == np.datetime64("2002-05-31")


def test_train_end_alone_leaves_validation_in_proportion() -> None:
    """0.15 of 0.4 is 0.375 of what is left: 0.375·499 ≈ 187."""
    splits = make_splits(DATES, 100, MarketSettings(train_end=str(DATES[500])))
    assert splits.validation == Span(501, 501 + 187 - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_end": "1999-12-31"}, "train_end: 1999-12-31 lies outside the usable data"),
        ({"train_end": "2030-01-01"}, "train_end: 2030-01-01 lies outside"),
        ({"validation_end": "2030-01-01"}, "validation_end: 2030-01-01 lies outside"),
        ({"train_end": str(DATES[50])}, "lies outside the usable data"),
        ({"train_end": str(DATES[110])}, "the train split has 10 rows, needs 42"),
        (
            {"train_end": str(DATES[600]), "validation_end": str(DATES[300])},
            "the validation split has 0 rows",
        ),
        ({"train_fraction": 0.9, "validation_fraction": 0.3}, "the test split has 0 rows"),
        ({"validation_end": str(DATES[990])}, "the test split has 9 rows"),
        ({"train_start": str(DATES[999])}, "train_start: .* lies outside"),
        ({"test_end": str(DATES[50])}, "test_end: .* lies outside"),
    ],
)
def test_bad_splits_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        make_splits(DATES, 100, MarketSettings(**changes))
    assert "\n" not in str(caught.value)


def test_a_window_of_the_history_by_hand() -> None:
    """What lies before train_start and after test_end is in no split; features still see it."""
    settings = MarketSettings(
        train_start=str(DATES[300]),
        train_end=str(DATES[499]),
        validation_end=str(DATES[599]),
        test_end=str(DATES[699]),
    )
    splits = make_splits(DATES, 100, settings, purge=2)
    assert splits.train == Span(300, 498)
    assert splits.validation == Span(500, 598)
    assert splits.test == Span(600, 700)
    early = dataclasses.replace(settings, train_start=str(DATES[5]))
    assert make_splits(DATES, 100, early).train.start == 100


def test_fractions_are_of_the_window() -> None:
    window = MarketSettings(train_start=str(DATES[200]), test_end=str(DATES[599]))
    splits = make_splits(DATES, 100, window)
    assert (splits.train.start, splits.test.stop) == (200, 600)
    assert splits.validation.start == 200 + round(400 * 0.6)
    assert splits.test.start == splits.validation.start + round(400 * 0.15)


@pytest.mark.parametrize(("lag", "expected"), [(0, 1), (1, 2)])
def test_the_environment_purges_its_horizon(lag: int, expected: int) -> None:
    splits = small_market(EnvSettings(execution_lag=lag)).splits
    assert splits.validation.start - splits.train.stop == expected
    assert splits.test.start - splits.validation.stop == expected


def test_walk_forward_folds_by_hand() -> None:
    """100 rows from 10 on, 30 to train and 20 to test, 2 purged between."""
    expanding = list(walk_forward(110, 10, test_size=20, train_size=30, purge=2))
    assert expanding == [
        (Span(10, 40), Span(42, 62)),
        (Span(10, 60), Span(62, 82)),
        (Span(10, 80), Span(82, 102)),
    ]
    rolling = list(walk_forward(110, 10, 20, 30, purge=2, expanding=False))
    assert rolling == [
        (Span(10, 40), Span(42, 62)),
        (Span(30, 60), Span(62, 82)),
        (Span(50, 80), Span(82, 102)),
    ]


def test_us20_splits() -> None:
    """33 years: the first of them warms up; the three splits follow each other."""
    market = us20_market()
    splits = market.splits
    assert splits.train.start == 252
    assert splits.test.stop == len(market.prices)
    assert splits.train.stop < splits.validation.start < splits.validation.stop
    assert splits.validation.stop < splits.test.start
