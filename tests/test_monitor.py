"""The monitor: hand-computed figures, windows, events, patience, and going on from its state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markets import small_market

from finflow_sb3.checks import CHECKS
from finflow_sb3.config import MonitorSettings
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import CheckpointError
from finflow_sb3.training.monitor import Event, Monitor, due_action
from finflow_sb3.training.watched import RewardWindow, effective_number, policy_width

B, WIDTH, ACTION_SIZE = 3, 4, 6
EVEN = np.full((B, WIDTH), 1.0 / WIDTH)
NONE = np.zeros(B, dtype=bool)
TRADED = np.full(B, 0.01)


def monitor_of(n_envs: int = B, **changes: Any) -> Monitor:
    defaults: dict[str, Any] = {"cooldown": 0, "reward_window": 10}
    return Monitor(MonitorSettings(**{**defaults, **changes}), n_envs, ACTION_SIZE)


def stepped(monitor: Monitor, **changes: Any) -> Monitor:
    """The monitor after a step in which nothing is the matter but `changes`."""
    arrays = {"rewards": np.zeros(B), "weights": EVEN, "turnover": TRADED, "dones": NONE}
    monitor.step(**{**arrays, **changes})
    return monitor


def checks_of(events: list[Event]) -> list[str]:
    return [event.check for event in events]


# ------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("shares", "number"),
    [
        ([0.2] * 5, 5.0),
        ([1.0, 0.0, 0.0], 1.0),
        ([0.5, 0.5, 0.0], 2.0),
        ([2.0, 2.0], 2.0),
        ([0.9, 0.1], math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))),
        ([math.nan, 0.5], math.nan),
        ([0.0, 0.0], math.nan),
    ],
)
def test_effective_number(shares: list[float], number: float) -> None:
    assert effective_number(shares) == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize(
    ("entropy", "width"),
    [
        (6 * math.log(2.0), 1.0),  # uniform on (−1, 1)^6
        (6 * math.log(0.2), 0.1),
        (-6 * math.log(50.0), 0.01),
        (math.nan, math.nan),
        (-math.inf, 0.0),
    ],
)
def test_policy_width(entropy: float, width: float) -> None:
    assert policy_width(entropy, 6) == pytest.approx(width, nan_ok=True)
    assert policy_width(math.inf, 6) > 1e300


@pytest.mark.parametrize(
    ("figures", "check", "value"),
    [
        ({"q_mean": -131.0}, "q_value", -131.0),
        ({"actor_loss": -60.0}, "actor_loss", -60.0),
        ({"critic_loss": 31.2}, "critic_loss", 31.2),
        ({"entropy": -6 * math.log(200.0)}, "entropy", 0.0025),
        ({"gate_0": 1.0, "gate_1": 0.0, "gate_2": 0.0}, "effective_experts", 1.0),
        ({"grad_norm_actor": 501.0}, "grad_norm_actor", 501.0),
        ({"grad_norm_critic": 1e6}, "grad_norm_critic", 1e6),
    ],
)
def test_each_figure_of_an_update(figures: dict[str, float], check: str, value: float) -> None:
    monitor = monitor_of()
    monitor.update(figures)
    (event,) = monitor.verdict(7)
    assert (event.step, event.check, event.action) == (7, check, "warn")
    assert event.value == pytest.approx(value)
    assert event.limit == CHECKS[check].limit
    assert monitor.summary()[check] == {
        "level": "warning",
        "last": event.value,
        "worst": event.value,
        "warnings": 1,
        "actions": {"warn": 1},
    }


def test_messages() -> None:
    monitor = monitor_of()
    monitor.update({"critic_loss": 31.2, "q_mean": -131.0, "entropy": -6 * math.log(125.0)})
    assert [event.message for event in monitor.verdict(1)] == [
        "q_value -131 is over its limit of 100 in magnitude",
        "entropy 0.004 is under its limit of 0.01",
        "critic_loss 31.2 is over its limit of 20",
    ]


def test_effective_assets_is_a_mean_over_portfolios_that_go_on() -> None:
    alone = np.eye(WIDTH)[[0, 1, 3]]
    assert stepped(monitor_of(), weights=EVEN).figures()["effective_assets"] == pytest.approx(4)
    assert checks_of(stepped(monitor_of(), weights=alone).verdict(1)) == ["effective_assets"]
    mixed = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    ended = np.array([False, False, True])
    monitor = stepped(monitor_of(), weights=mixed, dones=ended)
    assert monitor.figures()["effective_assets"] == pytest.approx(1.5)
    assert monitor.verdict(1) == [], "exactly at the limit"


def test_days_without_a_trade() -> None:
    monitor = monitor_of(normal_limits={"no_trade_days": 1}, warning_limits={"no_trade_days": 2})
    one_trades = np.array([0.0, 0.0, 0.3])
    ended = np.array([True, False, False])
    means = []
    for turnover, dones in [
        (np.zeros(B), NONE),
        (one_trades, NONE),
        (np.array([0.3, 0.0, 1e-17]), ended),  # the first has begun anew: what it did is unknown
        (np.zeros(B), ended),
        (TRADED, NONE),
    ]:
        stepped(monitor, turnover=turnover, dones=dones)
        means.append(monitor.figures()["no_trade_days"])
    assert means == pytest.approx([1.0, 4 / 3, 2.0, 8 / 3, 0.0])
    (event,) = monitor.verdict(5)
    assert (event.check, event.value) == ("no_trade_days", pytest.approx(8 / 3))


def test_a_step_in_which_all_end_says_nothing_of_weights() -> None:
    monitor = stepped(monitor_of(), weights=np.eye(WIDTH)[:B], dones=~NONE)
    assert set(monitor.figures()) == {"not_finite"}


# ------------------------------------------------------------------- rewards


def test_an_outlier_is_measured_by_those_before_it() -> None:
    """Window 1, −1, 1, −1, ...: mean 0, deviation 1."""
    window = RewardWindow(10)
    window.add(np.tile([1.0, -1.0], 4))
    assert window.furthest(np.array([50.0])) is None, "not full"
    window.add(np.array([1.0, -1.0]))
    assert window.furthest(np.array([3.0, -21.0, 20.0])) == pytest.approx(21.0)
    window.add(np.array([21.0]))
    values = np.array([-1.0, *np.tile([1.0, -1.0], 4), 21.0])
    expected = (100.0 - values.mean()) / values.std()
    assert window.furthest(np.array([100.0])) == pytest.approx(expected)
    assert window.furthest(np.array([])) is None


def test_rewards_that_are_all_alike_have_no_outlier_by_rounding() -> None:
    window = RewardWindow(10)
    window.add(np.full(10, 0.1))
    assert window.furthest(np.array([0.1 + 1e-9])) < 0.01
    assert window.furthest(np.array([0.2])) > 1000.0


@given(st.lists(st.integers(1, 25), max_size=12), st.integers(1, 12))
def test_the_ring_holds_the_last(sizes: list[int], size: int) -> None:
    window, every = RewardWindow(size), np.arange(float(sum(sizes)))
    for part in np.split(every, np.cumsum(sizes)[:-1]) if sizes else []:
        window.add(part)
    assert sorted(window.ring[: window.count]) == sorted(every[-size:])
    smaller = RewardWindow(max(1, size - 2))
    smaller.restore(json.loads(json.dumps(window.state())))
    assert sorted(smaller.ring[: smaller.count]) == sorted(every[-len(smaller.ring) :])
    larger = RewardWindow(size + 3)
    larger.restore(json.loads(json.dumps(window.state())))
    assert sorted(larger.ring[: larger.count]) == sorted(every[-size:])


def test_the_monitor_leaves_what_is_not_finite_out_of_its_window() -> None:
    monitor = monitor_of()
    for _ in range(3):
        stepped(monitor, rewards=np.array([1.0, math.nan, -1.0]))
    assert monitor.rewards.count == 6
    stepped(monitor, rewards=np.array([1.0, -1.0, 1.0]))
    stepped(monitor, rewards=np.array([-1.0, math.inf, 15.0]))
    assert monitor.rewards.count == 11
    assert "reward_outlier" not in monitor.figures(), "the window was one short of full"
    (event,) = monitor.verdict(1)
    assert (event.check, event.message, event.action) == (
        "not_finite",
        "reward is not finite",
        "rollback",
    )
    stepped(monitor, rewards=np.array([0.0, 0.0, 500.0]))
    window = np.array([*[1.0, -1.0] * 3, 1.0, -1.0, 1.0, -1.0, 15.0])[-10:]
    expected = (500.0 - window.mean()) / window.std()
    assert monitor.figures()["reward_outlier"] == pytest.approx(expected)


# ------------------------------------------------------------------- a real environment


@pytest.mark.parametrize("limit", [0.0, None])
def test_what_an_environment_does_is_what_is_seen(limit: float | None) -> None:
    """The batch's own arrays serve: where episodes have ended they are the next one's already."""
    env = PortfolioVecEnv(small_market(), B, seed=0, episode_length=7, max_turnover=limit)
    monitor, rng = monitor_of(), np.random.default_rng(0)
    env.reset()
    for step in range(1, 31):
        actions = rng.uniform(-1.0, 1.0, (B, env.action_space.shape[0]))
        _, rewards, dones, infos = env.step(actions)
        monitor.step(rewards, env.batch.weights, env.batch.turnover, dones)
        if not dones.any():
            held = np.array([info["weights"] for info in infos])
            expected = np.mean([1.0 / sum(w**2) for w in held])
            assert monitor.figures()["effective_assets"] == pytest.approx(expected)
        days = step - step // 7 if limit == 0.0 else 0
        assert monitor.figures()["no_trade_days"] == days
    assert monitor.rewards.count == 30 * B


# ------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("wild", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_one_event_and_survives_json(wild: float) -> None:
    monitor = monitor_of()
    monitor.update({"critic_loss": wild, "ent_coef": wild, "q_mean": 3.0, "gate_0": 1.0})
    stepped(monitor, rewards=np.array([wild, 0.0, 0.0]))
    text = json.dumps(monitor.state(), allow_nan=False)
    back = monitor_of()
    back.restore(json.loads(text))
    assert json.dumps(back.state(), allow_nan=False) == text
    for one in (monitor, back):
        assert not one.healthy, "before the boundary"
        events = [event for event in one.verdict(1) if event.check != "effective_experts"]
        assert [event.message for event in events] == [
            "critic_loss, ent_coef, reward are not finite"
        ]
        assert (events[0].value, events[0].action) == (3.0, "rollback")
        assert not one.healthy
        assert one.figures()["critic_loss"] == pytest.approx(wild, nan_ok=True)
        assert one.summary()["critic_loss"]["level"] == "warning"
    monitor.update({"critic_loss": 1.0, "gate_0": 0.5, "gate_1": 0.5, "gate_2": 0.5})
    assert monitor.verdict(2) == [] and monitor.healthy


def test_weights_and_turnover_that_are_not_finite() -> None:
    weights = EVEN.copy()
    weights[1, 2] = math.nan
    monitor = stepped(monitor_of(), weights=weights, turnover=np.array([0.1, math.nan, 0.1]))
    assert [e.message for e in monitor.verdict(1)] == ["weights, turnover are not finite"]


# ------------------------------------------------------------------- events


def test_a_figure_is_judged_by_the_worst_since_the_last_boundary() -> None:
    monitor = monitor_of()
    for loss in (1.0, 31.0, 2.0):
        monitor.update({"critic_loss": loss})
    assert monitor.figures()["critic_loss"] == 2.0
    assert [event.value for event in monitor.verdict(1)] == [31.0]
    monitor.update({"critic_loss": 2.0})
    assert monitor.verdict(2) == [] and monitor.healthy
    assert monitor.summary()["critic_loss"]["worst"] == 31.0


def test_nothing_new_is_nothing_to_report() -> None:
    monitor = monitor_of()
    monitor.validation(-0.6)
    assert checks_of(monitor.verdict(1)) == ["validation_sharpe"]
    assert monitor.verdict(2) == []
    assert not monitor.healthy, "until there is a better one"
    monitor.validation(-0.5)
    assert monitor.verdict(3) == [] and monitor.healthy


def test_a_sharpe_ratio_that_is_not_defined_is_no_overflow() -> None:
    """All in cash without interest: the returns are constant."""
    monitor = monitor_of(on_warning={"validation_sharpe": "stop"})
    monitor.validation(math.nan)
    (event,) = monitor.verdict(1)
    assert json.loads(json.dumps(event.as_dict(), allow_nan=False)) == {
        "step": 1,
        "check": "validation_sharpe",
        "value": None,
        "limit": -0.5,
        "message": "validation_sharpe is not defined: every day returned the same",
        "action": "stop",
    }
    assert not monitor.healthy


def test_cooldown_is_between_events_of_one_check() -> None:
    monitor = monitor_of(cooldown=100)
    told = []
    for step in range(0, 260, 10):
        monitor.update({"critic_loss": 30.0, "actor_loss": 60.0 if step >= 50 else 0.0})
        told += [(event.step, event.check) for event in monitor.verdict(step)]
    assert told == [
        (0, "critic_loss"),
        (50, "actor_loss"),
        (100, "critic_loss"),
        (150, "actor_loss"),
        (200, "critic_loss"),
        (250, "actor_loss"),
    ]


def test_actions_are_the_settings_and_the_strongest_is_due() -> None:
    monitor = monitor_of(
        on_warning={"q_value": "off", "critic_loss": "cut_lr", "actor_loss": "rollback"}
    )
    monitor.update({"q_mean": 1e9, "critic_loss": 30.0, "actor_loss": 60.0, "entropy": -100.0})
    events = monitor.verdict(1)
    assert {event.check: event.action for event in events} == {
        "entropy": "warn",
        "actor_loss": "rollback",
        "critic_loss": "cut_lr",
    }
    assert due_action(events) == "rollback" and due_action([]) is None
    assert due_action([events[0], events[2]]) == "cut_lr"
    assert "q_value" not in monitor.figures()
    assert all(json.loads(json.dumps(e.as_dict()))["step"] == 1 for e in events)


def test_after_so_many_rollbacks_the_run_stops() -> None:
    monitor = monitor_of(max_rollbacks=2, cooldown=5000)
    monitor.update({"critic_loss": 1.0})
    good = json.loads(json.dumps(monitor.state()))
    actions = []
    for step in (100, 90, 100):
        monitor.update({"critic_loss": math.nan})
        (event,) = monitor.verdict(step)
        actions.append(event.action)
        if event.action == "rollback":
            monitor.rolled_back(good)
            assert monitor.healthy and monitor.figures()["critic_loss"] == 1.0
    assert actions == ["rollback", "rollback", "stop"]
    assert event.message == "critic_loss is not finite; after 2 rollbacks the run stops"
    assert monitor.summary()["not_finite"]["actions"] == {"rollback": 2, "stop": 1}


def test_what_comes_back_after_a_rollback_is_seen_at_once() -> None:
    monitor = monitor_of(on_warning={"critic_loss": "rollback"}, cooldown=100)
    good = monitor.state()
    monitor.update({"critic_loss": 30.0})
    assert len(monitor.verdict(1000)) == 1
    monitor.rolled_back(good)
    seen = []
    for step in (450, 549, 550):
        monitor.update({"critic_loss": 25.0})
        seen.append(len(monitor.verdict(step)))
    assert seen == [1, 0, 1] and monitor.rollbacks == 1
    assert monitor.summary()["critic_loss"]["worst"] == 30.0


# ------------------------------------------------------------------- early stop


@pytest.mark.parametrize(
    ("changes", "sharpes", "stops"),
    [
        ({"patience": 2}, [0.5, 0.6, 0.6, 0.5], [False, False, False, True]),
        ({"patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.7], [False] * 5),
        ({"patience": 1}, [math.nan, 0.1, math.nan], [True, False, True]),
        ({}, [0.5, 0.4, 0.3, 0.2], [False] * 4),
        ({"patience": 2, "min_improvement": 0.1}, [0.5, 0.55, 0.59], [False, False, True]),
        ({"patience": 2, "min_improvement": 0.1}, [0.5, 0.55, 0.61], [False, False, False]),
        ({"patience": 1, "enabled": False}, [0.5, 0.4], [False, False]),
    ],
)
def test_patience(changes: dict[str, Any], sharpes: list[float], stops: list[bool]) -> None:
    monitor = monitor_of(**changes)
    found = []
    for step, sharpe in enumerate(sharpes):
        monitor.validation(sharpe)
        found.append(any(e.check == "patience" for e in monitor.verdict(2 * step)))
        assert all(e.check != "patience" for e in monitor.verdict(2 * step + 1)), "told twice"
    assert found == stops


def test_an_early_stop_says_why() -> None:
    monitor = monitor_of(patience=2)
    for sharpe in (0.8123, 0.7, 0.6):
        monitor.validation(sharpe)
    (event,) = monitor.verdict(9)
    assert event.as_dict() == {
        "step": 9,
        "check": "patience",
        "value": 2.0,
        "limit": 2.0,
        "message": "validation Sharpe was not better than 0.8123 in 2 validations",
        "action": "stop",
    }


# ------------------------------------------------------------------- off, and state


def test_disabled_sees_nothing() -> None:
    monitor = monitor_of(enabled=False, patience=1)
    monitor.update({"critic_loss": math.nan})
    stepped(monitor, rewards=np.full(B, math.nan))
    monitor.validation(-9.0)
    assert monitor.verdict(1) == [] and monitor.healthy
    assert monitor.figures() == {} and monitor.summary() == {}
    assert monitor.rewards.count == 0


def test_a_state_of_other_portfolios_is_refused() -> None:
    with pytest.raises(CheckpointError, match="the checkpoint has 2 portfolios and the run 3"):
        monitor_of().restore(monitor_of(n_envs=2).state())


def test_a_check_that_was_off_starts_afresh() -> None:
    before = monitor_of(on_warning={"critic_loss": "off"})
    before.update({"critic_loss": 30.0, "q_mean": 200.0})
    before.verdict(1)
    after = monitor_of(on_warning={"q_value": "off"})
    after.restore(json.loads(json.dumps(before.state())))
    assert after.summary()["critic_loss"]["last"] is None
    assert "q_value" not in after.summary()


numbers = st.one_of(st.floats(-150, 150), st.sampled_from([math.nan, math.inf, 0.0]))


def happen(monitor: Monitor, step: int, kind: str, seed: int, value: float) -> list[Event]:
    """Something happens to a monitor; its events, if that is a boundary."""
    rng = np.random.default_rng(seed)
    if kind == "update":
        gates = dict(zip(("gate_0", "gate_1"), rng.dirichlet([0.3, 0.3]).tolist(), strict=True))
        losses = {"critic_loss": abs(value), "q_mean": value, "entropy": value}
        monitor.update({**losses, **gates})
    elif kind == "step":
        rewards = rng.standard_t(2, B) + (value if seed % 3 == 0 else 0.0)
        turnover = np.where(rng.random(B) < 0.7, 0.0, 0.1)
        weights = rng.dirichlet([0.2] * WIDTH, B)
        monitor.step(rewards.astype(np.float32), weights, turnover, rng.random(B) < 0.2)
    elif kind == "validation":
        monitor.validation(value / 100.0)
    return monitor.verdict(step) if kind == "boundary" else []


happenings = st.tuples(
    st.sampled_from(["update", "step", "step", "validation", "boundary"]),
    st.integers(0, 2**16),
    numbers,
)


@given(st.lists(happenings, max_size=40), st.integers(0, 40))
def test_going_on_from_a_state_is_never_having_stopped(
    what: list[tuple[str, int, float]], cut: int
) -> None:
    changes: dict[str, Any] = {
        "cooldown": 3,
        "patience": 3,
        "warning_limits": {"reward_outlier": 2.0, "no_trade_days": 2.0},
        "normal_limits": {"reward_outlier": 1.0, "no_trade_days": 1.0},
    }
    whole, part = monitor_of(**changes), monitor_of(**changes)
    for step, item in enumerate(what):
        if step == cut:
            text = json.dumps(part.state(), allow_nan=False)
            part = monitor_of(**changes)
            part.restore(json.loads(text))
        found = [happen(monitor, step, *item) for monitor in (whole, part)]
        assert repr(found[0]) == repr(found[1])
        assert whole.healthy == part.healthy
    assert whole.state() == part.state()
    assert repr(whole.summary()) == repr(part.summary())
