"""The rules that make offline data."""

from __future__ import annotations

import numpy as np
import pytest
from checkers import check_budget
from markets import batch_of, random_prices, small_market

from finflow_sb3.config import BEHAVIOURS, EnvSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import observe
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span
from finflow_sb3.offline.behaviours import RuleBook

COPIES = 4


def book_of(batch: PortfolioBatch, name: str, seed: int = 0) -> RuleBook:
    rules = np.full(batch.n_envs, BEHAVIOURS.index(name))
    return RuleBook(batch, rules, np.random.default_rng(seed))


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_targets_are_budgets(name: str) -> None:
    batch = batch_of(small_market(), n_envs=COPIES, evaluation=False)
    book = book_of(batch, name)
    for _ in range(60):
        target = book.targets()
        check_budget(target)
        batch.step(batch.invert(target))


def test_each_portfolio_follows_its_own_rule() -> None:
    """All rules in one batch give what each gives alone, where nothing is drawn on the way."""
    market = small_market()
    names = [n for n in BEHAVIOURS if n != "gate_walk"]
    batch = batch_of(market, n_envs=len(names), evaluation=False)
    mixed = RuleBook(
        batch, np.array([BEHAVIOURS.index(n) for n in names]), np.random.default_rng(3)
    ).targets()
    for i, name in enumerate(names):
        alone = book_of(batch, name, seed=3).targets()
        np.testing.assert_array_equal(mixed[i], alone[i])


def test_rules_by_hand() -> None:
    market = small_market()
    batch = batch_of(market, n_envs=COPIES, evaluation=False)
    anchors = market.anchors.at(batch.row)
    book = book_of(batch, "anchor")
    alone = book.targets()
    for i in range(COPIES):
        np.testing.assert_array_equal(alone[i], anchors[i, book.anchor[i]])
    book = book_of(batch, "mixture")
    np.testing.assert_allclose(
        book.targets(), np.einsum("bk,bkn->bn", book.mixture, anchors), atol=1e-15
    )
    np.testing.assert_allclose(book_of(batch, "equal_weight").targets(), [[0.2] * 5 + [0]] * COPIES)
    np.testing.assert_array_equal(book_of(batch, "buy_and_hold").targets(), batch.held)
    book = book_of(batch, "cash_heavy")
    cash = book.targets()[:, -1]
    assert np.all(cash >= book.cash)
    assert np.all((book.cash >= 0.3) & (book.cash <= 0.9))


def test_tilts_follow_and_oppose_the_past() -> None:
    """Momentum gives more than the average to the best of 12-1 months; contrarian takes from
    the best of the last month. Ratios to the average, by row."""
    market = small_market()
    batch = batch_of(market, n_envs=COPIES, evaluation=False)
    log = np.log(market.prices.close)
    average = market.anchors.at(batch.row).mean(axis=1)[:, :-1]
    assert np.all(average > 0.0)
    past = {
        "momentum_tilt": np.array([log[r - 21] - log[r - 252] for r in batch.row]),
        "contrarian": -np.array([log[r] - log[r - 21] for r in batch.row]),
    }
    for name, scores in past.items():
        ratio = book_of(batch, name).targets()[:, :-1] / average
        np.testing.assert_array_equal(np.argmax(ratio, axis=1), np.argmax(scores, axis=1))
        np.testing.assert_array_equal(np.argmin(ratio, axis=1), np.argmin(scores, axis=1))
        # exp(±0.5·strength) at most.
        spread = ratio.max(axis=1) / ratio.min(axis=1)
        assert np.all((spread > 1.05) & (spread <= np.exp(1.0) + 1e-12))


def test_gate_walks_move_slowly() -> None:
    batch = batch_of(small_market(), n_envs=20, span=Span(252, 315))
    book = book_of(batch, "gate_walk")
    trail = np.stack([book.targets() for _ in range(50)])
    day = np.abs(np.diff(trail, axis=0)).sum(axis=2).mean()
    month = np.abs(trail[21:] - trail[:-21]).sum(axis=2).mean()
    assert 0.0 < day < 0.1
    assert month > 2.0 * day


@pytest.mark.parametrize("row", [300, 315, 410])
def test_no_rule_sees_the_future(row: int) -> None:
    """Targets and actions at or before `row` are the same whatever prices follow it."""
    base = small_market()
    close = base.prices.close.copy()
    close[row + 1 :] *= np.random.default_rng(row).uniform(0.5, 2.0, close[row + 1 :].shape)
    changed = PriceTable(
        base.prices.dates, base.prices.assets, close, cash_rate=base.prices.cash_rate
    )
    other = observe(changed, base.settings, base.env, scaler=base.scaler)
    trails = []
    for market in (base, other):
        batch = batch_of(market, n_envs=2 * len(BEHAVIOURS), span=Span(row - 40, 600))
        rules = np.arange(batch.n_envs) % len(BEHAVIOURS)
        book = RuleBook(batch, rules, np.random.default_rng(0))
        trail = []
        while batch.row[0] <= row:
            target = book.targets()
            action = batch.invert(target)
            trail += [target, action]
            batch.step(action)
        trails.append(trail)
    for mine, theirs in zip(*trails, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
def test_rules_are_followed_where_the_base_reaches(base: str) -> None:
    """Anchors and mixtures are reachable from the gates alone; equal weight from softmax."""
    market = observe(random_prices(5, 600), small_market().settings, EnvSettings(action_base=base))
    batch = batch_of(market, n_envs=COPIES, evaluation=False)
    name = {"anchors": "mixture", "drift": "buy_and_hold", "none": "equal_weight"}[base]
    target = book_of(batch, name).targets()
    reached = batch.target(batch.invert(target))
    np.testing.assert_allclose(reached, target, atol=1e-4 if base == "none" else 1e-3)
