"""Datasets of others: read as their own libraries read them, ours written for them, and back."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest
import torch
from d3rlpy.dataset import BasicTransitionPicker, InfiniteBuffer, ReplayBuffer
from d3rlpy.dataset.io import load_v1
from gymnasium.spaces import Box
from markets import small_market
from plain_fixtures import (
    PENDULUM,
    d3rlpy_episodes,
    pendulum_episodes,
    random_episodes,
    write_d3rlpy_file,
    write_d3rlpy_v1,
    write_minari_data,
)
from stable_baselines3 import SAC
from typer.testing import CliRunner

import finflow_sb3
from finflow_sb3.cli.app import app
from finflow_sb3.config import CollectSettings, EnvSettings
from finflow_sb3.errors import ArtefactError, ConfigError, StorageError
from finflow_sb3.offline import export as module
from finflow_sb3.offline.collect import collect_dataset
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_file import write_dataset
from finflow_sb3.offline.export import export_dataset
from finflow_sb3.offline.formats import is_plain, read_plain
from finflow_sb3.offline.plain import PlainDataset, PlainEpisode


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store of Minari's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="module")
def ours() -> OfflineDataset:
    """Episodes of many lengths: a ruin at 97 % of the start ends some early."""
    env = EnvSettings(episode_length=40, ruin=0.97)
    return collect_dataset(small_market(), env, CollectSettings(episodes=20, n_envs=8), seed=0)


@pytest.fixture
def file(ours: OfflineDataset, tmp_path: Path) -> Path:
    write_dataset(ours, tmp_path / "ours.h5")
    return tmp_path / "ours.h5"


def everything(dataset: Any) -> Any:
    return dataset.gather(torch.arange(len(dataset)))


# ------------------------------------------------------------------ ours, there and back


TARGETS = ["minari:finflow/tiny-v0", "folder", "there.h5", "there.npz"]


@pytest.mark.parametrize("target", TARGETS)
def test_round_trip(ours: OfflineDataset, file: Path, tmp_path: Path, target: str) -> None:
    target = target if target.startswith("minari:") else str(tmp_path / target)
    exported = export_dataset(file, target)
    assert (exported.transitions, exported.episodes) == (len(ours), 20)
    assert exported.path.exists()
    again = read_plain(target)
    for mine, theirs in zip(everything(ours), everything(again), strict=True):
        assert torch.equal(mine, theirs)
    for name in ("action", "reward", "episode", "terminal", "timeout"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(again, name))
    assert 0 < again.terminal.sum() < 20
    assert (again.left_out, again.clipped) == (0, 0)
    assert is_plain(target) and not is_plain(file)
    assert again.spaces.low == (-1.0,) * ours.layout.action_size


def test_minari_reads_what_we_write(ours: OfflineDataset, file: Path) -> None:
    export_dataset(file, "minari:finflow/tiny-v0")
    dataset = minari.load_dataset("finflow/tiny-v0")
    assert (dataset.total_episodes, dataset.total_steps) == (20, len(ours))
    assert dataset.observation_space.shape == (ours.layout.size,)
    assert dataset.action_space == Box(-1.0, 1.0, (ours.layout.action_size,), np.float32)
    assert "S00" in dataset.storage.metadata["description"]
    for number, episode in enumerate(dataset.iterate_episodes()):
        index = torch.from_numpy(np.flatnonzero(ours.episode == number))
        batch = ours.gather(index)
        assert dataset.observation_space.contains(episode.observations[0])
        np.testing.assert_array_equal(episode.observations[:-1], batch.observations)
        np.testing.assert_array_equal(episode.observations[-1], batch.next_observations[-1])
        np.testing.assert_array_equal(episode.actions, batch.actions)
        np.testing.assert_array_equal(episode.rewards, batch.rewards[:, 0])
        assert episode.terminations[-1] == ours.terminal[number]
        assert episode.truncations[-1] == ours.timeout[number]
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()
    assert list(minari.list_local_datasets()) == ["finflow/tiny-v0"]


def test_d3rlpy_reads_what_we_write(ours: OfflineDataset, file: Path, tmp_path: Path) -> None:
    export_dataset(file, tmp_path / "there.h5")
    with (tmp_path / "there.h5").open("rb") as opened:
        buffer = ReplayBuffer.load(opened, InfiniteBuffer())
    assert buffer.size() == 20
    # d3rlpy has no last observation, and leaves out the last step of what time ended.
    assert buffer.transition_count == len(ours) - ours.timeout.sum()
    number, place = 3, 5
    found = buffer.transition_picker(buffer.episodes[number], place)
    batch = ours.gather(torch.tensor([int(np.searchsorted(ours.episode, number)) + place]))
    np.testing.assert_array_equal(found.observation, batch.observations[0])
    np.testing.assert_array_equal(found.next_observation, batch.next_observations[0])
    np.testing.assert_array_equal(found.action, batch.actions[0])
    assert found.reward == batch.rewards[0].numpy()
    assert buffer.sample_trajectory_batch(2, 10).observations.shape == (2, 10, ours.layout.size)


@pytest.mark.parametrize("target", ["deep/folder", "deep/there.h5", "deep/there.npz"])
def test_relative_targets(
    ours: OfflineDataset, file: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_dataset(file, target)
    assert len(read_plain(target)) == len(ours)


@pytest.mark.parametrize("target", TARGETS[1:])
def test_what_is_there_stays(file: Path, tmp_path: Path, target: str) -> None:
    path = tmp_path / target
    export_dataset(file, path)
    before = {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}
    with pytest.raises(ConfigError, match="is there already"):
        export_dataset(file, path)
    assert before == {p: p.read_bytes() for p in [path, *path.rglob("*")] if p.is_file()}


@pytest.mark.parametrize("target", ["a.csv", "minari:no version", "minari:../out-v0"])
def test_other_targets_are_refused(file: Path, tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=r"no known kind|no Minari dataset") as caught:
        export_dataset(file, target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_whole_or_not_at_all(
    ours: OfflineDataset,
    file: Path,
    tmp_path: Path,
    store: Path,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that is full after some episodes."""
    gather, calls = OfflineDataset.gather, []

    def full(self: OfflineDataset, index: torch.Tensor) -> Any:
        calls.append(index)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        return gather(self, index)

    monkeypatch.setattr(OfflineDataset, "gather", full)
    with pytest.raises(StorageError, match="disk full"):
        export_dataset(file, target if target.startswith("minari:") else tmp_path / target)
    left = {p.name for p in tmp_path.iterdir()} - {"store"}
    assert left == {"ours.h5"}
    assert not [p for p in store.rglob("*") if p.is_file()]
    assert not minari.list_local_datasets()


@pytest.mark.parametrize("target", TARGETS)
def test_episodes_are_written_one_by_one(
    ours: OfflineDataset, file: Path, tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than an episode is put together at a time."""
    longest = int(np.bincount(ours.episode).max())
    sizes = []
    gather = OfflineDataset.gather

    def noted(self: OfflineDataset, index: torch.Tensor) -> Any:
        sizes.append(len(index))
        return gather(self, index)

    monkeypatch.setattr(OfflineDataset, "gather", noted)
    export_dataset(file, target if target.startswith("minari:") else tmp_path / target)
    assert max(sizes) <= longest < len(ours)


def test_a_lazy_source_is_never_held(tmp_path: Path) -> None:
    """d3rlpy's writer takes an episode, writes it and lets it go."""
    length, count = 4000, 40

    def source() -> Any:
        for _ in range(count):
            seen = np.ones((length + 1, 50), np.float32)
            yield PlainEpisode(seen, seen[1:, :2], seen[1:, 0], False)

    each = (length + 1) * 50 * 4
    tracemalloc.start()
    module.write_d3rlpy(source(), count, tmp_path / "big.h5")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "big.h5").stat().st_size > count * each
    assert peak < 6 * each


def test_the_command(file: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "there.npz")
    done = CliRunner().invoke(app, ["data", "export", str(file), target])
    assert done.exit_code == 0, done.output
    assert "Wrote" in done.stdout and "20 episodes for NumPy" in done.stdout
    done = CliRunner().invoke(app, ["data", "export", str(file), "minari:my/data-v1", "--json"])
    found = json.loads(done.stdout)
    assert found["format"] == "minari" and found["episodes"] == 20
    assert Path(found["path"]).is_dir()
    assert finflow_sb3.export_dataset is export_dataset


# ------------------------------------------------------------------ theirs


ENDS = (True, False, True, False)


def same_as_d3rlpy(dataset: PlainDataset, episodes: list[Any]) -> None:
    """Every transition that d3rlpy picks, in its order, is the dataset's."""
    picker, batch, place = BasicTransitionPicker(), everything(dataset), 0
    for episode in episodes:
        for i in range(episode.transition_count):
            picked = picker(episode, i)
            np.testing.assert_array_equal(batch.observations[place], picked.observation)
            np.testing.assert_array_equal(batch.actions[place], picked.action)
            np.testing.assert_array_equal(batch.rewards[place], picked.reward)
            np.testing.assert_array_equal(batch.next_observations[place], picked.next_observation)
            assert batch.terminals[place, 0] == picked.terminal
            place += 1
    assert place == len(dataset)


def test_d3rlpys_own_files(tmp_path: Path) -> None:
    episodes = random_episodes(*ENDS)
    path = write_d3rlpy_file(tmp_path / "theirs.h5", episodes)
    dataset = read_plain(path)
    same_as_d3rlpy(dataset, d3rlpy_episodes(episodes))
    assert dataset.left_out == 2
    np.testing.assert_array_equal(dataset.terminal, ENDS)
    np.testing.assert_array_equal(dataset.timeout, np.logical_not(ENDS))
    np.testing.assert_array_equal(np.bincount(dataset.episode), [7, 7, 9, 9])


@pytest.mark.parametrize("flags", [True, False])
def test_d3rlpys_old_files(tmp_path: Path, flags: bool) -> None:
    path = write_d3rlpy_v1(tmp_path / "old.hdf5", random_episodes(*ENDS), flags)
    dataset = read_plain(path)
    with path.open("rb") as opened:
        same_as_d3rlpy(dataset, list(load_v1(opened)))
    # Without flags the second episode runs on into the third, and the fourth has no end at all.
    assert dataset.n_episodes == (4 if flags else 2)
    assert dataset.left_out == (2 if flags else 10)


@pytest.mark.parametrize("form", ["hdf5", "arrow", "parquet"])
def test_minaris_own_files(tmp_path: Path, form: str) -> None:
    episodes = pendulum_episodes()
    folder = write_minari_data(tmp_path / "store" / "pendulum-v0", episodes, form=form)
    for source in (str(folder), str(folder / "data"), "minari:pendulum-v0"):
        dataset = read_plain(source)
        batch = everything(dataset)
        seen = np.concatenate([e.observations[:-1] for e in episodes])
        after = np.concatenate([e.observations[1:] for e in episodes])
        np.testing.assert_array_equal(batch.observations, seen)
        np.testing.assert_array_equal(batch.next_observations, after)
        assert len(dataset.observations) == len(seen) + len(episodes)
        np.testing.assert_array_equal(
            batch.rewards[:, 0], np.concatenate([e.rewards for e in episodes])
        )
        assert dataset.timeout.all() and not batch.terminals.any()
        assert dataset.spaces.low == (-2.0,) and dataset.spaces.high == (2.0,)
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=1)
    actions = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(dataset.action, model.policy.scale_action(actions), atol=1e-6)
    np.testing.assert_allclose(dataset.spaces.unscaled(dataset.action), actions, atol=1e-6)


def test_boxes_of_any_shape_are_flat(tmp_path: Path) -> None:
    episodes = tuple(
        e._replace(
            observations=e.observations.reshape(-1, 2, 3).astype(np.float64),
            actions=e.actions.reshape(-1, 2, 1).astype(np.float64),
        )
        for e in random_episodes(True, False, sizes=(6, 2))
    )
    low, high = np.array([[-1.0], [-4.0]]), np.array([[1.0], [2.0]])
    spaces = Box(-np.inf, np.inf, (2, 3), np.float64), Box(low, high, (2, 1), np.float64)
    dataset = read_plain(write_minari_data(tmp_path / "shapes-v0", episodes, *spaces))
    assert dataset.observations.shape[1] == 6 and dataset.observations.dtype == np.float32
    actions = np.concatenate([e.actions for e in episodes])
    np.testing.assert_allclose(dataset.action[:, 0], actions[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(dataset.action[:, 1], (actions[:, 1, 0] + 1.0) / 3.0, atol=1e-6)
    np.testing.assert_allclose(dataset.spaces.unscaled(dataset.action), actions, atol=1e-6)


WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "new.h5": write_d3rlpy_file,
    "old.h5": write_d3rlpy_v1,
}


@pytest.mark.parametrize("name", WRITERS)
def test_bounds_that_a_file_lacks(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, pendulum_episodes())
    with pytest.raises(Exception, match=r"actions reach ±1\.9.* --action-range -2 2"):
        read_plain(path)
    dataset = read_plain(path, (-2.0, 2.0))
    actions = np.concatenate([e.actions[:-1] for e in pendulum_episodes()])
    np.testing.assert_allclose(dataset.action, actions / 2.0, atol=1e-6)
    narrow = read_plain(path, ([-1.0], [1.0]))
    assert narrow.clipped == (np.abs(actions) > 1.0).sum() > 100
    assert np.abs(narrow.action).max() == 1.0
    assert everything(narrow).actions.abs().max() == pytest.approx(0.999)


def test_a_part_has_its_episodes(tmp_path: Path) -> None:
    dataset = read_plain(write_minari_data(tmp_path / "p-v0", pendulum_episodes()))
    chosen = np.zeros(12, dtype=bool)
    chosen[[2, 7]] = True
    part = dataset.in_episodes(chosen)
    assert len(part) == 60
    index = torch.tensor([0, 31, 59])
    whole = dataset.gather(torch.tensor([60, 211, 239]))
    for mine, theirs in zip(part.gather(index), whole, strict=True):
        assert torch.equal(mine, theirs)
    assert PENDULUM.observation_space.shape == dataset.spaces.observation_shape


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("largest", [1.0000001, 1.000005, 1.0001])
def test_rounding_is_no_action_beyond_the_bounds(tmp_path: Path, name: str, largest: float) -> None:
    scale = np.float32(largest / max(np.abs(e.actions).max() for e in pendulum_episodes()))
    path = WRITERS[name](
        tmp_path / name, tuple(e._replace(actions=e.actions * scale) for e in pendulum_episodes())
    )
    if largest > 1.00005:
        with pytest.raises(ArtefactError, match=r"actions reach ±1\.0001, .* --action-range"):
            read_plain(path)
        return
    dataset = read_plain(path)
    assert np.abs(dataset.action).max() <= 1.0 and dataset.clipped == 0
