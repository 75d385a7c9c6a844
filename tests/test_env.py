"""The environment: timing, ends, fronts, state, and that nothing looks ahead."""

from __future__ import annotations

import json
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from checkers import check_budget, check_environment
from gymnasium.utils.env_checker import check_env as gymnasium_check
from markets import batch_of, random_actions, random_prices, small_market, us20_market, whole_span
from stable_baselines3.common.env_checker import check_env as sb3_check

from finflow_sb3.config import EnvSettings, MarketSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket, observe
from finflow_sb3.envs.portfolio import PortfolioEnv
from finflow_sb3.envs.registration import register_envs
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError, DataError, FinflowError
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.splits import Span

VARIANTS = [
    {"action_base": "anchors"},
    {"action_base": "drift", "execution_lag": 1},
    {"action_base": "none", "reward": "differential_sharpe"},
    {"action_base": "anchors", "execution_lag": 1, "reward": "differential_sharpe"},
    {"action_base": "none", "execution_lag": 1, "reward_baseline": "none"},
]


def market_for(kwargs: dict[str, Any]) -> ObservedMarket:
    observed = ("action_base", "execution_lag", "reward", "reward_baseline", "fee")
    return small_market(EnvSettings(**{k: v for k, v in kwargs.items() if k in observed}))


# ------------------------------------------------------------------ gymnasium and SB3


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_checkers_pass(kwargs: dict[str, Any]) -> None:
    env = PortfolioEnv(market_for(kwargs), episode_length=20, **kwargs)
    with warnings.catch_warnings():
        # gymnasium remarks that observations are not bounded.
        warnings.simplefilter("ignore", UserWarning)
        gymnasium_check(env, skip_render_check=True)
        sb3_check(env)
    check_environment(env)
    assert env.observation_space.shape == (env.layout.size,)
    assert env.action_space.shape == (env.layout.action_size,)


def test_made_by_id() -> None:
    register_envs()
    us20_market()  # fits the anchors once, so that `make` finds them
    stocks = gym.make("finflow/US20-v0", split="validation", episode_length=10)
    assert stocks.unwrapped.layout.n_assets == 20
    check_environment(stocks)
    prices = random_prices(5, 600)
    other = gym.make(
        "finflow/Portfolio-v0",
        prices=prices,
        market=MarketSettings(anchor_refit=63),
        action_base="none",
        episode_length=10,
    )
    assert other.unwrapped.layout.assets == prices.assets
    check_environment(other)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"feee": 0.1}, "unknown environment setting 'feee'; did you mean 'fee'"),
        ({"split": "tests"}, "split: 'tests' is not one of train, validation, test, all"),
        ({"fee": -1.0}, "fee: -1.0 is out of range"),
        ({"action_base": "drift"}, "action_base: the market was observed with 'anchors'"),
        ({"market": MarketSettings()}, "market: the market was observed with another"),
        ({"scaler": "other"}, "scaler: the market was observed with another"),
    ],
)
def test_bad_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PortfolioEnv(small_market(), **kwargs)
    assert "\n" not in str(caught.value)


def test_stepping_after_the_end_is_refused() -> None:
    env = PortfolioEnv(small_market(), episode_length=1)
    with pytest.raises(FinflowError, match="call reset"):
        env.step(env.action_space.sample())
    env.reset(seed=0)
    env.step(env.action_space.sample())
    with pytest.raises(FinflowError, match="call reset"):
        env.step(env.action_space.sample())


# ------------------------------------------------------------------ both fronts are one


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_vec_env_equals_single_environments(kwargs: dict[str, Any]) -> None:
    """Bit for bit, over several episode ends, those by ruin included."""
    market = market_for(kwargs)
    # A ruin at 97 % of the start ends many episodes early.
    extra = {**kwargs, "episode_length": 15, "ruin": 0.97}
    many = PortfolioVecEnv(market, 4, seed=11, **extra)
    ones = [PortfolioEnv(market, **extra) for _ in range(4)]
    seen = many.reset()
    for i, env in enumerate(ones):
        observation, info = env.reset(seed=11 + i)
        np.testing.assert_array_equal(seen[i], observation)
        assert many.reset_infos[i]["date"] == info["date"]
    rng = np.random.default_rng(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(50):
        actions = random_actions(market, 4, rng).astype(np.float32)
        seen, rewards, dones, infos = many.step(actions)
        for i, env in enumerate(ones):
            observation, reward, terminated, truncated, info = env.step(actions[i])
            assert reward == rewards[i]
            assert dones[i] == (terminated or truncated)
            assert infos[i]["TimeLimit.truncated"] == truncated
            for key, value in info.items():
                np.testing.assert_array_equal(infos[i][key], value, err_msg=key)
            if dones[i]:
                ends["terminated" if terminated else "truncated"] += 1
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                assert infos[i]["episode"]["l"] == info["length"]
                assert infos[i]["episode"]["r"] == pytest.approx(info["total_reward"])
                observation, _ = env.reset()
            else:
                assert "terminal_observation" not in infos[i]
            np.testing.assert_array_equal(seen[i], observation)
    assert min(ends.values()) > 0


def test_sb3_reads_the_vec_env() -> None:
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import VecNormalize

    env = PortfolioVecEnv(small_market(), 2, seed=0, episode_length=8)
    assert env.env_is_wrapped(Monitor) == [True, True]
    wrapped = VecNormalize(env)

    class Idle:
        def predict(self, observation: Any, **_: Any) -> Any:
            return np.zeros((len(observation), env.action_space.shape[0])), None

    mean, deviation = evaluate_policy(Idle(), wrapped, n_eval_episodes=4, warn=False)
    assert np.isfinite([mean, deviation]).all()


# ------------------------------------------------------------------ timing


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
def test_lag_trades_yesterdays_target(base: str) -> None:
    """With lag 1 the trade of row t is the target of row t-1; the first day trades nothing."""
    kwargs = {"action_base": base, "execution_lag": 1}
    market = market_for(kwargs)
    env = EnvSettings(trade_rate=1.0, fee=0.0, **kwargs)
    batch = batch_of(market, env, n_envs=2, evaluation=False)
    rng = np.random.default_rng(0)
    start = batch.held.copy()
    ordered = None
    for step in range(10):
        seen = batch.observations()[:, market.layout.slices["pending"]]
        np.testing.assert_allclose(seen, start if ordered is None else ordered, atol=1e-7)
        actions = random_actions(market, 2, rng)
        target = batch.target(actions)
        batch.step(actions)
        if step == 0:
            np.testing.assert_array_equal(batch.weights, start)
            np.testing.assert_array_equal(batch.turnover, 0.0)
        else:
            np.testing.assert_allclose(batch.weights, ordered, atol=1e-15)
        ordered = target


def test_returns_are_earned_after_the_trade() -> None:
    """All in one asset on row t: the value grows by that asset's return from t to t+1."""
    market = market_for({"action_base": "none"})
    batch = batch_of(market, EnvSettings(action_base="none", fee=0.0))
    close = market.prices.close
    row = int(batch.row[0])
    for asset in (0, 3, 1):
        before = batch.value[0]
        batch.step_to(np.eye(6)[[asset]])
        growth = close[row + 1, asset] / close[row, asset]
        assert batch.value[0] / before == pytest.approx(growth, rel=1e-12)
        row += 1
    before = batch.value[0]
    batch.step_to(np.eye(6)[[5]])
    assert batch.value[0] / before == pytest.approx(1.0001, rel=1e-12)


def test_info_dates_and_end_figures() -> None:
    """`date` is the day of the observation; the figures of the end are those of the values."""
    market = small_market()
    env = PortfolioEnv(market, split="validation", evaluation=True, fee=0.001)
    span = market.splits.validation
    _, info = env.reset(seed=0)
    assert info["date"] == str(market.prices.dates[span.start])
    np.testing.assert_allclose(info["weights"], [0.2] * 5 + [0.0])
    values, turnovers, costs, rewards = [1.0], [], [], []
    ended = False
    while not ended:
        _, reward, terminated, ended, info = env.step(np.zeros(env.action_space.shape))
        assert not terminated
        values.append(info["value"])
        turnovers.append(info["turnover"])
        costs.append(info["cost"])
        rewards.append(reward)
    assert len(rewards) == len(span) - 1
    assert info["date"] == str(market.prices.dates[span.stop - 1])
    value = np.array(values)
    returns = value[1:] / value[:-1] - 1.0
    below = np.sqrt(np.mean(np.minimum(returns, 0.0) ** 2))
    worst = np.sort(returns)[: round(0.05 * len(returns))]
    expected = {
        "net_return": value[-1] - 1.0,
        "sharpe": returns.mean() / returns.std(ddof=1) * np.sqrt(252),
        "sortino": returns.mean() / below * np.sqrt(252),
        "max_drawdown": np.min(value / np.maximum.accumulate(value)) - 1.0,
        "cvar_95": worst.mean(),
        "mean_turnover": np.mean(turnovers),
        "total_cost": np.sum(costs),
        "total_reward": np.sum(rewards),
    }
    for name, figure in expected.items():
        assert info[name] == pytest.approx(figure, rel=1e-5, abs=1e-9), name


def test_episodes_lie_in_their_split() -> None:
    """Of 33 rows, episodes of 30 days (31 rows) start on the first three: on each of them."""
    span = Span(300, 333)
    env = EnvSettings(episode_length=30)
    batch = batch_of(small_market(), env, 100, span, evaluation=False)
    assert set(batch.row) == {300, 301, 302}
    short = batch_of(small_market(), EnvSettings(episode_length=99), 5, span, evaluation=False)
    assert set(short.row) == {300}
    assert short.episode_length == 32


def test_ruin_terminates_and_time_truncates() -> None:
    market = market_for({"action_base": "none"})
    broke = EnvSettings(
        action_base="none", fee=0.2, ruin=0.6, episode_length=2, initial_weights="equal"
    )
    batch = batch_of(market, broke, evaluation=False)
    # From equal weights into one of five: 1.2·μ = 0.88; then from one to another: 1.2·μ = 0.8.
    first, second = batch.step_to(np.eye(6)[[0]]), batch.step_to(np.eye(6)[[1]])
    assert not (first.terminated[0] or first.truncated[0])
    assert batch.value[0] == pytest.approx(0.88 / 1.2 * 0.8 / 1.2, rel=0.1)
    assert second.terminated[0]
    assert not second.truncated[0]
    patient = batch_of(market, EnvSettings(action_base="none", episode_length=10), evaluation=False)
    ends = [patient.step(np.zeros((1, 6))) for _ in range(10)]
    assert [bool(e.truncated[0]) for e in ends] == [False] * 9 + [True]
    assert not any(e.terminated[0] for e in ends)


@pytest.mark.parametrize("lag", [0, 1])
def test_zero_under_drift_trades_nothing(lag: int) -> None:
    """However far prices have drifted, and whatever was traded before."""
    market = market_for({"action_base": "drift", "execution_lag": lag})
    batch = batch_of(market, n_envs=3, evaluation=False)
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch.step(random_actions(market, 3, rng))
    for step in range(30):
        held = batch.held.copy()
        batch.step(np.zeros((3, market.layout.action_size)))
        if step >= lag:
            np.testing.assert_array_equal(batch.weights, held)
            np.testing.assert_array_equal(batch.turnover, 0.0)
            np.testing.assert_array_equal(batch.cost, 0.0)


@pytest.mark.parametrize("k", range(5))
def test_a_corner_gate_holds_its_anchor(k: int) -> None:
    """With trade_rate 1, within the 4·e^-10 that the other gates keep."""
    market = small_market()
    batch = batch_of(market, EnvSettings(trade_rate=1.0))
    action = np.zeros((1, market.layout.action_size))
    action[0, :5] = -1.0
    action[0, k] = 1.0
    for _ in range(70):
        anchor = market.anchors.at(batch.row)[0, k]
        batch.step(action)
        np.testing.assert_allclose(batch.weights[0], anchor, atol=4 * np.exp(-10))
        assert batch.gates[0, k] > 0.999


def test_default_rate_goes_a_tenth_of_the_way() -> None:
    market = small_market()
    batch = batch_of(market)
    for _ in range(10):
        held, average = batch.held.copy(), market.anchors.at(batch.row).mean(axis=1)
        batch.step(np.zeros((1, market.layout.action_size)))
        np.testing.assert_allclose(batch.weights, 0.9 * held + 0.1 * average, atol=1e-15)


def test_one_of_a_hundred_assets_reaches_99_percent() -> None:
    market = observe(
        random_prices(100, 600), MarketSettings(anchor_refit=252), EnvSettings(action_base="none")
    )
    batch = batch_of(market)
    action = np.full((1, 101), -1.0)
    action[0, 42] = 1.0
    batch.step(action)
    assert batch.weights[0, 42] >= 0.99


@pytest.mark.parametrize("initial", ["random", "equal", "anchors"])
def test_initial_weights(initial: str) -> None:
    market = small_market()
    batch = batch_of(market, EnvSettings(initial_weights=initial), 20, evaluation=False)
    check_budget(batch.held)
    spread = np.ptp(batch.held, axis=0).max()
    if initial == "equal":
        np.testing.assert_allclose(batch.held, [[0.2] * 5 + [0.0]] * 20)
    else:
        assert spread > 0.1


# ------------------------------------------------------------------ state


@pytest.mark.parametrize("kwargs", VARIANTS)
def test_restored_state_continues_bit_for_bit(kwargs: dict[str, Any]) -> None:
    market = market_for(kwargs)
    env = EnvSettings(**kwargs, episode_length=12)
    one = batch_of(market, env, 3, evaluation=False, seed=5)
    rng = np.random.default_rng(0)
    for _ in range(7):
        one.step(random_actions(market, 3, rng))
    arrays, states = one.state()
    other = batch_of(market, env, 3, evaluation=False, seed=99)
    other.restore(arrays, json.loads(json.dumps(states)))
    np.testing.assert_array_equal(one.observations(), other.observations())
    for _ in range(20):
        actions = random_actions(market, 3, rng)
        mine, theirs = one.step(actions), other.step(actions)
        np.testing.assert_array_equal(mine.observations, theirs.observations)
        np.testing.assert_array_equal(mine.rewards, theirs.rewards)
        assert one.episode(1) == other.episode(1)
        for batch, out in ((one, mine), (other, theirs)):
            batch.reset(np.flatnonzero(out.terminated | out.truncated))
    # What was handed out is a copy: stepping on has not changed it.
    again = batch_of(market, env, 3, evaluation=False)
    again.restore(arrays, states)
    assert again.steps[0] == 7


# ------------------------------------------------------------------ no look-ahead


@pytest.mark.parametrize("row", [300, 314, 315, 410])
def test_the_future_changes_nothing(row: int) -> None:
    """Other prices after `row` (315 is a refit day) change no observation, target or inverse
    at or before it, and no trade or value either."""
    base = small_market()
    close = base.prices.close.copy()
    close[row + 1 :] *= np.random.default_rng(row).uniform(0.5, 2.0, close[row + 1 :].shape)
    changed = PriceTable(
        base.prices.dates, base.prices.assets, close, cash_rate=base.prices.cash_rate
    )
    other = observe(changed, base.settings, base.env, scaler=base.scaler)
    np.testing.assert_array_equal(other.rows[: row + 1], base.rows[: row + 1])
    assert np.any(other.rows[row + 1] != base.rows[row + 1])
    trails = []
    for market in (base, other):
        rng = np.random.default_rng(0)
        batch = batch_of(market, span=Span(252, len(base.prices)))
        trail = []
        while batch.row[0] <= row:
            action = random_actions(market, 1, rng)
            target = batch.target(action)
            inverse = batch.invert(batch.held)
            trail.append((batch.observations(), target, inverse, batch.held, batch.value))
            batch.step(action)
            trail.append((batch.weights, batch.turnover, batch.cost))
        trails.append(trail)
    for mine, theirs in zip(*trails, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    assert batch.held.tolist() != trails[0][-2][3].tolist()


def test_the_scaler_sees_the_training_split_alone() -> None:
    base = small_market()
    stop = base.splits.train.stop
    close = base.prices.close.copy()
    close[stop:] *= np.random.default_rng(0).uniform(0.5, 2.0, close[stop:].shape)
    changed = PriceTable(
        base.prices.dates, base.prices.assets, close, cash_rate=base.prices.cash_rate
    )
    other = observe(changed, base.settings, base.env)
    assert other.scaler == base.scaler
    assert other.sigma == base.sigma
    assert other.moments == base.moments


def test_unusable_spans_are_refused() -> None:
    market = small_market()
    with pytest.raises(DataError, match="usable rows"):
        PortfolioBatch(market, Span(100, 400), 1, market.env)


# ------------------------------------------------------------------ the embedded market


def backtest(rule: str, monthly: bool = False) -> float:
    """Net Sharpe of us20 from 2003-01-01 to the end, default fee, daily decisions."""
    market = us20_market()
    dates = market.prices.dates
    span = Span(int(np.searchsorted(dates, np.datetime64("2003-01-01"))), len(dates))
    rate = None if rule == "untrained" else 1.0
    batch = batch_of(market, EnvSettings(trade_rate=rate), span=span)
    assert str(dates[span.start]) == "2003-01-02"
    assert str(dates[-1]) == "2022-12-28"
    equal = np.append(np.full(20, 0.05), 0.0)[None]
    zero = np.zeros((1, market.layout.action_size))
    month = ""
    for _ in range(batch.episode_length):
        now = str(dates[batch.row[0]])[:7]
        if rule == "untrained":
            batch.step(zero)
        else:
            batch.step_to(equal, np.array([monthly and now == month]))
        month = now
    return batch.episode(0)["sharpe"]


def test_untrained_policy_against_equal_weight() -> None:
    assert backtest("untrained") == pytest.approx(0.94, abs=0.04)
    assert backtest("equal weight") == pytest.approx(0.82, abs=0.04)
    assert backtest("equal weight", monthly=True) == pytest.approx(0.82, abs=0.04)


def test_whole_span_is_the_three_splits() -> None:
    market = small_market()
    env = PortfolioEnv(market, split="all", evaluation=True)
    assert env.batch.span == whole_span(market)
