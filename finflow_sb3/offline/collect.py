"""Collecting offline data: rules trade in the vectorised environment."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from finflow_sb3.config import BEHAVIOURS, CollectSettings, EnvSettings, MarketSettings
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError
from finflow_sb3.files import storing
from finflow_sb3.market.cache import cache_folder, content_key
from finflow_sb3.offline.behaviours import RuleBook
from finflow_sb3.offline.dataset import PARTIAL, Head, OfflineDataset
from finflow_sb3.offline.dataset_checks import Sizes
from finflow_sb3.offline.dataset_file import new_dataset, read_dataset
from finflow_sb3.offline.own import NOTHING, Own
from finflow_sb3.offline.own_rules import OwnRule
from finflow_sb3.offline.parts import Parts
from finflow_sb3.offline.playing import Recorder, noisy_action
from finflow_sb3.offline.record import record_waves
from finflow_sb3.offline.waves import Wave, pieces
from finflow_sb3.stopping import stop_on_signal

__all__ = [
    "CollectionStopped",
    "cached_dataset",
    "collect_dataset",
    "collect_file",
    "dataset_key",
    "market_key",
    "require_fit",
    "stopped_when_interrupted",
]

VERSION = 5
# Waves are kept on disk whenever they have come to so many: what a killed process loses.
PART_TRANSITIONS = 1 << 17
Progress = Callable[[int, int], None]
StageProgress = Callable[[str, int, int], None]
"""As `Watch.progress`: called with a stage, units of it that are done, and all."""


class CollectionStopped(KeyboardInterrupt):
    """A signal has stopped a collection; what it had come to is kept where there are parts."""


@contextmanager
def stopped_when_interrupted() -> Iterator[None]:
    """Call an interruption a stop: where a file is made of parts, they are whole.

    Raises
    ------
    CollectionStopped
        At Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise CollectionStopped from None


def dataset_key(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    own: Own = NOTHING,
) -> str:
    """A hash of everything that a dataset depends on."""
    return content_key(
        VERSION,
        market.prices.dates,
        market.prices.close,
        market.prices.cash_rate,
        market.prices.assets,
        _deciding(market.settings),
        market.scaler.as_dict(),
        dataclasses.asdict(env),
        dataclasses.asdict(collect),
        seed,
        *([own.as_dict()] if own.names else []),
        *market.prices.listing(),
    )


def _deciding(settings: MarketSettings) -> dict[str, Any]:
    """Settings that numbers depend on: what `partial` lets in shows in the prices."""
    return {k: v for k, v in dataclasses.asdict(settings).items() if k != "partial"}


def market_key(market: ObservedMarket) -> str:
    """A hash of what a collection sees of a market: prices up to the end of training."""
    known = market.prices.rows(0, market.splits.train.stop)
    return content_key(
        known.dates,
        known.close,
        known.cash_rate,
        known.assets,
        market.scaler.as_dict(),
        *known.listing(),
    )


def cached_dataset(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    on_progress: StageProgress | None = None,
    own: Own = NOTHING,
) -> tuple[OfflineDataset, Path]:
    """The dataset of these settings, from the cache or collected now.

    A collection that was stopped or killed goes on where it was. Of a rule of the user's own the
    key holds the text of the file that it stands in.

    Raises
    ------
    CollectionStopped
        If a signal stops it; what was collected is kept.
    ConfigError
        If a rule of the user's own has no such file.
    """
    own.require_known()
    path = cache_folder() / "datasets" / f"{dataset_key(market, env, collect, seed, own)}.h5"
    with only_one(path):
        return _cached(market, env, collect, seed, path, on_progress, own), path


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Have other processes wait that would collect the same dataset; they find it then.

    Raises
    ------
    StorageError
        If the cache can't be written to.
    """
    lock = FileLock(path.with_suffix(".lock"))
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cached(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    path: Path,
    on_progress: StageProgress | None,
    own: Own,
) -> OfflineDataset:
    parts = Parts(path)
    if path.exists():
        try:
            dataset = read_dataset(path, _of_stage(on_progress, "checking data"))
            parts.remove()  # of a process that was stopped after it had written the file
            return dataset
        except ArtefactError:
            path.unlink()  # an unreadable cache entry is as good as none
    try:
        dataset = collect_file(market, env, collect, seed, parts, path, on_progress, own)
    except ArtefactError:
        parts.remove()  # and so are parts of one
        dataset = collect_file(market, env, collect, seed, parts, path, on_progress, own)
    parts.remove()
    return dataset


def collect_file(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    parts: Parts,
    path: Path,
    on_progress: StageProgress | None = None,
    own: Own = NOTHING,
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
    episodes = _of_stage(on_progress, "episodes")
    _collect_parts(market, env, collect, seed, parts, episodes, own)
    behaviour = own.behaviour_of_episodes(collect, env)
    head = _head(market, env, collect, seed, own)
    sizes = Sizes(len(market.rows), parts.transitions(), len(behaviour), len(head.behaviours))
    with stopped_when_interrupted():
        with new_dataset(path, head, sizes) as add:
            add({"market_rows": market.rows, "behaviour": behaviour})
            written, writing = 0, _of_stage(on_progress, "writing data")
            for piece in pieces(parts.waves()):
                add(piece)
                written += len(piece["row"])
                if writing is not None:
                    writing(written, sizes.transitions)
        return read_dataset(path, _of_stage(on_progress, "checking data"))


def _of_stage(on_progress: StageProgress | None, stage: str) -> Progress | None:
    return None if on_progress is None else partial(on_progress, stage)


def collect_dataset(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    on_progress: Progress | None = None,
    own: Own = NOTHING,
) -> OfflineDataset:
    """Episodes of all rules in equal shares, on the training split; in memory.

    Parameters
    ----------
    on_progress : called with (episodes done, episodes)
    own : rules that take turns with those of the settings, and records that follow them
    """
    waves = _waves(market, env, collect, np.random.default_rng(seed), 0, on_progress, own)
    found = list(pieces(waves))
    arrays: dict[str, Any] = {
        name: np.concatenate([piece[name] for piece in found]) for name in found[0]
    }
    head = _head(market, env, collect, seed, own)
    behaviour = own.behaviour_of_episodes(collect, env)
    return OfflineDataset(**vars(head), **arrays, market_rows=market.rows, behaviour=behaviour)


def _collect_parts(
    market: ObservedMarket,
    env: EnvSettings,
    collect: CollectSettings,
    seed: int,
    parts: Parts,
    on_progress: Progress | None,
    own: Own,
) -> None:
    """Have all waves of a collection on disk."""
    rng = np.random.default_rng(seed)
    done = parts.restore(rng)
    waves: list[Wave] = []
    with stop_on_signal() as stop:
        for wave in _waves(market, env, collect, rng, done, on_progress, own):
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
    own: Own,
) -> Iterator[Wave]:
    """The waves after the first `done`: of rules, then of records."""
    rules, size = own.rule_of_episodes(collect), collect.n_envs
    total = len(own.behaviour_of_episodes(collect, env))
    starts = range(0, len(rules), size)
    of_rules = (
        _one_wave(market, env, rules[start : start + size], collect, rng, own.rules)
        for start in starts[done:]
    )
    of_records = itertools.chain.from_iterable(
        record_waves(market, env, each, size) for each in own.replays
    )
    played = min(done * size, len(rules))
    # Records draw nothing: those that are kept already can be played once more.
    for place, wave in enumerate(itertools.chain(of_rules, of_records), min(done, len(starts))):
        played += len(wave["lengths"])
        if place < done:
            continue
        if on_progress is not None:
            on_progress(played, total)
        yield wave


def _one_wave(
    market: ObservedMarket,
    env: EnvSettings,
    rules: NDArray[np.int32],
    collect: CollectSettings,
    rng: np.random.Generator,
    own: tuple[OwnRule, ...] = (),
) -> Wave:
    """One episode of each of B portfolios; arrays [B, L, ...] and their lengths."""
    seeds = [int(s) for s in rng.integers(2**31, size=len(rules))]
    batch = PortfolioBatch(market, market.splits.train, len(rules), env, seeds=list(seeds))
    batch.reset()
    book = RuleBook(batch, rules.astype(np.int64), rng, own)
    recorder = Recorder(batch)
    for _ in range(batch.episode_length):
        wanted = book.targets()
        noise = rng.normal(0.0, collect.noise, size=(len(rules), market.layout.action_size))
        action = noisy_action(batch, wanted, noise)
        recorder.distances.append(0.5 * np.abs(batch.target(action) - wanted).sum(axis=1))
        recorder.step(action)
    return recorder.wave()


def _head(
    market: ObservedMarket, env: EnvSettings, collect: CollectSettings, seed: int, own: Own
) -> Head:
    settings = {
        "env": dataclasses.asdict(env),
        "collect": dataclasses.asdict(collect),
        "market": dataclasses.asdict(market.settings),
        "source": market.prices.source,
        "first_date": str(market.prices.dates[0]),
        "seed": seed,
        **({} if market.tradable is None else {PARTIAL: True}),
        **({"own": own.as_dict()} if own.names else {}),
    }
    return Head(market.layout, market.scaler, (*BEHAVIOURS, *own.names), settings)


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
    made = dataset.settings.get("env", {})
    # A setting that is younger than the dataset was at its default, which is off.
    theirs_of = {**dataclasses.asdict(EnvSettings()), **made} if made else {}
    for name, mine in dataclasses.asdict(env).items():
        theirs = theirs_of.get(name)
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
