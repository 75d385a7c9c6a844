"""Offline data: what is recorded, written, read and refused."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from markets import random_prices, small_market

from finflow_sb3.config import BEHAVIOURS, CollectSettings, EnvSettings, MarketSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import observe
from finflow_sb3.errors import ArtefactError, ConfigError, StorageError
from finflow_sb3.offline import collect as module
from finflow_sb3.offline import dataset_file
from finflow_sb3.offline.collect import (
    cached_dataset,
    collect_dataset,
    collect_file,
    dataset_key,
)
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_checks import expected_forms
from finflow_sb3.offline.dataset_file import new_dataset, read_dataset, write_dataset
from finflow_sb3.offline.npz_files import write_npz
from finflow_sb3.offline.parts import Parts

ENV = EnvSettings(episode_length=12)
# A ruin at 97 % of the start ends many episodes early.
RUINOUS = EnvSettings(episode_length=40, ruin=0.97)
COLLECT = CollectSettings(episodes=20, n_envs=8)


@pytest.fixture(scope="module")
def plain() -> OfflineDataset:
    return collect_dataset(small_market(), ENV, COLLECT, seed=0)


@pytest.fixture(scope="module")
def ruined() -> OfflineDataset:
    return collect_dataset(small_market(), RUINOUS, COLLECT, seed=0)


# ------------------------------------------------------------------ what is recorded


def test_shapes_and_shares(plain: OfflineDataset) -> None:
    layout = small_market().layout
    n, e = 20 * 12, 20
    assert len(plain) == n
    assert plain.n_episodes == e
    assert plain.states.shape == (n + e, layout.portfolio_size)
    assert plain.action.shape == (n, layout.action_size)
    assert np.abs(plain.action).max() <= 1.0
    np.testing.assert_array_equal(plain.behaviour, np.arange(20) % len(BEHAVIOURS))
    np.testing.assert_array_equal(plain.episode, np.repeat(np.arange(20), 12))
    assert plain.timeout.all()
    assert not plain.terminal.any()
    train = small_market().splits.train
    assert plain.row.min() >= train.start
    assert plain.row.max() + 1 <= train.stop - 1
    counts = {name: row[0] for name, row in plain.returns_by_behaviour().items()}
    assert counts == {name: 3 if i < 4 else 2 for i, name in enumerate(BEHAVIOURS)}


def test_ruin_is_a_terminal_and_time_is_not(ruined: OfflineDataset) -> None:
    assert 0 < ruined.terminal.sum() < ruined.n_episodes
    np.testing.assert_array_equal(ruined.timeout, ~ruined.terminal)
    lengths = np.bincount(ruined.episode)
    np.testing.assert_array_equal(lengths[ruined.timeout], 40)
    ends = np.cumsum(lengths) - 1
    marks = ruined.gather(torch.arange(len(ruined))).terminals[:, 0].numpy()
    expected = np.zeros(len(ruined))
    expected[ends[ruined.terminal]] = 1.0
    np.testing.assert_array_equal(marks, expected)


class Recorded(PortfolioBatch):
    """A batch that remembers what it showed, was told, and paid."""

    waves: list[dict[str, list[Any]]]

    def reset(self, which: Any = None) -> None:
        super().reset(which)
        self.waves.append({"seen": [self.observations()], "action": [], "reward": [], "end": []})

    def step(self, actions: Any) -> Any:
        out = super().step(actions)
        wave = self.waves[-1]
        wave["seen"].append(out.observations)
        wave["action"].append(np.array(actions))
        wave["reward"].append(out.rewards)
        wave["end"].append(out.terminated)
        return out


@pytest.mark.parametrize(
    "kwargs", [{}, {"execution_lag": 1}, {"reward": "differential_sharpe", "action_base": "drift"}]
)
def test_gather_gives_what_the_environment_gave(
    kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observation, action, reward, next observation and end of every transition, bit for bit."""
    market = small_market(EnvSettings(**kwargs))
    env = dataclasses.replace(RUINOUS, **kwargs)
    Recorded.waves = []
    monkeypatch.setattr(module, "PortfolioBatch", Recorded)
    dataset = collect_dataset(market, env, COLLECT, seed=1)
    everything = dataset.gather(torch.arange(len(dataset)))
    place = 0
    for wave in Recorded.waves:
        for i in range(len(wave["seen"][0])):
            for t in range(40):
                for got, gave in (
                    (everything.observations, wave["seen"][t][i]),
                    (everything.actions, wave["action"][t][i]),
                    (everything.next_observations, wave["seen"][t + 1][i]),
                ):
                    np.testing.assert_array_equal(got[place].numpy(), gave)
                assert everything.rewards[place, 0].item() == wave["reward"][t][i]
                ended = bool(wave["end"][t][i])
                assert everything.terminals[place, 0].item() == ended
                place += 1
                if ended:
                    break
    assert place == len(dataset)
    shuffled = torch.tensor([5, 0, place - 1, 5])
    for whole, part in zip(everything, dataset.gather(shuffled), strict=True):
        assert torch.equal(whole[shuffled], part)


def test_the_same_seed_gives_the_same_data(plain: OfflineDataset) -> None:
    again = collect_dataset(small_market(), ENV, COLLECT, seed=0)
    other = collect_dataset(small_market(), ENV, COLLECT, seed=1)
    for name in expected_forms(plain.layout, plain.sizes):
        np.testing.assert_array_equal(getattr(again, name), getattr(plain, name))
    assert np.any(other.action != plain.action)


def test_chosen_rules_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    chosen = CollectSettings(episodes=5, n_envs=2, behaviours=("contrarian", "equal_weight"))
    dataset = collect_dataset(small_market(), ENV, chosen, 0, lambda a, b: seen.append((a, b)))
    names = [BEHAVIOURS[i] for i in dataset.behaviour]
    assert names == ["contrarian", "equal_weight", "contrarian", "equal_weight", "contrarian"]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    with pytest.raises(ConfigError, match="'x' is not known; known: anchor"):
        collect_dataset(small_market(), ENV, CollectSettings(behaviours=("x",)), 0)


# ------------------------------------------------------------------ files


def test_round_trip(ruined: OfflineDataset, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data.h5"
    write_dataset(ruined, path)
    again = read_dataset(path)
    for item in dataclasses.fields(OfflineDataset):
        mine, theirs = getattr(ruined, item.name), getattr(again, item.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs)
            assert mine.dtype == theirs.dtype
        elif item.name != "settings":
            assert mine == theirs, item.name
    assert again.settings["env"]["ruin"] == 0.97
    assert again.settings["seed"] == 0
    index = torch.arange(0, len(ruined), 7)
    for mine, theirs in zip(ruined.gather(index), again.gather(index), strict=True):
        assert torch.equal(mine, theirs)
    assert [p.name for p in path.parent.iterdir()] == ["data.h5"]


@pytest.mark.parametrize("each", [1, 37, 10**6])
def test_chunks_make_no_difference(
    ruined: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: int
) -> None:
    """Read some rows at a time; the boundary of a chunk is none of an episode."""
    write_dataset(ruined, tmp_path / "data.h5")
    monkeypatch.setattr(dataset_file, "CHUNK_BYTES", each)
    monkeypatch.setattr(dataset_file, "QUICK_BYTES", 0)
    seen: list[tuple[int, int]] = []
    again = read_dataset(tmp_path / "data.h5", lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(again.episode, ruined.episode)
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("env", [ENV, RUINOUS], ids=["whole", "ruined"])
def test_a_file_holds_what_memory_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: EnvSettings
) -> None:
    monkeypatch.setattr(module, "PART_TRANSITIONS", 100)
    path = tmp_path / "data.h5"
    market = small_market()
    mapped = collect_file(market, env, COLLECT, 0, Parts(path), path)
    mine = collect_dataset(market, env, COLLECT, seed=0)
    assert len(list(tmp_path.glob("data.h5.part/waves_*"))) > 1
    for name in expected_forms(mine.layout, mine.sizes):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(mine, name), err_msg=name)
        assert getattr(mapped, name).dtype == getattr(mine, name).dtype
    assert mapped.head.as_json() == mine.head.as_json()
    assert mapped.returns_by_behaviour() == mine.returns_by_behaviour()
    mapped.states[:] = 0.0  # stays in this process
    np.testing.assert_array_equal(read_dataset(path).states, mine.states)


def test_a_piece_that_is_missing_is_noticed(plain: OfflineDataset, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    with (
        pytest.raises(ValueError, match="states: 0 of"),
        new_dataset(path, plain.head, plain.sizes) as add,
    ):
        add({"market_rows": plain.market_rows})
    assert not list(tmp_path.iterdir())


def rewrite(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[h5py.File], None]:
    """Replace an array by what `change` makes of it."""

    def damage(file: h5py.File) -> None:
        array = np.asarray(file[name])
        changed = change(array)
        del file[name]
        file[name] = array if changed is None else changed

    return damage


def put(value: float, place: Any = 3) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[place] = value

    return change


def moved(name: str, **how: Any) -> Callable[[h5py.File], None]:
    """Store an array in another way, from where it cannot be mapped."""

    def damage(file: h5py.File) -> None:
        array = np.asarray(file[name])
        del file[name]
        file.create_dataset(name, data=array, **how)

    return damage


def elsewhere(file: h5py.File) -> None:
    """The array lies in another file."""
    outside = Path(file.filename).with_name("outside.h5")
    with h5py.File(outside, "w") as other:
        other["reward"] = np.asarray(file["reward"])
    del file["reward"]
    file["reward"] = h5py.ExternalLink(str(outside), "/reward")


def raw_elsewhere(file: h5py.File) -> None:
    array = np.asarray(file["reward"])
    outside = Path(file.filename).with_name("outside.bin")
    outside.write_bytes(array.tobytes())
    del file["reward"]
    pieces = [(str(outside), 0, array.nbytes)]
    file.create_dataset("reward", array.shape, array.dtype, external=pieces)


def virtual(file: h5py.File) -> None:
    array = np.asarray(file["reward"])
    del file["reward"]
    file["hidden"] = array
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[:] = h5py.VirtualSource(file["hidden"])
    file.create_virtual_dataset("reward", layout)


DAMAGES: list[tuple[Callable[[h5py.File], None], str]] = [
    (rewrite("reward", put(np.nan)), "reward holds NaN"),
    (rewrite("distance", put(np.inf)), "distance holds NaN or infinite"),
    (rewrite("states", put(np.nan)), "states holds NaN"),
    (rewrite("market_rows", put(np.nan)), "market_rows holds NaN"),
    (rewrite("action", put(1.5)), r"action lies outside \[-1, 1\]"),
    (rewrite("action", lambda a: a[:, :-1]), "action has shape"),
    (rewrite("action", lambda a: a.astype(np.float64)), "action is float64, expected float32"),
    (rewrite("action", lambda a: a.astype("S8")), r"action is \|S8, expected float32"),
    (rewrite("states", lambda a: a[:-1]), "states has shape"),
    (rewrite("market_rows", lambda a: a[:, 1:]), "market_rows has shape"),
    (rewrite("terminal", lambda a: a[:-1]), "terminal has shape"),
    (rewrite("row", put(10**6)), "row points outside market_rows"),
    (rewrite("row", put(-1)), "row points outside market_rows"),
    (rewrite("row", lambda a: a[:, None]), "row has shape"),
    (rewrite("episode", put(7)), "episode does not count from 0 to 19"),
    (rewrite("episode", lambda a: a + 1), "episode does not count"),
    (rewrite("episode", lambda a: np.minimum(a, 18)), "episode does not count"),
    (rewrite("behaviour", put(99)), "behaviour points outside behaviours"),
    (rewrite("reward", put(0.125)), "do not match its checksum"),
    (moved("reward", chunks=(7,)), "reward does not lie in one piece"),
    (moved("action", compression="gzip"), "action does not lie in one piece"),
    (elsewhere, "reward does not lie in one piece"),
    (raw_elsewhere, "reward does not lie in one piece"),
    (virtual, "reward does not lie in one piece"),
    (lambda file: file.__delitem__("reward"), "reward"),
    (lambda file: (file.__delitem__("reward"), file.create_group("reward")), "cannot be read"),
    (lambda file: file.attrs.__setitem__("checksum", "no bytes"), "cannot be read"),
    (lambda file: file.attrs.__setitem__("settings", "[1]"), "settings are no mapping"),
    (lambda file: file.attrs.__setitem__("behaviours", "[1, 2]"), "behaviours are no names"),
    (rewrite("terminal", lambda a: ~a), "do not match its checksum"),
    (lambda file: file.attrs.__setitem__("settings", "{}"), "do not match its checksum"),
    (lambda file: file.attrs.__delitem__("layout"), "layout"),
    (lambda file: file.attrs.__setitem__("layout", "{}"), "layout.* not whole"),
    (lambda file: file.attrs.__setitem__("scaler", "[1, 2"), "cannot be read"),
    (lambda file: file.attrs.__setitem__("format", "other"), "finflow dataset"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[m for _, m in DAMAGES])
def test_each_corruption_is_refused_by_name(
    plain: OfflineDataset, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "data.h5"
    write_dataset(plain, path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_dataset(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_refused(plain: OfflineDataset, tmp_path: Path, share: float) -> None:
    path = tmp_path / "data.h5"
    write_dataset(plain, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtefactError, match=r"data\.h5: cannot be read") as caught:
        read_dataset(path)
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such dataset"):
        read_dataset(tmp_path / "data.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["observations"] = np.zeros(3)
    with pytest.raises(ArtefactError, match="no finflow dataset"):
        read_dataset(tmp_path / "other.h5")


def test_npz_export(ruined: OfflineDataset, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    write_npz(ruined, path)
    n = len(ruined)
    everything = ruined.gather(torch.arange(n))
    with np.load(path, allow_pickle=False) as archive:
        assert {len(archive[name]) for name in archive} == {n}
        np.testing.assert_array_equal(archive["observations"], everything.observations.numpy())
        np.testing.assert_array_equal(
            archive["next_observations"], everything.next_observations.numpy()
        )
        np.testing.assert_array_equal(archive["actions"], ruined.action)
        np.testing.assert_array_equal(archive["rewards"], ruined.reward)
        assert archive["terminals"].sum() == ruined.terminal.sum()
        assert archive["timeouts"].sum() == ruined.timeout.sum()
        assert not np.any(archive["terminals"] & archive["timeouts"])
        # Within an episode a successor is the next observation.
        same = np.flatnonzero(~(archive["terminals"] | archive["timeouts"]))
        np.testing.assert_array_equal(
            archive["next_observations"][same], archive["observations"][same + 1]
        )
        assert set(archive["behaviours"]) == set(BEHAVIOURS)


# ------------------------------------------------------------------ the cache


def test_key_changes_with_whatever_matters() -> None:
    market = small_market()
    base = dataset_key(market, ENV, COLLECT, 0)
    assert base == dataset_key(market, ENV, COLLECT, 0)
    close = market.prices.close.copy()
    close[100, 2] *= 1.0001
    moved = observe(
        dataclasses.replace(market.prices, close=close), market.settings, market.env, market.scaler
    )
    split = observe(
        random_prices(5, 600, cash_rate=1e-4),
        MarketSettings(anchor_refit=63, train_fraction=0.5),
        scaler=market.scaler,
    )
    others = [
        dataset_key(moved, ENV, COLLECT, 0),
        dataset_key(split, ENV, COLLECT, 0),
        dataset_key(small_market(seed=1), ENV, COLLECT, 0),
        dataset_key(market, dataclasses.replace(ENV, lambda_turn=0.5), COLLECT, 0),
        dataset_key(market, ENV, dataclasses.replace(COLLECT, noise=0.2), 0),
        dataset_key(market, ENV, dataclasses.replace(COLLECT, behaviours=("anchor",)), 0),
        dataset_key(market, ENV, COLLECT, 1),
    ]
    assert len({base, *others}) == len(others) + 1


def test_cached_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    market = small_market()
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path))
    seen: list[int] = []
    small = CollectSettings(episodes=8, n_envs=8)

    def cached(seed: int = 0) -> tuple[OfflineDataset, Path]:
        return cached_dataset(
            market,
            ENV,
            small,
            seed,
            lambda stage, done, _: seen.append(done) if stage == "episodes" else None,
        )

    first, path = cached()
    second, same = cached()
    assert path == same
    assert seen == [8]
    np.testing.assert_array_equal(first.action, second.action)
    assert cached(seed=1)[1] != path
    assert seen == [8, 8]
    kept = path.read_bytes()
    path.unlink()  # what is mapped is not cut
    path.write_bytes(kept[:100])
    third, _ = cached()
    assert seen == [8, 8, 8]
    np.testing.assert_array_equal(first.action, third.action)
    read_dataset(path)


def test_a_full_disk_is_found_before_anything_is_written(
    plain: OfflineDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.h5"
    write_dataset(plain, path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"data\.h5: .*disk full") as caught:
        write_dataset(plain, path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["data.h5"]


def test_two_that_collect_the_same_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds what the first has written."""
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(tmp_path))
    market, small = small_market(), CollectSettings(episodes=8, n_envs=2)
    stages: list[str] = []
    ready = threading.Barrier(2)

    def one() -> OfflineDataset:
        ready.wait()
        return cached_dataset(market, ENV, small, 0, lambda stage, *_: stages.append(stage))[0]

    # In one process a signal can only be listened to by its main thread.
    monkeypatch.setattr(module, "stop_on_signal", lambda: nullcontext(SimpleNamespace(asked=False)))
    with ThreadPoolExecutor(2) as pool:
        first, second = (each.result() for each in [pool.submit(one), pool.submit(one)])
    np.testing.assert_array_equal(first.action, second.action)
    assert stages.count("episodes") == 4
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cache"
    place.write_text("a file where a folder belongs")
    monkeypatch.setenv("FINFLOW_CACHE_DIR", str(place))
    with pytest.raises(StorageError, match=r"\.h5: could not be written") as caught:
        cached_dataset(small_market(), ENV, CollectSettings(episodes=8, n_envs=8), 0)
    assert "\n" not in str(caught.value)
