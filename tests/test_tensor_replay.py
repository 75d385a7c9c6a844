"""Replay buffers in tensors give what SB3's own give, bit for bit."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from finflow_sb3.cqsac import replay
from finflow_sb3.cqsac.replay import (
    TensorDictReplayBuffer,
    TensorNStepReplayBuffer,
    TensorReplayBuffer,
    replay_class,
)
from finflow_sb3.cqsac.replay_returns import n_step_returns
from finflow_sb3.cqsac.replay_storage import DeviceArray, Drawn

SLOTS = 12
BOX = spaces.Box(-3.0, 3.0, (4,))
IMAGE = spaces.Box(0, 255, (3, 6, 5), dtype=np.uint8)
PLAIN = {
    "floats": BOX,
    "doubles": spaces.Box(-3.0, 3.0, (4,), dtype=np.float64),
    "table": spaces.Box(-3.0, 3.0, (2, 3)),
    "image": IMAGE,
    "discrete": spaces.Discrete(7),
    "several": spaces.MultiDiscrete([3, 4]),
    "bits": spaces.MultiBinary(5),
}
MIXED = spaces.Dict({"image": IMAGE, "floats": BOX, "discrete": spaces.Discrete(4)})
ACTIONS = {
    "box": spaces.Box(-1.0, 1.0, (2,)),
    "doubles": spaces.Box(-1.0, 1.0, (2, 2), dtype=np.float64),
    "discrete": spaces.Discrete(3),
    "several": spaces.MultiDiscrete([3, 4]),
}
SB3S = {
    TensorReplayBuffer: ReplayBuffer,
    TensorDictReplayBuffer: DictReplayBuffer,
    TensorNStepReplayBuffer: NStepReplayBuffer,
}
# Partly filled, just full, and wrapped around.
STEPS = (7, SLOTS, 2 * SLOTS + 5)


@pytest.fixture(params=["host", "device"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With `device`, arrays are kept as on a GPU: in tensors that NumPy does not see."""

    def placed(stored: Any, device: torch.device) -> Any:
        if isinstance(stored, dict):
            return {name: placed(array, device) for name, array in stored.items()}
        return DeviceArray(stored, device)

    if request.param == "device":
        monkeypatch.setattr(replay, "placed", placed)
    return str(request.param)


def drawn_from(space: spaces.Space[Any], n_envs: int) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: drawn_from(part, n_envs) for key, part in space.items()}
    return np.array([space.sample() for _ in range(n_envs)])


def fill(buffers: list[Any], steps: int, seed: int = 0) -> None:
    """The same random transitions into every buffer; a third end, half of these by time."""
    rng = np.random.default_rng(seed)
    first = buffers[0]
    first.observation_space.seed(seed)
    first.action_space.seed(seed)
    n_envs = first.n_envs
    for _ in range(steps):
        seen, after = (drawn_from(first.observation_space, n_envs) for _ in range(2))
        actions = drawn_from(first.action_space, n_envs)
        rewards = rng.normal(size=n_envs)
        dones = rng.random(n_envs) < 0.3
        infos = [{"TimeLimit.truncated": bool(x)} if x else {} for x in dones & (rewards > 0)]
        for buffer in buffers:
            copies = [dict(x) if isinstance(x, dict) else x for x in (seen, after)]
            buffer.add(*copies, actions, rewards, dones, infos)


def pair(
    space: spaces.Space[Any],
    action: spaces.Space[Any] = ACTIONS["box"],
    n_envs: int = 1,
    steps: int = 0,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Ours and SB3's with the same transitions."""
    mine: Any = replay_class(space, kwargs.get("n_steps", 1))
    theirs: Any = SB3S[mine]
    args = SLOTS * n_envs, space, action, "cpu", n_envs
    out = mine(*args, **kwargs), theirs(*args, **kwargs)
    fill(list(out), steps)
    return out


def assert_same_tensors(mine: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        for key, value in theirs.items():
            assert_same_tensors(mine[key], value)
    elif theirs is None:
        assert mine is None
    else:
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


def assert_same_samples(
    mine: ReplayBuffer, theirs: ReplayBuffer, env: VecNormalize | None = None
) -> None:
    for seed in range(3):
        np.random.seed(seed)
        ours = mine.sample(64, env=env)
        here = np.random.get_state()
        np.random.seed(seed)
        expected = theirs.sample(64, env=env)
        assert type(ours) is type(expected)
        for a, b in zip(ours, expected, strict=True):
            assert_same_tensors(a, b)
        np.testing.assert_equal(here, np.random.get_state())


def test_the_class_that_sb3_would_take() -> None:
    for space in PLAIN.values():
        assert replay_class(space, 1) is TensorReplayBuffer
        assert replay_class(space, 3) is TensorNStepReplayBuffer
    assert replay_class(MIXED, 1) is TensorDictReplayBuffer
    assert all(issubclass(mine, theirs) for mine, theirs in SB3S.items())


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("space", [*PLAIN, "dict"])
def test_samples_equal_sb3s(space: str, n_envs: int, steps: int, storage: str) -> None:
    mine, theirs = pair(PLAIN.get(space, MIXED), n_envs=n_envs, steps=steps)
    assert (mine.pos, mine.full, mine.size()) == (theirs.pos, theirs.full, theirs.size())
    assert_same_samples(mine, theirs)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("space", [BOX, MIXED], ids=["box", "dict"])
def test_actions_equal_sb3s(space: spaces.Space[Any], action: str, storage: str) -> None:
    assert_same_samples(*pair(space, ACTIONS[action], n_envs=3, steps=STEPS[2]))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("space", ["floats", "image"])
def test_one_array_for_both_observations(space: str, steps: int, storage: str) -> None:
    kwargs = {"optimize_memory_usage": True, "handle_timeout_termination": False}
    mine, theirs = pair(PLAIN[space], n_envs=3, steps=steps, **kwargs)
    assert not hasattr(mine, "next_observations")
    assert_same_samples(mine, theirs)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("n_steps", [2, 3, 10, SLOTS + 3])
@pytest.mark.parametrize("space", ["floats", "image"])
def test_n_step_samples_equal_sb3s(space: str, n_steps: int, steps: int, storage: str) -> None:
    mine, theirs = pair(PLAIN[space], n_envs=3, steps=steps, n_steps=n_steps, gamma=0.9)
    assert_same_samples(mine, theirs)
    # What SB3 marks while it samples is not left behind.
    np.testing.assert_array_equal(mine.timeouts, theirs.timeouts)


@settings(max_examples=50)
@given(
    slots=st.integers(1, 9),
    n_envs=st.integers(1, 3),
    steps=st.integers(1, 25),
    n_steps=st.integers(1, 20),
    gamma=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_n_step_returns_of_any_buffer(
    slots: int, n_envs: int, steps: int, n_steps: int, gamma: float, seed: int
) -> None:
    kwargs: dict[str, Any] = {"n_steps": n_steps, "gamma": gamma}
    args = slots * n_envs, BOX, ACTIONS["box"], "cpu", n_envs
    mine, theirs = (kind(*args, **kwargs) for kind in (TensorNStepReplayBuffer, NStepReplayBuffer))
    fill([mine, theirs], steps, seed)
    assert_same_samples(mine, theirs)


def test_n_step_returns_by_hand() -> None:
    """γ = 1/2: an end in time bootstraps from where it was reached, a terminal one does not."""
    rewards = np.array([[1.0], [2.0], [4.0], [8.0], [16.0]], dtype=np.float32)
    dones = np.array([[0.0], [1.0], [0.0], [1.0], [0.0]], dtype=np.float32)
    timeouts = np.array([[0.0], [1.0], [0.0], [0.0], [0.0]], dtype=np.float32)
    found = n_step_returns(
        rewards,
        dones,
        timeouts,
        Drawn(np.arange(5), np.zeros(5, dtype=np.int64)),
        newest=4,
        n_steps=3,
        gamma=0.5,
        normalize=lambda x: x,
    )
    assert found.last.tolist() == [1, 1, 3, 3, 4]
    assert found.rewards[:, 0].tolist() == [2.0, 2.0, 8.0, 8.0, 16.0]
    assert found.discounts[:, 0].tolist() == [0.25, 0.5, 0.25, 0.5, 0.5]
    assert found.dones[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]


class AnySpaces(gymnasium.Env[Any, Any]):
    """Nothing but spaces."""

    def __init__(self, space: spaces.Space[Any]):
        self.observation_space, self.action_space = space, ACTIONS["box"]


def normalizer(space: spaces.Space[Any], **kwargs: Any) -> VecNormalize:
    """A VecNormalize that has seen something."""
    env = VecNormalize(DummyVecEnv([lambda: AnySpaces(space)]), **kwargs)
    env.ret_rms.mean, env.ret_rms.var = np.array(0.3), np.array(2.5)
    parts: dict[str, RunningMeanStd] = {}
    if kwargs.get("norm_obs", True):
        parts = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    for statistics in parts.values():
        statistics.update(np.random.default_rng(0).normal(1.0, 2.0, (50, *statistics.mean.shape)))
    return env


@pytest.mark.parametrize("kwargs", [{}, {"norm_obs": False}, {"norm_reward": False}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "n-step", "memory", "dict"])
def test_normalised_samples_equal_sb3s(kind: str, kwargs: dict[str, Any], storage: str) -> None:
    extra = {
        "n-step": {"n_steps": 3},
        "memory": {"optimize_memory_usage": True, "handle_timeout_termination": False},
    }
    space = spaces.Dict({"a": BOX, "b": PLAIN["table"]}) if kind == "dict" else BOX
    mine, theirs = pair(space, n_envs=3, steps=STEPS[2], **extra.get(kind, {}))
    before = pickle.dumps(mine.observations)
    assert_same_samples(mine, theirs, normalizer(space, **kwargs))
    assert pickle.dumps(mine.observations) == before, "stored as it came"


# ------------------------------------------------------------------- SB3's API


@pytest.mark.parametrize("space", [BOX, IMAGE, MIXED], ids=["box", "image", "dict"])
def test_attributes_are_sb3s(space: spaces.Space[Any], storage: str) -> None:
    mine, theirs = pair(space, n_envs=3, steps=STEPS[2])
    assert set(vars(theirs)) <= set(vars(mine))
    for name in mine.stored:
        ours, expected = getattr(mine, name), getattr(theirs, name)
        if not isinstance(expected, dict):
            ours, expected = {"": ours}, {"": expected}
        for key, value in expected.items():
            assert ours[key].dtype == value.dtype and ours[key].shape == value.shape
            assert ours[key].nbytes == value.nbytes and len(ours[key]) == len(value)
            np.testing.assert_array_equal(ours[key][2], value[2])
            np.testing.assert_array_equal(np.asarray(ours[key]), value)
            assert np.asarray(ours[key], dtype=np.float64).dtype == np.float64


def test_arrays_and_tensors_are_one_memory() -> None:
    mine, _ = pair(BOX, steps=SLOTS)
    assert isinstance(mine.observations, np.ndarray)
    mine.observations[:] = 5.0
    assert (mine.sample(8).observations == 5.0).all()
    mine.observations = np.full_like(mine.observations, 7.0)
    assert (mine.sample(8).observations == 7.0).all()


def test_samples_do_not_change_with_the_buffer() -> None:
    mine, _ = pair(BOX, steps=SLOTS)
    batch = mine.sample(8)
    kept = [part.clone() for part in batch[:5]]
    fill([mine], SLOTS, seed=1)
    for part, before in zip(batch[:5], kept, strict=True):
        assert torch.equal(part, before)


def test_reset_and_extend(storage: str) -> None:
    mine, theirs = pair(BOX, n_envs=2, steps=STEPS[2])
    for buffer in (mine, theirs):
        buffer.reset()
        assert buffer.size() == 0
        with pytest.raises(ValueError, match="high"):
            buffer.sample(1)
        rng = np.random.default_rng(0)
        many = [rng.normal(size=(5, 2, 4)) for _ in range(2)]
        rest = rng.normal(size=(5, 2, 2)), rng.normal(size=(5, 2)), np.zeros((5, 2))
        buffer.extend(*many, *rest, [[{}, {}]] * 5)
    assert_same_samples(mine, theirs)


@pytest.mark.parametrize("kind", ["box", "n-step", "dict"])
def test_a_saved_buffer_goes_on(kind: str, storage: str) -> None:
    kwargs = {"n_steps": 3} if kind == "n-step" else {}
    mine, theirs = pair(MIXED if kind == "dict" else BOX, n_envs=2, steps=SLOTS + 2, **kwargs)
    file = io.BytesIO()
    save_to_pkl(file, mine)
    size = file.tell()
    save_to_pkl(file, theirs)
    assert size < 1.1 * (file.tell() - size) + 2000, "nothing is saved twice"
    file.seek(0)
    loaded = load_from_pkl(file)
    assert type(loaded) is type(mine)
    fill([loaded, theirs], 4, seed=1)
    assert_same_samples(loaded, theirs)


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (TensorReplayBuffer, {"optimize_memory_usage": True}),
        (
            TensorNStepReplayBuffer,
            {"optimize_memory_usage": True, "handle_timeout_termination": False},
        ),
    ],
)
def test_what_sb3_refuses_is_refused(kind: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises((ValueError, NotImplementedError), match="support"):
        kind(10, BOX, ACTIONS["box"], **kwargs)


@pytest.mark.parametrize("kind", ["box", "n-step", "memory", "dict"])
def test_drawing_is_all_that_is_random(kind: str) -> None:
    extra = {
        "n-step": {"n_steps": 3},
        "memory": {"optimize_memory_usage": True, "handle_timeout_termination": False},
    }
    mine, _ = pair(MIXED if kind == "dict" else BOX, n_envs=3, steps=30, **extra.get(kind, {}))
    np.random.seed(0)
    indices = [mine.draw(16) for _ in range(3)]
    state = np.random.get_state()
    late = [mine.gather(index) for index in indices]
    np.testing.assert_equal(np.random.get_state(), state)
    np.random.seed(0)
    for batch in late:
        for a, b in zip(batch, mine.sample(16), strict=True):
            assert_same_tensors(a, b)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (50,)), MIXED], ids=["box", "dict"])
def test_memory_is_taken_as_transitions_come(space: spaces.Space[Any]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    buffer: Any = replay_class(space, 1)(1_000_000, space, ACTIONS["box"], "cpu")
    stored = buffer.observations
    size = sum(x.nbytes for x in stored.values()) if isinstance(stored, dict) else stored.nbytes
    assert size > 100_000_000
    fill([buffer], 10)
    buffer.sample(4)
    buffer.reset()
    assert resident() - before < 0.2 * size


# ------------------------------------------------------------------- in an algorithm


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kwargs", [{}, {"n_steps": 3, "gamma": 0.9}], ids=["plain", "n-step"])
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.n_steps=:UserWarning")
def test_sac_learns_the_same(kwargs: dict[str, Any], tmp_path: Path) -> None:
    parameters = []
    for kind in (None, replay_class(BOX, kwargs.get("n_steps", 1))):
        model = SAC(
            "MlpPolicy",
            "Pendulum-v1",
            learning_starts=20,
            buffer_size=50,
            batch_size=16,
            policy_kwargs={"net_arch": [8]},
            seed=0,
            device="cpu",
            replay_buffer_class=kind,
            replay_buffer_kwargs=None if kind is None else kwargs,
            **kwargs,
        ).learn(80)
        model.save_replay_buffer(tmp_path / "buffer")
        model.load_replay_buffer(tmp_path / "buffer")
        model.learn(20, reset_num_timesteps=False)
        parameters.append(list(model.policy.state_dict().values()))
    for a, b in zip(*parameters, strict=True):
        assert torch.equal(a, b)
