"""Cost models: by hand, against a plain simulation, their properties, no look-ahead, refusals."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import batch_of, partial_prices, random_actions, random_prices, small_market

from finflow_sb3.config import EnvSettings, MarketSettings
from finflow_sb3.envs.batch import default_trade_rate
from finflow_sb3.envs.costs import PARTS, Costs, slippage_curve, traded_value
from finflow_sb3.envs.observations import ObservedMarket, observe
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.evaluation.baselines import baselines
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.market.splits import Span

MODELS = ("none", "linear", "square_root", "exponential")


def with_volume(prices: PriceTable, seed: int = 0, raw: bool = False) -> PriceTable:
    """Volume that is worth 1 to 100 millions a day, and perhaps a raw close."""
    rng = np.random.default_rng(seed)
    money = rng.lognormal(0.0, 0.4, prices.close.shape) * np.geomspace(1e6, 1e8, prices.n_assets)
    quoted = prices.close * 2.0 if raw else prices.close
    return dataclasses.replace(prices, volume=money / quoted, raw_close=quoted if raw else None)


@lru_cache(maxsize=4)
def volume_market(raw: bool = False, lag: int = 0) -> ObservedMarket:
    prices = with_volume(random_prices(5, 600, cash_rate=1e-4), raw=raw)
    env = EnvSettings(action_base="none", execution_lag=lag)
    return observe(prices, MarketSettings(anchor_refit=63), env)


def one_asset(costs: Costs, before: float, after: float, value: float = 1.0) -> tuple[Any, Any]:
    """A trade of one asset against cash: what it did, and its parts [4]."""
    held, target = np.array([[before, 1.0 - before]]), np.array([[after, 1.0 - after]])
    done, parts = costs.trade(held, target, np.array([value]), np.array([0]))
    assert parts is not None
    return done, parts[:, 0]


# ------------------------------------------------------------------ by hand


def test_a_ticket_by_hand() -> None:
    """Half of the value is sold at 1 % and a ticket of 0.002.

    μ = 1 − 0.01·(1 − 0.5·μ) − 0.002, so μ = 0.988/0.995.
    """
    done, parts = one_asset(Costs(0.01, ticket=0.002), 1.0, 0.5)
    assert done.mu[0] == pytest.approx(0.988 / 0.995, abs=1e-14)
    traded = 1.0 - 0.5 * 0.988 / 0.995
    assert done.turnover[0] == pytest.approx(traded, abs=1e-14)
    np.testing.assert_allclose(parts, [0.01 * traded, 0.002, 0.0, 0.0], atol=1e-15)
    # Of a portfolio that has doubled, money is half as much.
    assert one_asset(Costs(0.01, ticket=0.002), 1.0, 0.5, 2.0)[0].mu[0] == pytest.approx(
        0.989 / 0.995, abs=1e-14
    )


def test_a_minimum_fee_by_hand() -> None:
    """1 % of a tenth is 0.001, under the minimum of 0.003; 1 % of a half is over it."""
    costs = Costs(0.01, minimum=0.003)
    small, large = one_asset(costs, 1.0, 0.9), one_asset(costs, 1.0, 0.5)
    assert small[0].mu[0] == pytest.approx(0.997, abs=1e-14)
    assert large[0].mu[0] == pytest.approx(0.99 / 0.995, abs=1e-14)


def test_tickets_count_what_is_traded_before_costs() -> None:
    """B's target is what is held: it is cut a little to pay, without a ticket."""
    held, target = np.array([[0.5, 0.3, 0.2]]), np.array([[0.4, 0.3, 0.3]])
    costs = Costs(0.0, ticket=0.01, minimum=0.02)
    done, parts = costs.trade(held, target, np.ones(1), np.zeros(1, dtype=np.int64))
    assert parts is not None
    np.testing.assert_allclose(parts[:, 0], [0.02, 0.01, 0.0, 0.0], atol=1e-15)
    assert done.mu[0] == pytest.approx(0.97, abs=1e-14)


@pytest.mark.parametrize(
    ("model", "at_a_quarter"), [("linear", 0.25), ("square_root", 0.5), ("exponential", 0.165296)]
)
def test_slippage_by_hand(model: str, at_a_quarter: float) -> None:
    """A sale of everything into a day's volume of 4, then into one of a half.

    x = 1 whatever μ is: participation is 1/4, and the cap of 1. Y·σ = 0.02.
    """
    for volume, participation, curve in ((4.0, 0.25, at_a_quarter), (0.5, 1.0, 1.0)):
        costs = Costs(
            0.0, slippage=model, volume=np.array([[volume]]), depth=np.array([[0.02]]), impact=0.1
        )
        done, parts = one_asset(costs, 1.0, 0.0)
        slip, hit = 0.02 * curve, 0.1 * participation
        np.testing.assert_allclose(parts, [0.0, 0.0, slip, hit], atol=2e-8)
        assert done.mu[0] == pytest.approx(1.0 - parts.sum(), abs=1e-14)


def test_models_agree_at_a_whole_days_volume() -> None:
    p = np.linspace(0.0, 1.0, 11)
    curves = {model: slippage_curve(model, p) for model in MODELS[1:]}
    for curve in curves.values():
        np.testing.assert_allclose(curve[[0, -1]], [0.0, 1.0], atol=1e-15)
    assert np.all(curves["square_root"][1:-1] > curves["linear"][1:-1])
    assert np.all(curves["linear"][1:-1] > curves["exponential"][1:-1])


def test_a_trade_that_costs_more_than_there_is_is_not_made() -> None:
    held, target = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.4, 0.6], [0.5, 0.5]])
    costs = Costs(0.0, ticket=0.2)
    done, parts = costs.trade(held, target, np.array([0.1, 0.1]), np.zeros(2, dtype=np.int64))
    assert parts is not None
    np.testing.assert_array_equal(done.weights, held)
    np.testing.assert_array_equal(done.mu, 1.0)
    np.testing.assert_array_equal(parts, 0.0)


# ------------------------------------------------------------------ a plain simulation


PLAIN_CURVES: dict[str, Any] = {
    "none": lambda p: 0.0,
    "linear": lambda p: p,
    "square_root": lambda p: p**0.5,
    "exponential": lambda p: (math.exp(p) - 1.0) / (math.e - 1.0),
}


@dataclasses.dataclass
class Plain:
    """One portfolio in floats: μ by bisection, limits as sentences of the docs in loops."""

    env: EnvSettings
    market: ObservedMarket
    held: list[float]
    value: float = 1.0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)

    def step(self, wanted: list[float], row: int) -> None:
        env, n = self.env, len(self.held) - 1
        rate = default_trade_rate(env)
        goal = [h + rate * (w - h) for h, w in zip(self.held, wanted, strict=True)]
        goal = self.limited(goal)
        days = range(row - env.liquidity_window + 1, row + 1)
        prices = self.market.prices
        price = prices.close if prices.raw_close is None else prices.raw_close
        assert prices.volume is not None and env.capital is not None
        daily = [
            math.fsum(float(prices.volume[t, i] * price[t, i]) for t in days) / len(days)
            for i in range(n)
        ]
        sigma = []
        for i in range(n):
            moves = [float(prices.close[t, i] / prices.close[t - 1, i]) - 1.0 for t in days]
            mean = math.fsum(moves) / len(moves)
            sigma.append(math.sqrt(math.fsum((m - mean) ** 2 for m in moves) / (len(moves) - 1)))
        money = self.value * env.capital

        def costs(mu: float) -> dict[str, float]:
            found = dict.fromkeys(PARTS, 0.0)
            for i, name in enumerate(prices.assets):
                cash = abs(mu * goal[i] - self.held[i]) * money
                fee = env.fees.get(name, env.fee) * cash
                if abs(goal[i] - self.held[i]) > 1e-12:
                    found["ticket"] += env.ticket
                    fee = max(fee, env.minimum_fee)
                found["fee"] += fee
                part = min(1.0, cash / daily[i])
                curve = PLAIN_CURVES[env.slippage](part)
                found["slippage"] += cash * env.slippage_scale * sigma[i] * curve
                found["impact"] += cash * env.impact * part
            return found

        low, high = 0.0, 1.0
        for _ in range(45):
            middle = (low + high) / 2.0
            paid = math.fsum(costs(middle).values()) / money
            low, high = (middle, high) if middle - 1.0 + paid < 0.0 else (low, middle)
        self.parts = {k: v / env.capital for k, v in costs(high).items()}
        earned = self.market.returns[row + 1].tolist()
        grown = [g * (1.0 + r) for g, r in zip(goal, earned, strict=True)]
        self.value *= high * math.fsum(grown)
        self.held = [g / math.fsum(grown) for g in grown]

    def limited(self, goal: list[float]) -> list[float]:
        goal = self.slowed(goal)
        env, names = self.env, self.market.prices.assets
        held, x = self.held, goal[:-1]
        assert isinstance(env.max_position, dict) and isinstance(env.min_position, dict)
        caps = [max(env.max_position.get(a, 1.0), h) for a, h in zip(names, held, strict=False)]
        floors = [env.min_position.get(a, 0.0) for a in names]
        x = [max(f, min(g, c)) for f, g, c in zip(floors, x, caps, strict=True)]
        leasts: dict[str, float] = {}
        for group, members in env.groups.items():
            at = [names.index(a) for a in members]
            least, most = env.group_limits[group]
            leasts[group] = least
            most = max(most, sum(held[i] for i in at))
            for stop in ([max(held[i], floors[i]) for i in at], [floors[i] for i in at]):
                over = sum(x[i] for i in at) - most
                room = sum(max(0.0, x[i] - s) for i, s in zip(at, stop, strict=True))
                if over > 0.0 and room > 0.0:
                    for i, s in zip(at, stop, strict=True):
                        x[i] -= max(0.0, x[i] - s) * min(1.0, over / room)
            short = least - sum(x[i] for i in at)
            room = sum(max(caps[i], floors[i]) - x[i] for i in at)
            if short > 0.0:
                for i in at:
                    x[i] += (max(caps[i], floors[i]) - x[i]) * short / room
        over = sum(x) - 1.0
        if over > 0.0:
            spare = [a - f for a, f in zip(x, floors, strict=True)]
            for group, members in env.groups.items():
                at = [names.index(a) for a in members]
                may, have = sum(x[i] for i in at) - leasts[group], sum(spare[i] for i in at)
                for i in at:
                    spare[i] *= min(1.0, max(0.0, may) / have) if have > 0.0 else 0.0
            total = sum(spare)
            x = [a - s * over / total for a, s in zip(x, spare, strict=True)]
        return self.slowed([*x, max(0.0, 1.0 - math.fsum(x))])

    def slowed(self, goal: list[float]) -> list[float]:
        limit, held = self.env.max_turnover, self.held
        moved = sum(abs(g - h) for g, h in zip(goal[:-1], held[:-1], strict=True))
        if limit is None or moved <= limit:
            return goal
        return [h + (g - h) * limit / moved for g, h in zip(goal, held, strict=True)]


@st.composite
def everything(draw: st.DrawFn) -> EnvSettings:
    """Every cost and limit at once."""
    least = draw(st.floats(0.0, 0.2))
    return EnvSettings(
        action_base="none",
        trade_rate=draw(st.sampled_from([0.1, 0.5, 1.0])),
        fee=draw(st.floats(0.0, 0.01)),
        fees={"S01": draw(st.floats(0.0, 0.02)), "S03": 0.0},
        ticket=draw(st.floats(0.0, 50.0)),
        minimum_fee=draw(st.floats(0.0, 50.0)),
        slippage=draw(st.sampled_from(MODELS)),
        slippage_scale=draw(st.floats(0.0, 3.0)),
        impact=draw(st.floats(0.0, 0.1)),
        liquidity_window=draw(st.integers(2, 63)),
        capital=10.0 ** draw(st.floats(5.0, 9.0)),
        min_position={"S00": draw(st.floats(0.0, 0.1)), "S01": draw(st.floats(0.0, 0.1))},
        max_position={"S01": draw(st.floats(0.2, 1.0)), "S04": draw(st.floats(0.2, 1.0))},
        groups={"g": ["S01", "S02"], "h": ["S04", "S03"]},
        group_limits={"g": [least, draw(st.floats(0.3, 1.0))], "h": [0.1, 0.5]},
        max_turnover=draw(st.none() | st.floats(0.05, 1.0)),
        ruin=0.0,
    )


@settings(max_examples=20, deadline=None)
@given(env=everything(), seed=st.integers(0, 10**6), raw=st.booleans())
def test_batch_equals_a_plain_simulation(env: EnvSettings, seed: int, raw: bool) -> None:
    """20 draws of every cost and limit × 4 portfolios × 25 steps: 2,000 steps within 1e-9."""
    market = volume_market(raw)
    batch = batch_of(market, env, n_envs=4, evaluation=False, seed=seed)
    plain = [Plain(env, market, batch.held[i].tolist()) for i in range(4)]
    rng = np.random.default_rng(seed)
    for _ in range(25):
        wanted = rng.dirichlet(np.full(6, 0.5), size=4)
        rows = batch.row.copy()
        before = batch.value.copy()
        batch.step_to(wanted)
        parts = batch.cost_parts
        for i, portfolio in enumerate(plain):
            portfolio.step(wanted[i].tolist(), int(rows[i]))
            np.testing.assert_allclose(batch.held[i], portfolio.held, rtol=0, atol=1e-9)
            assert batch.value[i] == pytest.approx(portfolio.value, rel=1e-9)
            for name in PARTS:
                assert parts[name][i] == pytest.approx(portfolio.parts[name], abs=1e-9), name
        assert np.all(np.abs(sum(parts.values()) - batch.cost) <= 1e-12 * before)


# ------------------------------------------------------------------ properties

seeds = st.integers(0, 10**6)
KINDS = ("fee", "ticket", "minimum", "impact", "depth")


def drawn_costs(seed: int, model: str) -> tuple[Costs, Any, Any, Any]:
    """Costs and 64 trades among 5 assets: costs, held, target, value."""
    rng = np.random.default_rng(seed)
    costs = Costs(
        rng.uniform(0.0, 0.05, 5),
        ticket=float(rng.uniform(0.0, 0.002)),
        minimum=float(rng.uniform(0.0, 0.002)),
        slippage=model,
        impact=float(rng.uniform(0.0, 0.15)),
        volume=np.exp(rng.uniform(-5.0, 5.0, (1, 5))),
        depth=rng.uniform(0.0, 0.1, (1, 5)),
    )
    held, target = rng.dirichlet(np.full(6, 0.5), 64), rng.dirichlet(np.full(6, 0.5), 64)
    return costs, held, target, np.exp(rng.uniform(-1.0, 1.0, 64))


def paid(costs: Costs, held: Any, target: Any, value: Any) -> Any:
    return 1.0 - costs.trade(held, target, value, np.zeros(len(held), dtype=np.int64))[0].mu


@settings(max_examples=40, deadline=None)
@given(seed=seeds, model=st.sampled_from(MODELS), kind=st.sampled_from(KINDS))
def test_cost_solves_its_equation_and_grows_with_each_coefficient(
    seed: int, model: str, kind: str
) -> None:
    costs, held, target, value = drawn_costs(seed, model)
    done, parts = costs.trade(held, target, value, np.zeros(64, dtype=np.int64))
    assert parts is not None and np.all(parts >= 0.0)
    assert np.all((done.mu > 0.0) & (done.mu <= 1.0))
    np.testing.assert_allclose(parts.sum(axis=0), 1.0 - done.mu, rtol=0, atol=1e-12)
    more = dataclasses.replace(costs, **{kind: 1.2 * getattr(costs, kind)})
    assert np.all(paid(more, held, target, value) >= paid(costs, held, target, value) - 1e-13)
    np.testing.assert_array_equal(paid(costs, held, held, value), 0.0)


@pytest.mark.parametrize("model", MODELS)
def test_rows_do_not_depend_on_the_batch(model: str) -> None:
    """1,000 trades at once and one by one: the same bits."""
    rng = np.random.default_rng(0)
    costs = Costs(
        0.001, 1e-4, 1e-4, model, 0.05, 7, rng.uniform(0.1, 3.0, (9, 20)), np.full((9, 20), 0.02)
    )
    held, target = rng.dirichlet(np.ones(21), 1000), rng.dirichlet(np.ones(21), 1000)
    value, row = rng.uniform(0.5, 2.0, 1000), rng.integers(7, 16, 1000)
    done, parts = costs.trade(held, target, value, row)
    assert parts is not None
    for i in range(1000):
        at = slice(i, i + 1)
        alone, own = costs.trade(held[at], target[at], value[at], row[at])
        assert own is not None
        assert alone.mu[0] == done.mu[i] and alone.turnover[0] == done.turnover[i]
        np.testing.assert_array_equal(own[:, 0], parts[:, i])


COSTLY = EnvSettings(
    action_base="none", slippage="square_root", impact=0.1, ticket=5.0, minimum_fee=1.0, capital=1e7
)


def test_zero_coefficients_are_the_proportional_costs_alone() -> None:
    market = volume_market()
    plain = EnvSettings(action_base="none")
    off = dataclasses.replace(COSTLY, slippage_scale=0.0, impact=0.0, ticket=0.0, minimum_fee=0.0)
    first, second = (batch_of(market, env, n_envs=3) for env in (plain, off))
    rng = np.random.default_rng(0)
    for _ in range(30):
        actions = random_actions(market, 3, rng)
        first.step(actions)
        second.step(actions)
        np.testing.assert_allclose(first.value, second.value, rtol=1e-12)
        np.testing.assert_array_equal(first.cost_parts["fee"], first.cost)


@pytest.mark.parametrize("lag", [0, 1])
def test_volume_after_the_trade_changes_nothing(lag: int) -> None:
    """Doubled from row t + 1 on, volume changes the trade of row t + 1 first."""
    market = volume_market(lag=lag)
    env = dataclasses.replace(COSTLY, execution_lag=lag, trade_rate=1.0)
    row = market.splits.train.start + 20
    volume = market.prices.volume
    assert volume is not None
    changed = volume.copy()
    changed[row + 1 :] *= 2.0
    other = dataclasses.replace(market, prices=dataclasses.replace(market.prices, volume=changed))
    batches = [batch_of(m, env, n_envs=2) for m in (market, other)]
    rng = np.random.default_rng(0)
    same = []
    for step in range(30):
        wanted = rng.dirichlet(np.ones(6), size=2)
        assert batches[0].row[0] == row - 20 + step
        for batch in batches:
            batch.step_to(wanted)
        same.append(bool(np.array_equal(batches[0].value, batches[1].value)))
    assert same == [True] * 21 + [False] * 9


def test_curves_split_their_cost() -> None:
    market = volume_market()
    for curve in baselines(market, market.splits.test, COSTLY):
        assert tuple(curve.cost_parts) == PARTS
        total = sum(curve.cost_parts.values())
        np.testing.assert_allclose(total, curve.cost, rtol=0, atol=1e-12)
        if curve.name == "equal_weight":
            assert all(part.sum() > 0.0 for part in curve.cost_parts.values())


def test_parts_start_anew_with_an_episode() -> None:
    batch = batch_of(volume_market(), COSTLY, n_envs=3)
    batch.step(random_actions(batch.market, 3, np.random.default_rng(0)))
    batch.reset(np.array([1]))
    for part in batch.cost_parts.values():
        assert part[1] == 0.0 and part[0] > 0.0


# ------------------------------------------------------------------ cash, and what is refused


def test_cash_earns_the_rate_that_is_set() -> None:
    env = EnvSettings(action_base="none", cash_rate=0.0252, fee=0.0)
    prices = random_prices(5, 600)
    market = observe(prices, MarketSettings(anchor_refit=252), env)
    np.testing.assert_allclose(market.returns[:, -1], 1e-4, atol=1e-18)
    np.testing.assert_array_equal(market.prices.cash_rate, market.returns[:, -1])
    batch = batch_of(market, env)
    batch.step_to(np.eye(6)[[5]])
    assert batch.value[0] == pytest.approx(1.0001, abs=1e-15)
    with pytest.raises(ConfigError, match="cash_rate: synthetic has a cash rate of its own"):
        observe(random_prices(5, 600, cash_rate=2e-4), MarketSettings(), env)


def test_fees_by_asset_count_in_what_anchors_have_earned() -> None:
    cheap, dear = (small_market(EnvSettings(fees={"S00": fee})) for fee in (0.0, 0.05))
    record = cheap.layout.slices["anchor_record"]
    assert not np.array_equal(cheap.rows[:, record], dear.rows[:, record])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ticket": 1.0}, "ticket: 1.0 needs the portfolio's value in money; set capital"),
        ({"minimum_fee": 1.0}, "minimum_fee: 1.0 needs"),
        ({"impact": 0.1}, "impact: 0.1 needs"),
        ({"slippage": "linear"}, "slippage: linear needs"),
        ({"fees": {"S09": 0.1}}, "fees: 'S09' is no asset; did you mean 'S0"),
        ({"fees": {"S01": 0.5}}, "fees.S01: 0.5 is no number from 0 to 0.2"),
        (
            {"slippage": "linear", "slippage_scale": 10.0, "fee": 0.2, "impact": 0.2, "capital": 1},
            "slippage_scale: on 20.* over 0.9; lower it",
        ),
    ],
)
def test_costs_that_cannot_be_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        batch_of(volume_market(), EnvSettings(action_base="none", **kwargs))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["linear", "impact"])
def test_missing_volume_is_refused(model: str) -> None:
    env = dataclasses.replace(COSTLY, slippage="none" if model == "impact" else model, impact=0.1)
    bare = small_market(EnvSettings(action_base="none"))
    with pytest.raises(DataError, match="synthetic: has no volume, which slippage and impact"):
        batch_of(bare, env)
    market = volume_market()
    volume = market.prices.volume
    assert volume is not None
    holed, row = volume.copy(), market.splits.train.start + 30
    holed[row, 2] = np.nan
    prices = dataclasses.replace(market.prices, volume=holed)
    day = str(prices.dates[row])
    with pytest.raises(DataError, match=f"volume of 'S02' in the 21 days up to {day} is missing"):
        batch_of(dataclasses.replace(market, prices=prices), env)
    # A span that ends before it does not see it.
    span = Span(market.splits.train.start, row)
    batch_of(dataclasses.replace(market, prices=prices), env, span=span)


def test_volume_before_and_after_an_assets_days_does_not_matter() -> None:
    """What is not listed has no volume; all that is traded has, forced sales too."""
    prices = partial_prices(starts={1: 60, 4: 150}, ends={2: 330, 5: 480})
    listed = prices.listed
    assert listed is not None and not listed.all()
    whole = with_volume(prices)
    assert whole.volume is not None
    curves = []
    for unknown in (np.nan, 1.0):
        volume = np.where(listed, whole.volume, unknown)
        market = observe(
            dataclasses.replace(whole, volume=volume), MarketSettings(anchor_refit=63), COSTLY
        )
        batch = batch_of(market, COSTLY, span=Span(market.splits.train.start, len(prices)))
        rng, values = np.random.default_rng(0), []
        for _ in range(batch.episode_length):
            batch.step(random_actions(market, 1, rng))
            values.append([*batch.value, *batch.cost, *batch.turnover])
        curves.append(np.array(values))
    np.testing.assert_array_equal(*curves)
    assert np.isfinite(curves[0]).all() and (curves[0][:, 1] > 0.0).any()


def test_nothing_is_traded_on_a_day_without_a_price(tmp_path: Path) -> None:
    """A close that is filled has a volume of 0, also of a raw close that is not there."""
    path = tmp_path / "long.csv"
    head = "date,symbol,adj_close,close,volume\n"
    rows = "2020-01-01,A,1,2,10\n2020-01-01,B,1,2,10\n2020-01-02,B,1,2,30\n2020-01-03,A,1,2,20\n"
    path.write_text(head + rows + "2020-01-03,B,1,2,20\n")
    prices = load_prices(path)
    assert prices.volume is not None
    assert prices.volume[:, 0].tolist() == [10.0, 0.0, 20.0]
    assert traded_value(prices, 3, Span(2, 3)).tolist() == [[20.0, 40.0]]
