"""The portfolio replay buffer returns what SB3's own buffer returns, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_fixtures import market_states
from markets import small_market
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from finflow_sb3.config import EnvSettings
from finflow_sb3.cqsac import replay
from finflow_sb3.cqsac.replay import PortfolioReplayBuffer
from finflow_sb3.cqsac.replay_storage import DeviceArray
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError

N_ENVS = 3


def buffers(
    env: PortfolioVecEnv, size: int, **returns: Any
) -> tuple[PortfolioReplayBuffer, ReplayBuffer]:
    """Ours and SB3's; with `n_steps` and `gamma`, SB3's of n-step returns."""
    spaces = env.observation_space, env.action_space
    mine = PortfolioReplayBuffer(
        size, *spaces, "cpu", N_ENVS, market_rows=env.market.rows, layout=env.layout, **returns
    )
    kind = NStepReplayBuffer if returns else ReplayBuffer
    return mine, kind(size, *spaces, "cpu", N_ENVS, **returns)


def play(
    env: PortfolioVecEnv, targets: list[Any], steps: int, seed: int = 0
) -> list[tuple[Any, ...]]:
    """Random steps into every buffer, as SB3's off-policy loop stores them."""
    rng = np.random.default_rng(seed)
    observations, trail = env.reset(), []
    for _ in range(steps):
        shape = (N_ENVS, env.action_space.shape[0])
        actions = rng.uniform(-1, 1, size=shape).astype(np.float32)
        after, rewards, dones, infos = env.step(actions)
        stored = after.copy()
        for i in np.flatnonzero(dones):
            stored[i] = infos[i]["terminal_observation"]
        trail.append((observations, stored, actions, rewards, dones, infos))
        for target in targets:
            target.add(observations, stored, actions, rewards, dones, infos)
        observations = after
    return trail


@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, id="anchors"),
        pytest.param({"reward": "differential_sharpe", "execution_lag": 1}, id="lagged"),
        pytest.param({"ruin": 0.94, "fee": 0.005, "trade_rate": 1.0}, id="ruin"),
    ],
)
@pytest.mark.parametrize(("size", "steps"), [(300, 40), (60, 47)])
@pytest.mark.parametrize("n_steps", [None, 1, 3, 10])
def test_samples_equal_sb3s(
    kwargs: dict[str, Any], size: int, steps: int, n_steps: int | None
) -> None:
    settings = EnvSettings(episode_length=9, **kwargs)
    env = PortfolioVecEnv(small_market(settings), N_ENVS, seed=0)
    mine, plain = buffers(env, size, **({} if n_steps is None else {"n_steps": n_steps}))
    trail = play(env, [mine, plain], steps)
    ends = np.array([step[4] for step in trail])
    cut = np.array([[i.get("TimeLimit.truncated", False) for i in step[5]] for step in trail])
    assert cut.any() and ends.any()
    if "ruin" in kwargs:
        assert (ends & ~cut).any(), "ruin must occur"
    assert (mine.pos, mine.full, mine.size()) == (plain.pos, plain.full, plain.size())
    for seed in range(5):
        np.random.seed(seed)
        ours = mine.sample(100)
        np.random.seed(seed)
        for name, a, b in zip(ours._fields, ours, plain.sample(100), strict=True):
            if name == "discounts" and n_steps == 1:
                assert a is None and (b == 0.99).all()
            else:
                assert a is b is None or torch.equal(a, b), name


@pytest.mark.parametrize("returns", [{}, {"n_steps": 3, "gamma": 0.9}], ids=["plain", "n-step"])
def test_on_a_device_all_is_the_same(
    returns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays kept as on a GPU, in tensors that NumPy does not see."""
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=9)
    mine, _ = buffers(env, 60, **returns)
    monkeypatch.setattr(replay, "placed", DeviceArray)
    other, _ = buffers(env, 60, **returns)
    assert isinstance(other.before, DeviceArray)
    assert isinstance(other.rewards, np.ndarray if returns else DeviceArray)
    play(env, [mine, other], 27)
    restored, _ = buffers(env, 60, **returns)
    restored.restore(stored(other), other.stop)
    for buffer in (other, restored, copy.deepcopy(other)):
        np.random.seed(0)
        first = mine.sample(64)
        np.random.seed(0)
        for a, b in zip(first, buffer.sample(64), strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_gathering_draws_nothing(n_steps: int) -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=9)
    mine, _ = buffers(env, 60, n_steps=n_steps)
    play(env, [mine], 27)
    np.random.seed(0)
    drawn = mine.draw(64)
    state = np.random.get_state()
    found = mine.gather(drawn)
    np.testing.assert_equal(np.random.get_state(), state)
    np.random.seed(0)
    for a, b in zip(found, mine.sample(64), strict=True):
        assert a is b is None or torch.equal(a, b)


def test_time_is_no_end_and_ruin_is() -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=5)
    mine, _ = buffers(env, 300)
    play(env, [mine], 20)
    assert mine.dones[:20].sum() == 12
    assert mine.sample(500).dones.sum() == 0
    mine.timeouts[:] = 0.0
    assert mine.sample(500).dones.sum() > 0


def test_terminal_observations_are_kept() -> None:
    """The successor of an episode's last step is its own last state, not the next start."""
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=5)
    mine, _ = buffers(env, 300)
    trail = play(env, [mine], 5)
    _, last, _, _, dones, infos = trail[4]
    assert dones.all()
    found = mine._get_samples(np.full(200, 4))
    expected = torch.from_numpy(np.stack([info["terminal_observation"] for info in infos]))
    for row in found.next_observations:
        assert (row == expected).all(dim=1).any()
    np.testing.assert_array_equal(expected.numpy(), last)


def test_wrap_around_drops_the_oldest() -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=9)
    mine, _ = buffers(env, 10 * N_ENVS)
    assert mine.buffer_size == 10
    trail = play(env, [mine], 13)
    assert mine.full and mine.pos == 3 and mine.size() == 10
    kept = {trail[i][2].tobytes() for i in range(3, 13)}
    assert {mine.actions[i].tobytes() for i in range(10)} == kept
    np.testing.assert_array_equal(mine.actions[2], trail[12][2])
    np.testing.assert_array_equal(mine.actions[3], trail[3][2])


class Pieces:
    """An array of which slices alone can be had, as of a file."""

    longest = 0

    def __init__(self, array: Any):
        self.array, self.shape = array, array.shape

    def __getitem__(self, rows: slice) -> Any:
        assert 0 <= rows.start < rows.stop <= len(self.array)
        piece = self.array[rows]
        Pieces.longest = max(Pieces.longest, piece.nbytes)
        return piece


class Stored(dict[str, Any]):
    """A copy of a piece, in the form of a file."""

    def rows(self, name: str) -> Pieces:
        return Pieces(self[name])


def stored(
    buffer: PortfolioReplayBuffer, start: int | None = None, stop: int | None = None
) -> list[tuple[int, int, Stored]]:
    """What a buffer would write; all that it keeps if no range is given."""
    pieces = buffer.pieces(
        buffer.first if start is None else start, buffer.stop if stop is None else stop
    )
    return [(a, b, Stored({k: v.numpy().copy() for k, v in t.items()})) for a, b, t in pieces]


@pytest.mark.parametrize("steps", [4, 10, 13, 27])
def test_state_and_restore(steps: int) -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=5)
    mine, other = (buffers(env, 10 * N_ENVS)[0] for _ in range(2))
    play(env, [other], 15)  # restoring leaves nothing of what a buffer had
    play(env, [mine], steps)
    assert (mine.first, mine.stop) == (max(0, steps - 10), steps)
    pieces = stored(mine)
    assert sum(b - a for a, b, _ in pieces) == min(steps, 10)
    other.restore(pieces, mine.stop)
    for buffer in (mine, other):
        play(PortfolioVecEnv(small_market(), N_ENVS, seed=1, episode_length=5), [buffer], 3, 1)
    np.random.seed(0)
    first = mine.sample(64)
    np.random.seed(0)
    for a, b in zip(first[:5], other.sample(64)[:5], strict=True):
        assert torch.equal(a, b)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.integers(1, 14), min_size=1, max_size=5))
def test_pieces_that_were_written_at_any_times_make_the_buffer(steps: list[int]) -> None:
    """Segments of several checkpoints, those that are left behind included."""
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0, episode_length=5)
    mine, other = (buffers(env, 10 * N_ENVS)[0] for _ in range(2))
    written: list[tuple[int, int, Stored]] = []
    for count in steps:
        before = mine.stop
        play(env, [mine], count, before)
        written += stored(mine, max(before, mine.first))
    other.restore([piece for piece in written if piece[1] > mine.first], mine.stop)
    assert (other.pos, other.full) == (mine.pos, mine.full)
    size = mine.size()
    for name in replay.ARRAYS:
        np.testing.assert_array_equal(getattr(mine, name)[:size], getattr(other, name)[:size])


@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_missing_slots_are_refused(lacking: int) -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0)
    mine, other = (buffers(env, 20 * N_ENVS)[0] for _ in range(2))
    play(env, [mine], 9)
    pieces = [*stored(mine, 0, 3), *stored(mine, 3, 6), *stored(mine, 6, 9)]
    del pieces[lacking]
    with pytest.raises(ValueError, match="are missing"):
        other.restore(pieces, mine.stop)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: a[:, :2], id="fewer portfolios"),
        pytest.param(lambda a: a[:, :1], id="one portfolio"),
    ],
)
def test_a_state_of_another_shape_is_refused(change: Any) -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0)
    mine, other = (buffers(env, 10 * N_ENVS)[0] for _ in range(2))
    play(env, [mine], 7)
    pieces = [(a, b, Stored({k: change(v) for k, v in t.items()})) for a, b, t in stored(mine)]
    with pytest.raises(ValueError, match="has shape"):
        other.restore(pieces, mine.stop)


def test_restoring_goes_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "PIECE", 500)
    monkeypatch.setattr(Pieces, "longest", 0)
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0)
    mine, other = (buffers(env, 40 * N_ENVS)[0] for _ in range(2))
    play(env, [mine], 33)
    other.restore(stored(mine), mine.stop)
    for name in replay.ARRAYS:
        np.testing.assert_array_equal(getattr(mine, name)[:33], getattr(other, name)[:33])
    assert 200 < Pieces.longest <= 500


def test_a_transition_is_small() -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0)
    mine, plain = buffers(env, 3000)
    names = ("before", "after", "row", "actions", "rewards", "dones", "timeouts")
    size = sum(getattr(mine, name).nbytes for name in names)
    assert size < (plain.observations.nbytes + plain.next_observations.nbytes) / 5


def test_refusals() -> None:
    env = PortfolioVecEnv(small_market(), N_ENVS, seed=0)
    mine, _ = buffers(env, 30)
    play(env, [mine], 3)
    with pytest.raises(ConfigError, match="VecNormalize"):
        mine.sample(2, env=VecNormalize(env))
    with pytest.raises(ConfigError, match="optimize_memory_usage"):
        PortfolioReplayBuffer(
            30,
            env.observation_space,
            env.action_space,
            "cpu",
            N_ENVS,
            optimize_memory_usage=True,
            market_rows=env.market.rows,
            layout=env.layout,
        )


def test_rows_are_of_the_market() -> None:
    """The market part of a state is the market's own row of that day."""
    states = market_states(small_market(), 20)
    size = small_market().layout.market_size
    rows = torch.from_numpy(small_market().rows)
    for state in states:
        assert (rows == state[:size]).all(dim=1).any()
