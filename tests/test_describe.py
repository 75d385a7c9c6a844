"""The figures of a dataset: by hand on a tiny one, and beside the environment that made one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from markets import NAMES, random_prices, small_market

from finflow_sb3.config import CollectSettings, EnvSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import Scaler
from finflow_sb3.errors import ArtefactError, DataError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.offline import collect as module
from finflow_sb3.offline.coverage import Dimension
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_file import write_dataset
from finflow_sb3.offline.describe import Description, describe, describe_dataset
from finflow_sb3.offline.tallies import Histogram, Spread
from finflow_sb3.offline.trades import environment_of, trades

REWARDS = (1.0, 3.0, -1.0, 0.0, 4.0)
DISTANCES = (0.1, 0.3, 0.2, 0.4, 0.9)
HELD = [0.5, 0.3, 0.2]


def tiny(**changes: Any) -> OfflineDataset:
    """Two assets, base `none` traded at once; rule x for two steps, rule z for three to ruin."""
    layout = ObservationLayout(
        assets=("A", "B"), anchors=(), scalars=("drawdown",), action_base="none", groups=(),
        market=("m",), record=(),
    )  # fmt: skip
    # Targets ∝ exp(2a): (1, 1, 1)/3 three times, then (e, e, 1) and (1, e, 1).
    action = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.3, 0.3], [0.5, 0.5, 0.0], [0.0, 0.5, 0.0]]
    env = EnvSettings(action_base="none", softmax_scale=2.0, fee=0.0)
    data = OfflineDataset(
        layout=layout,
        scaler=Scaler({}, {}),
        market_rows=np.zeros((9, 1), dtype=np.float32),
        states=np.tile(np.array([*HELD, 0.0], dtype=np.float32), (7, 1)),
        row=np.array([2, 3, 5, 6, 7], dtype=np.int32),
        action=np.array(action, dtype=np.float32),
        reward=np.array(REWARDS, dtype=np.float32),
        distance=np.array(DISTANCES, dtype=np.float32),
        episode=np.array([0, 0, 1, 1, 1], dtype=np.int32),
        terminal=np.array([False, True]),
        timeout=np.array([True, False]),
        behaviour=np.array([0, 2], dtype=np.int32),
        behaviours=("x", "y", "z"),
        settings={"env": dataclasses.asdict(env)},
    )
    return dataclasses.replace(data, **changes)


def turnover_to(weights: list[float]) -> float:
    """Without a fee it is Σ |w − w⁻| over the risky assets."""
    total = sum(weights)
    return sum(abs(w / total - h) for w, h in zip(weights[:2], HELD[:2], strict=True))


def gap_to(weights: list[float]) -> float:
    total = sum(weights)
    return 0.5 * sum(abs(w / total - h) for w, h in zip(weights, HELD, strict=True))


def test_counts_and_rows() -> None:
    found = describe_dataset(tiny())
    assert (found.transitions, found.episodes) == (5, 2)
    assert (found.terminals, found.timeouts) == (1, 1)
    assert (found.first_row, found.last_row) == (2, 8)
    assert (found.first_date, found.last_date, found.path, found.size) == (None,) * 4
    assert found.assets == ("A", "B")
    assert found.reward == "net log return above equal weight, in daily deviations of the market"


def test_behaviours_by_hand() -> None:
    x, z = describe_dataset(tiny()).behaviours
    assert (x.name, x.episodes, x.transitions) == ("x", 1, 2)
    assert (z.name, z.episodes, z.transitions) == ("z", 1, 3)
    assert (x.reward, z.reward) == (2.0, 1.0)
    assert x.episode_return == Spread(*[4.0] * 8)
    assert z.episode_return == Spread(*[3.0] * 8)
    assert x.annual_reward.mean == pytest.approx(4.0 * 252 / 2)
    assert z.annual_reward.mean == pytest.approx(3.0 * 252 / 3)
    assert (x.distance.minimum, x.distance.maximum) == pytest.approx((0.1, 0.3))
    assert z.distance.mean == pytest.approx(0.5)
    assert z.distance.median == pytest.approx(0.4, abs=1e-4)


def test_turnover_by_hand() -> None:
    x, z = describe_dataset(tiny()).behaviours
    assert x.turnover is not None and z.turnover is not None and z.gap is not None
    even, e = turnover_to([1.0, 1.0, 1.0]), math.e
    assert x.turnover.mean == pytest.approx(even, abs=1e-6)
    expected = [even, turnover_to([e, e, 1.0]), turnover_to([1.0, e, 1.0])]
    assert z.turnover.mean == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert z.turnover.maximum == pytest.approx(max(expected), abs=1e-6)
    assert z.gap.maximum == pytest.approx(0.0, abs=1e-6)
    # What is traded at once is the order: from the rule it is away as far as the action's target.
    assert x.rule_gap == pytest.approx((0.2, 0.2), abs=1e-6)


def test_a_part_of_the_way_leaves_a_gap() -> None:
    settings = {"env": {**tiny().settings["env"], "trade_rate": 0.25}}
    x, _ = describe_dataset(tiny(settings=settings)).behaviours
    gap = 0.75 * gap_to([1.0, 1.0, 1.0])
    assert x.gap is not None and x.turnover is not None
    assert x.gap.mean == pytest.approx(gap, abs=1e-6)
    assert x.turnover.mean == pytest.approx(0.25 * turnover_to([1.0, 1.0, 1.0]), abs=1e-6)
    low, high = [abs(gap - d) for d in (0.1, 0.3)], [gap + d for d in (0.1, 0.3)]
    assert x.rule_gap == pytest.approx((sum(low) / 2, sum(high) / 2), abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"env": {"action_base": "drift"}}, {"env": {"unheard_of": 1}}, {"env": {"fee": "high"}}],
    ids=str,
)
def test_without_the_environment_there_is_no_turnover(settings: dict[str, Any]) -> None:
    for behaviour in describe_dataset(tiny(settings=settings)).behaviours:
        assert behaviour.turnover is behaviour.gap is behaviour.rule_gap is None


def test_coverage_by_hand() -> None:
    found = describe_dataset(tiny()).coverage
    assert [d.name for d in found.dimensions] == ["A", "B", "cash"]
    a, b, cash = found.dimensions
    assert (a.spread.mean, b.spread.mean) == pytest.approx((0.16, 0.26))
    assert (a.spread.minimum, a.spread.maximum) == pytest.approx((0.0, 0.5))
    assert (a.counts[10], a.counts[13], a.counts[15], sum(a.counts)) == (3, 1, 1, 5)
    assert (a.visited, cash.visited) == pytest.approx((3 / 20, 2 / 20))
    variances = np.linalg.eigvalsh(np.cov(tiny().action.T.astype(np.float64), ddof=0))
    assert found.participation == pytest.approx(variances.sum() ** 2 / (variances**2).sum())
    shares = np.cumsum(variances[::-1]) / variances.sum()
    assert found.components == 1 + int(np.sum(shares < 0.95))
    # Nearest others: the first two are the same, then (.3, .3, .3), (.5, .5, 0) and (0, .5, 0).
    near = [0.0, 0.0, math.sqrt(0.17), math.sqrt(0.17), math.sqrt(0.22)]
    assert found.neighbour == pytest.approx(sum(near) / 5 / math.sqrt(3), abs=1e-6)
    assert found.sample == 5


def test_actions_at_the_clip() -> None:
    action = tiny().action.copy()
    action[:3, 1] = [-0.95, 0.95, 0.9499]
    found = describe_dataset(tiny(action=action)).coverage.dimensions
    assert [d.at_limit for d in found] == [0.0, 0.4, 0.0]


WARNINGS = {
    "One rule only (x)": {"behaviour": np.zeros(2, dtype=np.int32)},
    "2 episodes only": {},
    "All rewards are the same": {"reward": np.ones(5, dtype=np.float32)},
    "All actions are alike": {"action": np.full((5, 3), 0.3, dtype=np.float32)},
    "Never moved: B, cash.": {
        "action": np.array([[x, 0.1, 0.0] for x in (-0.9, 0, 0.3, 0.5, 0.9)], dtype=np.float32)
    },
    "Hardly moved": {},
    "Not what the rule wanted: actions of z": {},
    "actions of cash heavy are": {"behaviours": ("x", "y", "cash_heavy")},
    "Not what was held: weights after the trades of record:a_b are": {
        "behaviours": ("x", "y", "record:a_b")
    },
    "One rule only (cash heavy)": {
        "behaviours": ("cash_heavy", "y", "z"),
        "behaviour": np.zeros(2, dtype=np.int32),
    },
    "At the clip in most transitions: A, B": {
        "action": np.array([[0.95, x, 0.1] for x in (0.95, 0.95, 0.95, 0, -0.5)], dtype=np.float32)
    },
    "along one line": {
        "action": np.array([[x, x, x / 2] for x in (-0.9, 0, 0.3, 0.5, 0.9)], dtype=np.float32)
    },
}


@pytest.mark.parametrize("said", WARNINGS)
def test_warnings(said: str) -> None:
    found = describe_dataset(tiny(**WARNINGS[said])).warnings
    assert any(said in warning for warning in found), found
    assert all(warning.endswith(".") and "\n" not in warning for warning in found)


def test_a_record_is_no_rule_that_wanted_something() -> None:
    found = describe_dataset(tiny(behaviours=("x", "y", "record:z"))).warnings
    assert not any("the rule wanted" in warning for warning in found)


# ------------------------------------------------------------------ pieces


def close(first: Any, second: Any) -> None:
    """Equal but for the last bits of sums."""
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        for f in dataclasses.fields(first):
            close(getattr(first, f.name), getattr(second, f.name))
    elif isinstance(first, (tuple, list)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            close(one, other)
    elif isinstance(first, float):
        assert first == pytest.approx(second, rel=1e-9, abs=1e-12)
    else:
        assert first == second


CASES = {
    "anchors": EnvSettings(episode_length=12),
    "limits": EnvSettings(
        episode_length=12, no_trade_band=0.002, max_turnover=0.02, max_position=0.3, trade_rate=0.5
    ),
    "lagged": EnvSettings(episode_length=12, execution_lag=1),
    "ruin": EnvSettings(episode_length=40, ruin=0.97),
    "drift": EnvSettings(episode_length=12, action_base="drift"),
    "drift lagged": EnvSettings(episode_length=12, action_base="drift", execution_lag=1),
    "none": EnvSettings(episode_length=12, action_base="none", reward="differential_sharpe"),
}


def collected(env: EnvSettings, noise: float = 0.1) -> OfflineDataset:
    collect = CollectSettings(episodes=20, n_envs=8, noise=noise)
    return module.collect_dataset(small_market(env), env, collect, seed=0)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("case", ["anchors", "drift lagged"])
def test_the_size_of_pieces_does_not_matter(case: str, chunk: int) -> None:
    data = collected(CASES[case], noise=0.0 if case == "drift lagged" else 0.1)
    close(describe_dataset(data, chunk=chunk), describe_dataset(data))


class Recorded(PortfolioBatch):
    """Keeps what was traded, step by step."""

    waves: list[list[tuple[Any, Any]]]

    def reset(self, which: Any = None) -> None:
        super().reset(which)
        self.waves.append([])

    def step(self, actions: Any) -> Any:
        before = self.pending.copy()
        order = before if self.settings.execution_lag else self.target(actions)
        if self.settings.execution_lag:
            order = np.where(self.idle[:, None], self.held, order)
        out = super().step(actions)
        gap = 0.5 * np.abs(self.weights - order).sum(axis=1)
        self.waves[-1].append((self.turnover.copy(), gap))
        return out


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_trades_are_the_environments(
    case: str, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worked out from the file they are what the environment did, to float32."""
    monkeypatch.setattr(module, "PortfolioBatch", Recorded)
    monkeypatch.setattr(Recorded, "waves", [], raising=False)
    data = collected(CASES[case], noise)
    env = environment_of(data)
    assert env == CASES[case]
    lengths, at = np.bincount(data.episode), 0
    turnover, gap = [], []
    for wave in Recorded.waves:
        steps = np.array(wave)  # [L, 2, B]
        for b in range(steps.shape[2]):
            turnover.append(steps[: lengths[at], 0, b])
            gap.append(steps[: lengths[at], 1, b])
            at += 1
    found = trades(data, env, 0, len(data))
    np.testing.assert_allclose(found.turnover, np.concatenate(turnover), atol=2e-6)
    np.testing.assert_allclose(found.gap, np.concatenate(gap), atol=2e-6)
    if noise == 0.0 and case.startswith("drift"):
        assert (found.turnover == 0.0).any(), "buy and hold has to leave its portfolios alone"


# ------------------------------------------------------------------ the file


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Description:
    path = tmp_path_factory.mktemp("data") / "data.h5"
    write_dataset(collected(CASES["anchors"]), path)
    done: list[tuple[str, int, int]] = []
    found = describe(path, random_prices(5, 600), lambda *at: done.append(at))
    assert done[-1] == ("describing", 240, 240)
    return found


def test_a_file(described: Description) -> None:
    assert described.path is not None
    assert described.size == described.path.stat().st_size
    dates = random_prices(5, 600).dates
    assert described.first_date == str(dates[described.first_row])
    assert described.last_date == str(dates[described.last_row])
    assert described.assets == NAMES[:5]
    names = [d.name for d in described.coverage.dimensions]
    assert names[0] == "gate volatility" and names[-1] == "tilt cash"
    assert len(described.behaviours) == 8


def test_other_prices_are_refused(described: Description) -> None:
    assert described.path is not None
    with pytest.raises(DataError, match="has 500 rows of 5 assets where the dataset has 600 of 5"):
        describe(described.path, random_prices(5, 500))


def test_nothing_to_describe() -> None:
    empty = {
        name: getattr(tiny(), name)[:0] for name in ("row", "action", "reward", "distance",
        "episode", "terminal", "timeout", "behaviour", "states")
    }  # fmt: skip
    with pytest.raises(ArtefactError, match="holds no transitions"):
        describe_dataset(tiny(**empty))


# ------------------------------------------------------------------ tallies


def test_quantiles_are_right_to_within_a_bin() -> None:
    values = np.random.default_rng(0).beta(2.0, 5.0, size=5000)
    histogram = Histogram(2, 0.0, 1.0, 1000)
    for piece in np.split(values, 10):
        histogram.add(np.ones(len(piece), dtype=np.int64), piece)
    found = histogram.spread(1)
    exact = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95))
    assert (found.q05, found.q25, found.median, found.q75, found.q95) == pytest.approx(
        tuple(exact), abs=1e-3
    )
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    assert histogram.number(0) == 0


def test_dimension_has_a_share_at_most_one() -> None:
    for dimension in describe_dataset(tiny()).coverage.dimensions:
        assert isinstance(dimension, Dimension)
        assert 0.0 < dimension.visited <= 1.0
