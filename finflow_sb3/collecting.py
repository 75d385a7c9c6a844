"""Collecting offline data, and the data of a stage: named, from the cache, or collected now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from finflow_sb3.config import Settings
from finflow_sb3.config_files import plain_yaml
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError
from finflow_sb3.offline.collect import (
    cached_dataset,
    collect_file,
    market_key,
    require_fit,
    stopped_when_interrupted,
)
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.dataset_file import read_dataset
from finflow_sb3.offline.npz_files import write_npz
from finflow_sb3.offline.own import NOTHING, Own, names_of, require_names
from finflow_sb3.offline.own_rules import GivenRule, own_rules
from finflow_sb3.offline.parts import Parts
from finflow_sb3.offline.record import read_record
from finflow_sb3.opening import open_own, open_pinned
from finflow_sb3.parallel import require_alone
from finflow_sb3.results import Collected, Watch

__all__ = ["collect", "collect_into", "offline_data", "transitions_for"]


def collect(
    settings: Settings,
    save_path: str | Path | None = None,
    watch: Watch | None = None,
    *,
    behaviours: Sequence[GivenRule] = (),
    records: Sequence[str | Path] = (),
    only_own: bool = False,
) -> Collected:
    """Collect offline data; into the cache, or into `save_path` (`.h5`, or `.npz` to export).

    Parameters
    ----------
    behaviours : rules of your own, which take turns with those of the settings: functions from
        a `Past` to weights, or their names as ``module:function``
    records : files of weights that were held, whose episodes are added
    only_own : leave out the rules of the settings

    Raises
    ------
    CollectionStopped
        If a signal stops it; `resume_collecting` goes on.
    """
    require_alone("collect")
    watch = watch or Watch()
    path = None if save_path is None else Path(save_path)
    if path is not None and path.suffix not in (".h5", ".hdf5", ".npz"):
        raise ConfigError(f"{path}: a dataset ends in .h5 or .npz")
    rules, found = own_rules(behaviours), [read_record(record) for record in records]
    require_names(names_of(rules, found), only_own)
    settings, market = open_pinned(settings, None, watch)
    own = open_own(market, rules, found, only_own, watch)
    if path is None:
        dataset, path = _cached(settings, market, watch, own)
        return _collected(dataset, path, settings)
    # What is refused is refused before a collection that was stopped makes way for this one.
    own.behaviour_of_episodes(settings.collect, settings.env_kwargs)
    parts = Parts(path)
    try:
        parts.start(plain_yaml(settings).encode(), own.as_dict(), market_key(market))
        return collect_into(settings, market, path, watch, own)
    except Exception:
        if parts.transitions() == 0:
            parts.remove()  # nothing is in it that could be gone on with
        raise


def collect_into(
    settings: Settings, market: ObservedMarket, path: Path, watch: Watch, own: Own
) -> Collected:
    """Collect the dataset of a file, or go on with what was collected for it."""
    parts = Parts(path)
    export = path.suffix == ".npz"
    dataset = collect_file(
        market,
        settings.env_kwargs,
        settings.collect,
        settings.run.seed,
        parts,
        parts.folder / "dataset.h5" if export else path,
        on_progress=watch.progress,
        own=own,
    )
    if export:
        with stopped_when_interrupted():
            write_npz(dataset, path)
    parts.remove()
    return _collected(dataset, path, settings)


def _collected(dataset: OfflineDataset, path: Path, settings: Settings) -> Collected:
    return Collected(
        path=path,
        prices=settings.market.prices,
        transitions=len(dataset),
        episodes=dataset.n_episodes,
        behaviours=dataset.returns_by_behaviour(),
        transitions_of=dataset.transitions_by_behaviour(),
    )


def _cached(
    settings: Settings, market: ObservedMarket, watch: Watch, own: Own
) -> tuple[OfflineDataset, Path]:
    return cached_dataset(
        market,
        settings.env_kwargs,
        settings.collect,
        settings.run.seed,
        on_progress=watch.progress,
        own=own,
    )


def transitions_for(
    settings: Settings,
    market: ObservedMarket,
    dataset: str | Path | None,
    watch: Watch,
    own: Own = NOTHING,
) -> tuple[OfflineDataset, Path]:
    """The named dataset, or the one of these settings."""
    if dataset is None:
        return _cached(settings, market, watch, own)
    data = read_dataset(Path(dataset), partial(watch.progress, "checking data"))
    require_fit(data, market, settings.env_kwargs, str(dataset))
    return data, Path(dataset)


def offline_data(
    settings: Settings,
    market: ObservedMarket,
    dataset: str | Path | None,
    watch: Watch,
    own: Own = NOTHING,
) -> OfflineDataset | None:
    """What fine-tuning mixes in; None where it mixes in nothing."""
    if settings.cqsac.offline_fraction == 0.0:
        return None
    return transitions_for(settings, market, dataset, watch, own)[0]
