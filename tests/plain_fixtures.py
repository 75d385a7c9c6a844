"""Episodes of an environment without a market, and files of them as other libraries write them."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from d3rlpy.dataset import Episode
from d3rlpy.dataset.io import dump
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage

from finflow_sb3.offline.plain import PlainEpisode

PENDULUM = gymnasium.make("Pendulum-v1")


@lru_cache(maxsize=2)
def pendulum_episodes(count: int = 12, length: int = 30) -> tuple[PlainEpisode, ...]:
    """Random actions in Pendulum-v1, whose bounds are ±2; time ends each episode."""
    env = gymnasium.make("Pendulum-v1", max_episode_steps=length)
    env.action_space.seed(0)
    episodes = []
    for seed in range(count):
        observation, _ = env.reset(seed=seed)
        seen, done, paid, ended = [observation], [], [], False
        while not ended:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
            seen.append(observation)
            done.append(action)
            paid.append(reward)
        episodes.append(
            PlainEpisode(np.stack(seen), np.stack(done), np.array(paid, np.float32), terminated)
        )
    return tuple(episodes)


def random_episodes(*ends: bool, length: int = 7, sizes: tuple[int, int] = (3, 2)) -> Any:
    """One episode for each of `ends`, which say whether it was terminated; actions in ±1."""
    rng = np.random.default_rng(len(ends))
    return tuple(
        PlainEpisode(
            rng.normal(size=(length + i + 1, sizes[0])).astype(np.float32),
            rng.uniform(-0.9, 0.9, size=(length + i, sizes[1])).astype(np.float32),
            rng.normal(size=length + i).astype(np.float32),
            terminal,
        )
        for i, terminal in enumerate(ends)
    )


def d3rlpy_episodes(episodes: tuple[PlainEpisode, ...]) -> list[Episode]:
    """As d3rlpy has them: an observation for each action."""
    return [
        Episode(e.observations[:-1], e.actions, e.rewards[:, None], e.terminal) for e in episodes
    ]


def write_d3rlpy_file(path: Path, episodes: tuple[PlainEpisode, ...]) -> Path:
    """Version 2.1, by d3rlpy itself."""
    buffer = io.BytesIO()
    dump(d3rlpy_episodes(episodes), buffer)
    path.write_bytes(buffer.getvalue())
    return path


def write_d3rlpy_v1(path: Path, episodes: tuple[PlainEpisode, ...], flags: bool = True) -> Path:
    """Version 1: flat arrays, with flags for the ends of episodes or without."""
    own = d3rlpy_episodes(episodes)
    last = np.concatenate([np.arange(len(e)) == len(e) - 1 for e in own])
    ended = np.concatenate([np.full(len(e), e.terminated) for e in own])
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = np.concatenate([getattr(e, name) for e in own])
        file["terminals"] = (last & ended).astype(np.float32)
        if flags:
            file["episode_terminals"] = last.astype(np.float32)
        file["discrete_action"] = False
        file["version"] = "1.0"
    return path


def write_minari_data(
    folder: Path,
    episodes: tuple[PlainEpisode, ...],
    observation_space: Any = PENDULUM.observation_space,
    action_space: Any = PENDULUM.action_space,
    form: str = "hdf5",
    env: Any = None,
) -> Path:
    """By Minari itself, into the folder of a dataset."""
    data = folder / "data"
    data.mkdir(parents=True)
    storage = MinariStorage.new(data, observation_space, action_space, env, form)
    storage.update_metadata({"dataset_id": f"{folder.name}", "minari_version": "0.5.4"})
    storage.update_episodes(
        EpisodeBuffer(
            observations=e.observations,
            actions=e.actions,
            rewards=e.rewards,
            terminations=[False] * (len(e.rewards) - 1) + [e.terminal],
            truncations=[False] * (len(e.rewards) - 1) + [not e.terminal],
        )
        for e in episodes
    )
    return folder
