"""Minima, caps by asset and groups: by hand, against their properties, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
from checkers import check_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from markets import NAMES, batch_of, random_actions, small_market

from finflow_sb3.config import EnvSettings, Settings
from finflow_sb3.config_files import resolve
from finflow_sb3.config_trading import FrozenMapping
from finflow_sb3.envs.constraints import Limits, constrain
from finflow_sb3.envs.portfolio import PortfolioEnv
from finflow_sb3.errors import ConfigError

EXAMPLES = settings(max_examples=80, deadline=None)
THREE = ("A", "B", "C")


def limits_of(assets: tuple[str, ...] = THREE, **kwargs: Any) -> Limits:
    return Limits.of(EnvSettings(**kwargs), assets)


@pytest.mark.parametrize(
    ("kwargs", "target", "expected"),
    [
        # Held is A 0.3, B 0.3, C 0.2, cash 0.2. A cap by asset binds purchases of that one.
        ({"max_position": {"A": 0.35}}, [0.5, 0.4, 0.1, 0.0], [0.35, 0.4, 0.1, 0.15]),
        ({"max_position": {"A": 0.1}}, [0.4, 0.1, 0.1, 0.4], [0.3, 0.1, 0.1, 0.5]),
        # Minima are bought from cash...
        ({"min_position": 0.1}, [0.0, 0.5, 0.2, 0.3], [0.1, 0.5, 0.2, 0.2]),
        # ...and where it does not suffice, from what the others have above theirs: 0.4 to 0.4.
        ({"min_position": 0.1}, [0.0, 0.5, 0.5, 0.0], [0.1, 0.45, 0.45, 0.0]),
        ({"min_position": {"C": 0.3}}, [0.6, 0.3, 0.0, 0.1], [1.4 / 3, 0.7 / 3, 0.3, 0.0]),
        # A group over its most: purchases (A +0.2, B +0.1) are scaled back by a third each.
        (
            {"groups": {"ab": ["A", "B"]}, "group_limits": {"ab": [0.0, 0.8]}},
            [0.5, 0.4, 0.1, 0.0],
            [0.3 + 0.2 * 2 / 3, 0.3 + 0.1 * 2 / 3, 0.1, 0.1],
        ),
        # It holds more than its most: it may stay, and is not bought further.
        (
            {"groups": {"ab": ["A", "B"]}, "group_limits": {"ab": [0.0, 0.4]}},
            [0.4, 0.3, 0.2, 0.1],
            [0.3, 0.3, 0.2, 0.2],
        ),
        # A group under its least is filled in proportion to the room under its ceilings.
        (
            {
                "groups": {"ab": ["A", "B"]},
                "group_limits": {"ab": [0.5, 1.0]},
                "max_position": {"A": 0.4},
            },
            [0.2, 0.2, 0.1, 0.5],
            [0.2 + 0.2 * 0.1, 0.2 + 0.8 * 0.1, 0.1, 0.4],
        ),
        # A floor of A leaves no room in its group: B is sold for it.
        (
            {
                "min_position": {"A": 0.5},
                "groups": {"ab": ["A", "B"]},
                "group_limits": {"ab": [0.0, 0.6]},
            },
            [0.3, 0.3, 0.2, 0.2],
            [0.5, 0.1, 0.2, 0.2],
        ),
        # The turnover limit wins over a minimum, which is met half of the way.
        (
            {"min_position": {"C": 0.3}, "max_turnover": 0.05},
            [0.3, 0.3, 0.2, 0.2],
            [0.3, 0.3, 0.25, 0.15],
        ),
    ],
)
def test_limits_by_hand(kwargs: dict[str, Any], target: list[float], expected: list[float]) -> None:
    held = np.array([[0.3, 0.3, 0.2, 0.2]])
    done = constrain(held, np.array([target]), limits_of(**kwargs))
    np.testing.assert_allclose(done[0], expected, atol=1e-14)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_position": 0.4}, "min_position: .*add up to 1.2, over 1"),
        ({"min_position": {"A": 0.3}, "max_position": {"A": 0.2}}, "0.3 of A is over its max"),
        ({"min_position": 0.3, "max_position": 0.2}, "0.3 is over max_position 0.2; lower it"),
        ({"min_position": {"D": 0.3}}, "min_position: 'D' is no asset; known: A, B, C"),
        ({"max_position": {"D": 0.3}}, "max_position: 'D' is no asset"),
        ({"groups": {"g": ["A"]}}, "groups: 'g' has no entry in group_limits; add one"),
        ({"group_limits": {"g": [0, 1]}}, "group_limits: 'g' is no group; give groups"),
        ({"groups": {"g": ["D"]}, "group_limits": {"g": [0, 1]}}, "groups: 'D' is no asset"),
        ({"groups": {"g": ["A"], "h": ["A"]}}, "groups.h: 'A' stands in 'g' already"),
        ({"groups": {"g": "AB"}}, "groups.g: 'AB' is no list of assets"),
        ({"group_limits": {"g": [0.5, 0.2]}}, r"group_limits.g: 0.5 is over 0.2"),
        ({"group_limits": {"g": [0.5, 2]}}, r"group_limits.g: 2 is no number from 0.0 to 1.0"),
        (
            {"min_position": 0.2, "groups": {"g": ["A", "B"]}, "group_limits": {"g": [0, 0.3]}},
            "at most 0.3 of g, and the min_position of its assets add up to 0.4",
        ),
        (
            {"max_position": 0.2, "groups": {"g": ["A", "B"]}, "group_limits": {"g": [0.5, 1]}},
            "at least 0.5 of g, and the max_position of its assets add up to 0.4",
        ),
        (
            {"min_position": {"C": 0.5}, "groups": {"g": ["A"]}, "group_limits": {"g": [0.6, 1]}},
            "add up to 1.1, over 1",
        ),
    ],
)
def test_what_cannot_be_met_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        limits_of(**kwargs)
    assert "\n" not in str(caught.value)


@st.composite
def limited(draw: st.DrawFn) -> tuple[EnvSettings, int]:
    """Limits that can be met, and a seed."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n = 6
    floors = rng.dirichlet(np.ones(n)) * draw(st.floats(0.0, 0.6))
    caps = floors + rng.uniform(0.0, 0.5, n)
    caps[rng.random(n) < 0.3] = 1.0
    groups, bounds = {}, {}
    spare = 1.0 - floors.sum()
    for name, part in (("g", [0, 3]), ("h", [1, 2, 5])):
        low, high = floors[part].sum(), min(1.0, caps[part].sum())
        least = low + rng.uniform(0.0, 0.5) * min(high - low, spare)
        spare -= least - low
        groups[name] = [NAMES[i] for i in part]
        bounds[name] = [float(least), float(min(1.0, least + rng.uniform(0.0, 0.4)))]
    env = EnvSettings(
        min_position={NAMES[i]: float(floors[i]) for i in range(n)},
        max_position={NAMES[i]: float(min(caps[i], 1.0)) for i in range(n)},
        groups=groups,
        group_limits=bounds,
        no_trade_band=draw(st.sampled_from([0.0, 0.03])),
        max_turnover=draw(st.none() | st.floats(0.0, 1.0)),
    )
    return env, int(rng.integers(10**6))


@EXAMPLES
@given(case=limited())
def test_budget_caps_and_turnover_always_hold(case: tuple[EnvSettings, int]) -> None:
    env, seed = case
    limits = Limits.of(env, NAMES[:6])
    rng = np.random.default_rng(seed)
    held = rng.dirichlet(np.full(7, 0.5), size=32)
    target = rng.dirichlet(np.full(7, 0.5), size=32)
    done = constrain(held, target, limits)
    check_budget(done)
    tiny = 1e-12
    risky, before = done[:, :-1], held[:, :-1]
    caps = np.maximum(limits.max_position, before)
    assert np.all(risky <= np.maximum(caps, limits.floors) + tiny)
    for block in limits.blocks:
        total, was = risky[:, block.columns].sum(axis=1), before[:, block.columns].sum(axis=1)
        assert np.all(total <= np.maximum(block.most, was) + tiny)
        if limits.max_turnover is None:
            assert np.all(total >= block.least - tiny)
    if limits.max_turnover is None:
        assert np.all(risky >= limits.floors - tiny)
    else:
        assert np.all(np.abs(risky - before).sum(axis=1) <= limits.max_turnover + tiny)
    # From inside, inside, also as far as a limit on turnover lets.
    free = dataclasses.replace(limits, no_trade_band=0.0, max_turnover=None)
    cash = np.eye(7)[[6]].repeat(32, 0)
    start, goal = (constrain(cash, weights, free) for weights in (held, target))
    inside = constrain(start, goal, limits)[:, :-1]
    assert np.all(inside >= limits.floors - tiny)
    assert np.all(inside <= np.maximum(limits.max_position, limits.floors) + tiny)
    for block in limits.blocks:
        total = inside[:, block.columns].sum(axis=1)
        assert np.all((total >= block.least - tiny) & (total <= block.most + tiny))


@EXAMPLES
@given(case=limited())
def test_a_feasible_target_from_a_feasible_start_is_reached(case: tuple[EnvSettings, int]) -> None:
    """Without band and turnover limit nothing that keeps to the limits is changed."""
    env, seed = case
    limits = Limits.of(dataclasses.replace(env, no_trade_band=0.0, max_turnover=None), NAMES[:6])
    rng = np.random.default_rng(seed)
    cash = np.eye(7)[[6]].repeat(32, 0)
    held = constrain(cash, rng.dirichlet(np.ones(7), 32), limits)
    target = constrain(cash, rng.dirichlet(np.ones(7), 32), limits)
    np.testing.assert_allclose(constrain(held, target, limits), target, atol=1e-12)


def test_rows_do_not_depend_on_the_batch() -> None:
    env = EnvSettings(
        min_position=0.02,
        max_position={NAMES[1]: 0.3},
        groups={"g": list(NAMES[:5]), "h": list(NAMES[7:12])},
        group_limits={"g": [0.1, 0.3], "h": [0.3, 0.4]},
        max_turnover=0.4,
    )
    limits = Limits.of(env, NAMES[:20])
    rng = np.random.default_rng(0)
    held, target = rng.dirichlet(np.ones(21), 1000), rng.dirichlet(np.full(21, 0.2), 1000)
    many = constrain(held, target, limits)
    for i in range(0, 1000, 7):
        alone = constrain(held[i : i + 1], target[i : i + 1], limits)
        np.testing.assert_array_equal(many[i], alone[0])


def test_limits_hold_in_the_environment() -> None:
    market = small_market()
    names = market.prices.assets
    env = EnvSettings(
        min_position={names[0]: 0.1},
        groups={"tail": [names[3], names[4]]},
        group_limits={"tail": [0.3, 0.5]},
        trade_rate=1.0,
    )
    batch = batch_of(market, env, n_envs=6, evaluation=False)
    rng = np.random.default_rng(0)
    for _ in range(60):
        before = batch.held[:, 3:5].sum(axis=1)
        batch.step(random_actions(market, 6, rng))
        assert np.all(batch.weights[:, 0] >= 0.1 - 1e-12)
        tail = batch.weights[:, 3:5].sum(axis=1)
        assert np.all(tail >= 0.3 - 1e-12)
        assert np.all(tail <= np.maximum(0.5, before) + 1e-12)


# ------------------------------------------------------------------ as settings

MAPPINGS: dict[str, Any] = {
    "fees": {"AAPL": 0.0005},
    "min_position": {"AAPL": 0.02},
    "max_position": {"AAPL": 0.3, "JPM": 0.1},
    "groups": {"banks": ["BAC", "JPM"]},
    "group_limits": {"banks": [0.0, 0.2]},
}


def test_settings_with_mappings_are_a_key() -> None:
    first, second = EnvSettings(**MAPPINGS), EnvSettings(**MAPPINGS)
    assert first == second and hash(first) == hash(second)
    assert len({first, second, EnvSettings()}) == 2
    copied = copy.deepcopy(first)  # by the same means as pickle
    assert copied == first and hash(copied) == hash(first)
    again = EnvSettings(**dataclasses.asdict(first))
    assert again == first and hash(again) == hash(first)
    changed = dataclasses.replace(first, fees={"AAPL": 0.0006})
    assert changed != first and hash(changed) != hash(first)


@pytest.mark.parametrize("change", ["m['a'] = 1", "del m['b']", "m.update(a=1)", "m.clear()"])
def test_a_mapping_of_settings_stays(change: str) -> None:
    mapping = FrozenMapping({"b": 2})
    with pytest.raises(TypeError, match="frozen"):
        exec(change, {"m": mapping})
    assert mapping == {"b": 2}


def test_mappings_come_by_keyword_flag_and_file(tmp_path: Any) -> None:
    env = PortfolioEnv(small_market(), min_position={NAMES[0]: 0.1}, fee=0.001)
    assert env.batch.limits.floors is not None
    flags = [f"{name}:{value}" for name, value in MAPPINGS.items()]
    by_flag = resolve(algo="cqsac", params=flags).env_kwargs
    assert by_flag == EnvSettings(**MAPPINGS)
    from finflow_sb3.config_export import own_yaml

    path = tmp_path / "settings.yml"
    path.write_text(own_yaml(resolve(algo="cqsac", params=flags), "cqsac"))
    assert resolve(algo="cqsac", files=[path]).env_kwargs == by_flag


def test_contradictions_are_refused_with_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"env_kwargs.slippage: linear needs .* set capital"):
        Settings(env_kwargs=EnvSettings(slippage="linear"))
