"""Collecting offline data: rules trade in the vectorised environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import BEHAVIOURS, CollectSettings, EnvSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError
from finflow_sb3.market.cache import cache_folder, content_key
from finflow_sb3.offline.behaviours import RuleBook
from finflow_sb3.offline.dataset import OfflineDataset, read_dataset, write_dataset
from finflow_sb3.offline.parts import Parts, Wave
from finflow_sb3.stopping import stop_on_signal

__all__ = [
    "CollectionStopped",
    "cached_dataset",
    "collect_dataset",
    "dataset_key",
    "require_fit",
]

VERSION = 4
# Recorded actions stay off the corners of the box: there a squashed Gaussian has to put its mean
# at infinity, and a few such actions drag a whole policy along.
LARGEST_ACTION = 0.95
GATE_FLOOR = 0.08
# A process that is killed loses at most so many waves.
WAVES_A_PART = 8
Progress = Callable[[int, int], None]


class CollectionStopped(KeyboardInterrupt):
    """A signal has stopped a collection; what it had come to is kept where there are parts."""


def dataset_key(
    market: ObservedMarket, env: EnvSettings, collect: CollectSettings, seed: int
) -> str:
    """A hash of everything that a dataset depends on."""
    return content_key(
        VERSION,
        market.prices.dates,
        market.prices.close,
        market.prices.cash_rate,
        market.prices.assets,
        dataclasses.asdict(market.settings),
        market.scaler.as_dict(),
        dataclasses.asdict(env),
        dataclasses.asdict(collect),
        seed,
    )


def cached_dataset(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    on_progress: Progress | None = None,
) -> tuple[OfflineDataset, Path]:
    """The dataset of these settings, from the cache or collected now.

    A collection that was stopped or killed goes on where it was.

    Raises
    ------
    CollectionStopped
        If a signal stops it; what was collected is kept.
    """
    path = cache_folder() / "datasets" / f"{dataset_key(market, env, collect, seed)}.h5"
    if path.exists():
        try:
            return read_dataset(path), path
        except ArtefactError:
            path.unlink()  # an unreadable cache entry is as good as none
    parts = Parts(path)
    try:
        dataset = collect_dataset(market, env, collect, seed, on_progress, parts)
    except ArtefactError:
        parts.remove()  # and so are parts of one
        dataset = collect_dataset(market, env, collect, seed, on_progress, parts)
    write_dataset(dataset, path)
    parts.remove()
    return dataset, path


def collect_dataset(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    on_progress: Progress | None = None,
    parts: Parts | None = None,
) -> OfflineDataset:
    """Episodes of all rules in equal shares, on the training split.

    Parameters
    ----------
    on_progress : called with (episodes done, episodes)
    parts : where waves are kept while it goes on, and taken from if there are some

    Raises
    ------
    CollectionStopped
        If a signal stops it.
    ArtefactError
        If parts are damaged.
    """
    rng = np.random.default_rng(seed)
    order = [BEHAVIOURS.index(name) for name in collect.behaviours]
    rules = np.resize(np.array(order), collect.episodes)
    waves: list[Wave] = [] if parts is None else parts.restore(rng)
    kept = len(waves)
    with stop_on_signal() as stop:
        for start in range(kept * collect.n_envs, collect.episodes, collect.n_envs):
            some = rules[start : start + collect.n_envs]
            waves.append(_one_wave(market, env, some, collect, rng))
            if on_progress is not None:
                on_progress(min(start + collect.n_envs, collect.episodes), collect.episodes)
            if parts is not None and (stop.asked or len(waves) - kept == WAVES_A_PART):
                parts.add(waves[kept:], kept, rng)
                kept = len(waves)
            if stop.asked:
                raise CollectionStopped
    return _joined(market, env, collect, seed, rules, waves)


def _one_wave(
    market: ObservedMarket,
    env: EnvSettings,
    rules: NDArray[np.int64],
    collect: CollectSettings,
    rng: np.random.Generator,
) -> Wave:
    """One episode of each of B portfolios; arrays [B, L, ...] and their lengths."""
    seeds = [int(s) for s in rng.integers(2**31, size=len(rules))]
    batch = PortfolioBatch(market, market.splits.train, len(rules), env, seeds=list(seeds))
    batch.reset()
    book = RuleBook(batch, rules, rng)
    length = batch.episode_length
    first_row = batch.row.copy()
    states = [batch.portfolio_block()]
    actions, rewards, distances = [], [], []
    terminated = np.zeros(len(rules), dtype=bool)
    lengths = np.zeros(len(rules), dtype=np.int64)
    for _ in range(length):
        wanted = book.targets()
        noise = rng.normal(0.0, collect.noise, size=(len(rules), market.layout.action_size))
        action = batch.invert(wanted, GATE_FLOOR) + noise
        action = np.clip(action, -LARGEST_ACTION, LARGEST_ACTION).astype(np.float32)
        distances.append(0.5 * np.abs(batch.target(action) - wanted).sum(axis=1))
        out = batch.step(action)
        lengths += ~terminated
        terminated |= out.terminated
        states.append(batch.portfolio_block())
        actions.append(action)
        rewards.append(out.rewards)
    return {
        "first_row": first_row,
        "lengths": lengths,
        "terminal": terminated,
        "states": np.stack(states, axis=1),
        "action": np.stack(actions, axis=1),
        "reward": np.stack(rewards, axis=1),
        "distance": np.stack(distances, axis=1).astype(np.float32),
    }


def _joined(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    rules: NDArray[np.int64],
    waves: list[Wave],
) -> OfflineDataset:
    lengths = np.concatenate([w["lengths"] for w in waves])
    terminal = np.concatenate([w["terminal"] for w in waves])
    first = np.concatenate([w["first_row"] for w in waves])

    def valid(name: str, extra: int = 0) -> NDArray[Any]:
        """The part of [B, L + extra, ...] arrays that lies within each episode, flat."""
        parts = []
        for wave in waves:
            inside = np.arange(wave[name].shape[1]) < wave["lengths"][:, None] + extra
            parts.append(wave[name][inside])
        return np.concatenate(parts)

    episode = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(episode)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return OfflineDataset(
        layout=market.layout,
        scaler=market.scaler,
        market_rows=market.rows,
        states=valid("states", extra=1),
        row=(first[episode] + within).astype(np.int32),
        action=valid("action"),
        reward=valid("reward"),
        distance=valid("distance"),
        episode=episode.astype(np.int32),
        terminal=terminal,
        timeout=~terminal,
        behaviour=rules.astype(np.int32),
        behaviours=BEHAVIOURS,
        settings={
            "env": dataclasses.asdict(env),
            "collect": dataclasses.asdict(collect),
            "market": dataclasses.asdict(market.settings),
            "source": market.prices.source,
            "seed": seed,
        },
    )


def require_fit(
    dataset: OfflineDataset, market: ObservedMarket, env: EnvSettings, what: str
) -> None:
    """Refuse a dataset that would teach something else than this market and environment.

    Raises
    ------
    ArtefactError
        If universe, features, scaler, prices or environment settings differ, or it reaches
        beyond the training split; the message names the first difference.
    """
    market.layout.require_equal(dataset.layout, what)
    for name, mine in dataclasses.asdict(env).items():
        theirs = dataset.settings.get("env", {}).get(name)
        if theirs != mine:
            raise ArtefactError(f"{what}: was collected with {name} {theirs!r}, not {mine!r}")
    used = int(dataset.row.max()) + 2
    if used > market.splits.train.stop:
        raise ArtefactError(
            f"{what}: reaches beyond the training split ({market.prices.dates[used - 1]}); "
            "collect it again with these split dates"
        )
    if dataset.scaler != market.scaler or not np.array_equal(
        dataset.market_rows[market.splits.train.start : used],
        market.rows[market.splits.train.start : used],
    ):
        raise ArtefactError(f"{what}: was collected on other prices or splits; collect it again")
