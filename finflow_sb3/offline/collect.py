"""Collecting offline data: rules trade in the vectorised environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
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
from finflow_sb3.offline.dataset import Head, OfflineDataset
from finflow_sb3.offline.dataset_checks import Sizes
from finflow_sb3.offline.dataset_file import new_dataset, read_dataset
from finflow_sb3.offline.parts import Parts
from finflow_sb3.offline.waves import Wave, pieces
from finflow_sb3.stopping import stop_on_signal

__all__ = [
    "CollectionStopped",
    "cached_dataset",
    "collect_dataset",
    "collect_file",
    "dataset_key",
    "require_fit",
]

VERSION = 5
# Recorded actions stay off the corners of the box: there a squashed Gaussian has to put its mean
# at infinity, and a few such actions drag a whole policy along.
LARGEST_ACTION = 0.95
GATE_FLOOR = 0.08
# Waves are kept on disk whenever they have come to so many: what a killed process loses.
PART_TRANSITIONS = 1 << 17
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
        dataset = collect_file(market, env, collect, seed, parts, path, on_progress)
    except ArtefactError:
        parts.remove()  # and so are parts of one
        dataset = collect_file(market, env, collect, seed, parts, path, on_progress)
    parts.remove()
    return dataset, path


def collect_file(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    parts: Parts,
    path: Path,
    on_progress: Progress | None = None,
) -> OfflineDataset:
    """`collect_dataset` into a file, which is then mapped.

    In memory is never more than what `n_envs` portfolios do in an episode, and one part.

    Parameters
    ----------
    parts : where it is kept while it goes on, and taken from if it was begun; the caller
        removes them

    Raises
    ------
    CollectionStopped
        If a signal stops it; what was collected is kept.
    ArtefactError
        If parts are damaged.
    StorageError
        If the disk is full.
    """
    _collect_parts(market, env, collect, seed, parts, on_progress)
    rules = _rules(collect)
    head = _head(market, env, collect, seed)
    sizes = Sizes(len(market.rows), parts.transitions(), len(rules), len(head.behaviours))
    with new_dataset(path, head, sizes) as add:
        add({"market_rows": market.rows, "behaviour": rules})
        for piece in pieces(parts.waves()):
            add(piece)
    return read_dataset(path)


def collect_dataset(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    on_progress: Progress | None = None,
) -> OfflineDataset:
    """Episodes of all rules in equal shares, on the training split; in memory.

    Parameters
    ----------
    on_progress : called with (episodes done, episodes)
    """
    waves = _waves(market, env, collect, np.random.default_rng(seed), 0, on_progress)
    found = list(pieces(waves))
    arrays: dict[str, Any] = {
        name: np.concatenate([piece[name] for piece in found]) for name in found[0]
    }
    head = _head(market, env, collect, seed)
    return OfflineDataset(
        **vars(head), **arrays, market_rows=market.rows, behaviour=_rules(collect)
    )


def _collect_parts(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    parts: Parts,
    on_progress: Progress | None,
) -> None:
    """Have all waves of a collection on disk."""
    rng = np.random.default_rng(seed)
    done = parts.restore(rng)
    waves: list[Wave] = []
    with stop_on_signal() as stop:
        for wave in _waves(market, env, collect, rng, done, on_progress):
            waves.append(wave)
            if stop.asked or _transitions(waves) >= PART_TRANSITIONS:
                parts.add(waves, done, rng)
                done, waves = done + len(waves), []
            if stop.asked:
                raise CollectionStopped
    if waves:
        parts.add(waves, done, rng)


def _transitions(waves: list[Wave]) -> int:
    return sum(wave["reward"].size for wave in waves)


def _waves(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    rng: np.random.Generator,
    done: int,
    on_progress: Progress | None,
) -> Iterator[Wave]:
    """The waves after the first `done`."""
    rules, size = _rules(collect), collect.n_envs
    for start in range(done * size, collect.episodes, size):
        wave = _one_wave(market, env, rules[start : start + size], collect, rng)
        if on_progress is not None:
            on_progress(min(start + size, collect.episodes), collect.episodes)
        yield wave


def _rules(collect: CollectSettings) -> NDArray[np.int32]:
    """Every episode's rule, as an index into `BEHAVIOURS`; shape [E]."""
    order = [BEHAVIOURS.index(name) for name in collect.behaviours]
    return np.resize(np.array(order, dtype=np.int32), collect.episodes)


def _one_wave(
    market: ObservedMarket,
    env: EnvSettings,
    rules: NDArray[np.int32],
    collect: CollectSettings,
    rng: np.random.Generator,
) -> Wave:
    """One episode of each of B portfolios; arrays [B, L, ...] and their lengths."""
    seeds = [int(s) for s in rng.integers(2**31, size=len(rules))]
    batch = PortfolioBatch(market, market.splits.train, len(rules), env, seeds=list(seeds))
    batch.reset()
    book = RuleBook(batch, rules.astype(np.int64), rng)
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


def _head(market: ObservedMarket, env: EnvSettings, collect: CollectSettings, seed: int) -> Head:
    settings = {
        "env": dataclasses.asdict(env),
        "collect": dataclasses.asdict(collect),
        "market": dataclasses.asdict(market.settings),
        "source": market.prices.source,
        "seed": seed,
    }
    return Head(market.layout, market.scaler, BEHAVIOURS, settings)


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
