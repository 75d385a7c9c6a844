"""What trades cost and days earn: published wealths, an independent simulation, properties."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from checkers import check_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import batch_of, olps_market, random_actions, small_market, whole_span

from finflow_sb3.config import EnvSettings
from finflow_sb3.envs.accounting import grow, move_towards, solve_mu, trade
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.constraints import Limits, constrain
from finflow_sb3.envs.rows import row_sums
from finflow_sb3.market.splits import Span

EXAMPLES = settings(max_examples=60, deadline=None)


def simplex_rows(seed: int, rows: int, width: int, sparse: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(width, 0.05 if sparse else 1.0), size=rows)


# ------------------------------------------------------------------ published figures


@pytest.mark.parametrize(
    ("rule", "wealth"),
    [("buy and hold", 0.764361), ("constant rebalanced", 0.812726), ("best asset", 1.188360)],
)
def test_published_olps_wealths(rule: str, wealth: float) -> None:
    """The toolbox's own final wealths, through `PortfolioBatch.step_to` with fee 0 and rate 1.

    The relatives become a `PriceTable` (see `markets.olps_market`). A portfolio starts equally
    weighted in the 30 assets; buy and hold never trades, constant rebalanced asks for equal
    weights each day, best asset asks each day for the one with the largest product.
    """
    market, span = olps_market()
    batch = batch_of(market, span=span)
    n = market.prices.n_assets
    equal = np.append(np.full(n, 1.0 / n), 0.0)[None]
    relatives = market.prices.close[span.stop - 1] / market.prices.close[span.start]
    best = np.eye(n + 1)[[int(np.argmax(relatives))]]
    for _ in range(batch.episode_length):
        if rule == "buy and hold":
            batch.step_to(equal, np.array([True]))
        else:
            batch.step_to(equal if rule == "constant rebalanced" else best)
    assert batch.steps[0] == 507
    assert batch.value[0] == pytest.approx(wealth, abs=1e-6)


# ------------------------------------------------------------------ an independent simulation


@dataclass
class PlainPortfolio:
    """One portfolio in plain Python: floats, loops, and bisection for μ."""

    held: list[float]
    env: EnvSettings
    value: float = 1.0
    turnover: float = 0.0
    cost: float = 0.0
    weights: list[float] | None = None
    pending: list[float] | None = None  # None: nothing is to be traded

    def target(self, action: list[float], anchors: list[list[float]]) -> list[float] | None:
        env, n = self.env, len(self.held)
        if env.action_base == "anchors":
            k = len(anchors)
            gates = [math.exp(env.gate_scale * a) for a in action[:k]]
            base = [sum(gates[j] * anchors[j][i] for j in range(k)) for i in range(n)]
            raw = [base[i] * math.exp(env.tilt_scale * action[k + i]) for i in range(n)]
        elif env.action_base == "drift":
            if all(a == 0.0 for a in action):
                return None
            raw = [
                max(h, 1e-6) * math.exp(env.drift_scale * a)
                for h, a in zip(self.held, action, strict=True)
            ]
        else:
            raw = [math.exp(env.softmax_scale * a) for a in action]
        total = math.fsum(raw)
        return [r / total for r in raw]

    def step(self, target: list[float] | None, returns: list[float]) -> None:
        if self.env.execution_lag:
            target, self.pending = self.pending, target
        after = self._constrained(self.held if target is None else target)
        mu = self._mu(after)
        self.turnover = sum(
            abs(mu * w - h) for w, h in zip(after[:-1], self.held[:-1], strict=True)
        )
        self.cost = (1.0 - mu) * self.value
        self.weights = after
        parts = [w * (1.0 + r) for w, r in zip(after, returns, strict=True)]
        growth = math.fsum(parts)
        self.value *= mu * growth
        self.held = [p / growth for p in parts]

    def _constrained(self, target: list[float]) -> list[float]:
        env, held = self.env, self.held
        rate = env.trade_rate or (0.1 if env.action_base == "anchors" else 1.0)
        goal = [h + rate * (t - h) for h, t in zip(held, target, strict=True)]
        if env.no_trade_band > 0.0:
            goal = self._banded(goal)
        if env.max_turnover is not None:
            moved = sum(abs(g - h) for g, h in zip(goal[:-1], held[:-1], strict=True))
            if moved > env.max_turnover:
                share = env.max_turnover / moved
                goal = [h + share * (g - h) for g, h in zip(goal, held, strict=True)]
        if env.max_position is not None:
            risky = [
                min(g, max(env.max_position, h)) for g, h in zip(goal[:-1], held[:-1], strict=True)
            ]
            goal = [*risky, max(0.0, 1.0 - math.fsum(risky))]
        return goal

    def _banded(self, goal: list[float]) -> list[float]:
        """Small changes stay as they are; the others share what is left in proportion."""
        held = self.held
        big = [abs(g - h) >= self.env.no_trade_band for g, h in zip(goal, held, strict=True)]
        if not any(big):
            return list(held)
        left = 1.0 - math.fsum(h for h, b in zip(held, big, strict=True) if not b)
        wanted = math.fsum(g for g, b in zip(goal, big, strict=True) if b)
        return [g * left / wanted if b else h for g, h, b in zip(goal, held, big, strict=True)]

    def _mu(self, after: list[float]) -> float:
        def gap(mu: float) -> float:
            traded = sum(abs(mu * w - h) for w, h in zip(after[:-1], self.held[:-1], strict=True))
            return mu - 1.0 + self.env.fee * traded

        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2.0
            low, high = (middle, high) if gap(middle) < 0.0 else (low, middle)
        return high


def random_settings(rng: np.random.Generator, case: int) -> EnvSettings:
    """A third without any constraint, the others with a draw of each."""
    plain = case % 3 == 0
    return EnvSettings(
        action_base=("anchors", "drift", "none")[case % 3 if not plain else (case // 3) % 3],
        trade_rate=(None, 1.0, 0.3)[int(rng.integers(3))],
        fee=float(rng.choice([0.0, 0.001, 0.01, 0.1])),
        execution_lag=int(rng.integers(2)),
        no_trade_band=0.0 if plain else float(rng.choice([0.0, 0.005, 0.03, 0.1])),
        max_turnover=None if plain else (None, 0.05, 0.4)[int(rng.integers(3))],
        max_position=None if plain else (None, 0.15, 0.35)[int(rng.integers(3))],
        ruin=0.0,
    )


@pytest.mark.parametrize("case", range(42))
def test_batch_equals_plain_simulation(case: int) -> None:
    """42 random configurations × 5 portfolios × 50 steps: 10,500 steps through the real batch."""
    rng = np.random.default_rng(case)
    env = random_settings(rng, case)
    market = small_market(EnvSettings(action_base=env.action_base, execution_lag=env.execution_lag))
    batch = batch_of(market, env, n_envs=5, evaluation=False, seed=case)
    plain = [PlainPortfolio(list(map(float, batch.held[i])), env) for i in range(5)]
    for step in range(50):
        actions = random_actions(market, 5, rng)
        actions[rng.random(5) < 0.1] = 0.0
        rows = batch.row.copy()
        targets = [
            plain[i].target(actions[i].tolist(), market.anchors.at(rows[i]).tolist())
            for i in range(5)
        ]
        batch.step(actions)
        for i, portfolio in enumerate(plain):
            portfolio.step(targets[i], market.returns[rows[i] + 1].tolist())
            where = f"case {case}, step {step}, portfolio {i}"
            np.testing.assert_allclose(batch.weights[i], portfolio.weights, 0, 1e-9, err_msg=where)
            np.testing.assert_allclose(batch.held[i], portfolio.held, 0, 1e-9, err_msg=where)
            assert batch.value[i] == pytest.approx(portfolio.value, rel=1e-9), where
            assert batch.turnover[i] == pytest.approx(portfolio.turnover, abs=1e-9), where
            assert batch.cost[i] == pytest.approx(portfolio.cost, abs=1e-9), where
        check_budget(batch.weights)
        check_budget(batch.held)


# ------------------------------------------------------------------ by hand


def test_mu_by_hand() -> None:
    """From all cash into one asset: μ = 1 − c·μ, so μ = 1/(1 + c). Back: μ = 1 − c."""
    cash, asset = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])
    assert solve_mu(cash, asset, 0.01)[0] == pytest.approx(1 / 1.01, abs=1e-15)
    assert solve_mu(asset, cash, 0.01)[0] == pytest.approx(0.99, abs=1e-15)


def test_a_purchase_that_turns_into_a_sale() -> None:
    """A asks for a trace more than it has, but costs leave less: it is sold in the end.

    Held A 0.5, B 0.5; wanted A 0.5 + 1e-4, cash the rest; c = 0.1. B is sold whole. With A
    bought, μ = (1 − c·(0.5 − 0.5))/(1 + c·w) would leave 0.476 in A, less than was held; with A
    sold, μ = (1 − c·(0.5 + 0.5))/(1 − c·w).
    """
    w = 0.5 + 1e-4
    held, target = np.array([[0.5, 0.5, 0.0]]), np.array([[w, 0.0, 1.0 - w]])
    done = trade(held, target, 0.1)
    assert done.mu[0] == pytest.approx(0.9 / (1.0 - 0.1 * w), abs=1e-15)
    assert done.mu[0] * w < 0.5
    assert done.turnover[0] == pytest.approx(1.0 - done.mu[0] * w, abs=1e-15)


def test_a_fee_for_each_asset() -> None:
    """From cash into A at 1 % and into B at 2 %: μ = 1/(1 + 0.5·0.01 + 0.5·0.02)."""
    cash, both = np.array([[0.0, 0.0, 1.0]]), np.array([[0.5, 0.5, 0.0]])
    assert solve_mu(cash, both, np.array([0.01, 0.02]))[0] == pytest.approx(1 / 1.015, abs=1e-15)


def test_turnover_counts_buys_and_sells() -> None:
    """Half of the value from A to B without a fee: 0.5 sold and 0.5 bought."""
    done = trade(np.array([[0.75, 0.25, 0.0]]), np.array([[0.25, 0.75, 0.0]]), 0.0)
    assert done.turnover[0] == 1.0
    assert done.mu[0] == 1.0


def test_growth_by_hand() -> None:
    growth, held = grow(np.array([[0.5, 0.25, 0.25]]), np.array([[0.1, -0.2, 0.0]]))
    assert growth[0] == pytest.approx(0.55 + 0.2 + 0.25)
    np.testing.assert_allclose(held[0], [0.55, 0.2, 0.25], atol=1e-15)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, [0.5, 0.1, 0.4]),
        # The change of B (0.1) is left out; A and cash share 0.8 as 5 to 4.
        ({"no_trade_band": 0.15}, [0.8 * 5 / 9, 0.2, 0.8 * 4 / 9]),
        # |0.3| + |0.1| is scaled to 0.2: half of the way.
        ({"max_turnover": 0.2}, [0.35, 0.15, 0.5]),
        ({"max_position": 0.3}, [0.3, 0.1, 0.6]),
        # Half of the way first, then the cap.
        ({"max_turnover": 0.2, "max_position": 0.3}, [0.3, 0.15, 0.55]),
        ({"no_trade_band": 0.5}, [0.2, 0.2, 0.6]),
        ({"max_turnover": 0.0}, [0.2, 0.2, 0.6]),
    ],
)
def test_constraints_by_hand(limits: dict[str, float], expected: list[float]) -> None:
    held, target = np.array([[0.2, 0.2, 0.6]]), np.array([[0.5, 0.1, 0.4]])
    np.testing.assert_allclose(constrain(held, target, Limits(**limits))[0], expected, atol=1e-15)


def test_cap_binds_purchases_only() -> None:
    """What has drifted above the cap may stay, and may be sold, but is not bought."""
    held = np.array([[0.5, 0.1, 0.4]])
    more = constrain(held, np.array([[0.6, 0.2, 0.2]]), Limits(max_position=0.3))
    np.testing.assert_allclose(more[0], [0.5, 0.2, 0.3], atol=1e-15)


def test_all_changed_targets_zero_goes_to_cash() -> None:
    """A is sold outright, the other changes are too small: the proceeds have only cash."""
    held, target = np.array([[0.1, 0.45, 0.45]]), np.array([[0.0, 0.5, 0.5]])
    done = constrain(held, target, Limits(no_trade_band=0.06))
    np.testing.assert_allclose(done[0], [0.0, 0.45, 0.55], atol=1e-15)


# ------------------------------------------------------------------ properties

seeds = st.integers(0, 10_000)
fees = st.floats(0.0, 0.2)


@EXAMPLES
@given(seed=seeds, fee=fees, width=st.integers(2, 12), sparse=st.booleans())
def test_mu_solves_its_equation(seed: int, fee: float, width: int, sparse: bool) -> None:
    held = simplex_rows(seed, 8, width, sparse)
    target = simplex_rows(seed + 1, 8, width, not sparse)
    done = trade(held, target, fee)
    assert np.all((done.mu > 0.0) & (done.mu <= 1.0))
    for i in range(8):
        traded = math.fsum(
            abs(done.mu[i] * w - h) for w, h in zip(target[i, :-1], held[i, :-1], strict=True)
        )
        assert abs(done.mu[i] - (1.0 - fee * traded)) <= 1e-12
        assert done.turnover[i] == pytest.approx(traded, abs=1e-12)
    np.testing.assert_array_equal(solve_mu(held, held, fee), 1.0)


@EXAMPLES
@given(seed=seeds, width=st.integers(2, 40), close=st.floats(0.0, 1.0), each=st.booleans())
def test_mu_solves_its_equation_where_trades_are_small(
    seed: int, width: int, close: float, each: bool
) -> None:
    """Near what is held many purchases turn into sales; also with a fee for each asset."""
    rng = np.random.default_rng(seed)
    held = simplex_rows(seed, 16, width)
    target = move_towards(held, simplex_rows(seed + 1, 16, width, sparse=True), close**4)
    fees = rng.uniform(0.0, 0.2, width - 1) if each else np.full(width - 1, rng.uniform(0.0, 0.2))
    mu = solve_mu(held, target, fees if each else float(fees[0]))
    assert np.all((mu > 0.0) & (mu <= 1.0))
    for i in range(16):
        pairs = zip(fees, target[i, :-1], held[i, :-1], strict=True)
        paid = math.fsum(fee * abs(mu[i] * w - h) for fee, w, h in pairs)
        assert abs(mu[i] - (1.0 - paid)) <= 1e-13


@EXAMPLES
@given(seed=seeds, width=st.integers(2, 40), fee=fees, rows=st.integers(2, 70))
def test_a_trade_alone_has_the_same_bits(seed: int, width: int, fee: float, rows: int) -> None:
    """Whatever else is in the batch, and wherever in it."""
    held = simplex_rows(seed, rows, width)
    target = move_towards(held, simplex_rows(seed + 1, rows, width, sparse=True), 0.05)
    returns = np.random.default_rng(seed).normal(0.0, 0.02, (rows, width))
    all_done, all_grown = trade(held, target, fee), grow(target, returns)
    for i in {0, seed % rows, rows - 1}:
        row = slice(i, i + 1)
        done, grown = trade(held[row], target[row], fee), grow(target[row], returns[row])
        assert done.mu[0] == all_done.mu[i]
        assert done.turnover[0] == all_done.turnover[i]
        assert grown[0][0] == all_grown[0][i]
        np.testing.assert_array_equal(grown[1][0], all_grown[1][i])


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 21, 64, 501])
def test_sums_of_rows_have_the_same_bits_alone(width: int) -> None:
    values = np.random.default_rng(width).normal(size=(131, width + 1))
    sums = row_sums(values[:, :-1])
    np.testing.assert_allclose(sums, values[:, :-1].sum(axis=1), atol=1e-12)
    for i in range(131):
        assert row_sums(values[i : i + 1, :-1].copy())[0] == sums[i]


def test_weights_that_are_no_numbers_end_the_search() -> None:
    held, target = simplex_rows(0, 3, 5), simplex_rows(1, 3, 5)
    target[1, 2] = np.nan
    assert np.isnan(solve_mu(held, target, 0.01)).tolist() == [False, True, False]


@EXAMPLES
@given(
    seed=seeds,
    band=st.floats(0.0, 0.5),
    limit=st.none() | st.floats(0.0, 2.0),
    cap=st.none() | st.floats(0.0, 1.0),
    rate=st.floats(0.01, 1.0),
    sparse=st.booleans(),
)
def test_constraints_keep_budget_and_limits(
    seed: int, band: float, limit: float | None, cap: float | None, rate: float, sparse: bool
) -> None:
    held, goal = simplex_rows(seed, 16, 6, sparse), simplex_rows(seed + 1, 16, 6)
    goal = move_towards(held, goal, rate)
    done = constrain(held, goal, Limits(band, limit, cap))
    check_budget(done)
    if limit is not None:
        assert np.all(np.abs(done - held)[:, :-1].sum(axis=1) <= limit + 1e-12)
    if cap is not None:
        assert np.all(done[:, :-1] <= np.maximum(cap, held[:, :-1]) + 1e-15)


def test_cost_is_fee_times_turnover() -> None:
    """The equation of μ in money: what is paid is fee × traded value."""
    env = EnvSettings(fee=0.01)
    batch = batch_of(small_market(), env, n_envs=4, evaluation=False)
    rng = np.random.default_rng(0)
    for _ in range(20):
        before = batch.value.copy()
        batch.step(random_actions(batch.market, 4, rng))
        np.testing.assert_allclose(batch.cost, env.fee * batch.turnover * before, atol=1e-14)


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
def test_rows_do_not_depend_on_the_batch(base: str) -> None:
    """A batch of 7 and seven batches of one: the same bits, with every constraint on."""
    env = EnvSettings(
        action_base=base, fee=0.01, no_trade_band=0.01, max_turnover=0.3, max_position=0.4
    )
    market = small_market(EnvSettings(action_base=base))
    span = whole_span(market)
    many = PortfolioBatch(market, span, 7, env, seeds=list(range(7)))
    ones = [PortfolioBatch(market, span, 1, env, seeds=[i]) for i in range(7)]
    for batch in (many, *ones):
        batch.reset()
    rng = np.random.default_rng(1)
    for _ in range(30):
        actions = random_actions(market, 7, rng)
        out = many.step(actions)
        for i, one in enumerate(ones):
            alone = one.step(actions[i : i + 1])
            np.testing.assert_array_equal(out.observations[i], alone.observations[0])
            assert out.rewards[i] == alone.rewards[0]
            assert many.value[i] == one.value[0]
            assert many.cost[i] == one.cost[0]
            np.testing.assert_array_equal(many.invert(many.weights)[i], one.invert(one.weights)[0])


@pytest.mark.parametrize("size", [2, 64, 257])
def test_no_size_of_the_batch_changes_a_portfolio(size: int) -> None:
    """Default settings and 20 assets over refit days: the same bits as alone."""
    market = small_market(n_assets=20)
    span = whole_span(market)
    many = PortfolioBatch(market, span, size, market.env, seeds=list(range(size)))
    some = {0, 1, size // 2, size - 1}
    ones = {i: PortfolioBatch(market, span, 1, market.env, seeds=[i]) for i in some}
    for batch in (many, *ones.values()):
        batch.reset()
    rng = np.random.default_rng(1)
    for _ in range(80):
        actions = random_actions(market, size, rng).astype(np.float32)
        out = many.step(actions)
        for i, one in ones.items():
            alone = one.step(actions[i : i + 1])
            np.testing.assert_array_equal(out.observations[i], alone.observations[0])
            np.testing.assert_array_equal(many.held[i], one.held[0])
            assert out.rewards[i] == alone.rewards[0]
            assert many.value[i] == one.value[0]


def test_spans_outside_the_usable_rows_are_refused() -> None:
    from finflow_sb3.errors import DataError

    market = small_market()
    first, stop = market.splits.train.start, len(market.prices)
    for span in (Span(first - 1, stop), Span(first, stop + 1), Span(first, first + 1)):
        with pytest.raises(DataError, match="usable rows"):
            PortfolioBatch(market, span, 1, market.env)
