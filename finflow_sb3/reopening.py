"""Opening a run again: its checkpoint, its market, and what of its settings may change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.config_files import write_config
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import CheckpointError, ConfigError
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.opening import open_pinned
from finflow_sb3.parallel import (
    any_of,
    connect,
    from_first,
    rank,
    world_size,
)
from finflow_sb3.plain_pretraining import (
    OF_MARKETS,
)
from finflow_sb3.results import Watch
from finflow_sb3.run_notes import (
    NotedMarket,
    note_market,
    noted_market,
)
from finflow_sb3.runs.checkpoints import (
    Checkpoint,
    CheckpointStore,
    read_checkpoint,
)
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.provenance import (
    changed_settings,
    warn_of_other_versions,
)
from finflow_sb3.training.build import pick_device

__all__ = [
    "Reopened",
    "chosen_checkpoint",
    "fixed_of_finetuning",
    "fixed_of_pretraining",
    "fixed_without_market",
    "of_this_process",
    "refuse_or_tell",
    "reopened",
    "start",
]

MARKET_MAY_CHANGE = ("prices", "partial", "train_end", "validation_end")
ENV_IS_FIXED = ("action_base", "execution_lag", "reward", "episode_length")
CQSAC_IS_FIXED = (
    "n_envs",
    "normalize",
    "policy",
    "policy_kwargs",
    "buffer_size",
    "ent_coef",
    "alpha_init",
    "target_entropy",
    "cql_target_action_gap",
)
OFFLINE_IS_FIXED = ("steps_per_epoch", "n_critics", "n_quantiles", "policy_kwargs")


@dataclass(frozen=True)
class Reopened:
    """A run that is ready to go on.

    Attributes
    ----------
    checkpoint : None where it was stopped before its first one: it begins again
    """

    folder: RunFolder
    settings: Settings
    market: ObservedMarket
    checkpoint: Checkpoint | None


def of_this_process(
    folder: RunFolder, named: Path | None, settings: Settings, verb: str
) -> tuple[RunFolder, Path | None]:
    """What this process of several kept of a run, and of its checkpoint if one is named.

    Raises
    ------
    CheckpointError
        If another number of processes trained it.
    """
    connect(torch.device(pick_device(settings.run.device)))
    if folder.workers != world_size():
        raise CheckpointError(
            f"{folder.path}: was trained by {folder.workers} processes; go on with as many "
            f"(torchrun --nproc-per-node {folder.workers} -m finflow_sb3.cli.app {verb})"
        )
    if rank() > 0:
        folder = folder.of_worker(rank())
        named = folder.checkpoints / named.name if named else None
    return folder, named


def reopened(
    folder: RunFolder,
    named: Path | None,
    settings: Settings,
    prices: str | None,
    fixed: Callable[[str], bool],
    watch: Watch,
) -> Reopened:
    """Checkpoint, settings and market of a run. Nothing is written yet: each may be refused."""
    noted = noted_market(folder)
    checkpoint = chosen_checkpoint(folder, named, watch)
    before = folder.settings()
    if checkpoint is not None:
        refuse_or_tell(changed_settings(checkpoint, settings), fixed, folder, watch)
        warn_of_other_versions(checkpoint, watch.remark)
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
        settings = _with_newer_prices(before, settings, noted, watch)
    settings, market = open_pinned(settings, noted.scaler, watch)
    noted.layout.require_equal(market.layout, str(folder.path))
    noted.require_past(market.prices, adjusted=prices is not None)
    return Reopened(folder, settings, market, checkpoint)


def chosen_checkpoint(folder: RunFolder, named: Path | None, watch: Watch) -> Checkpoint | None:
    """The named one, else the newest that is whole; the same step in all processes."""
    checkpoint: Checkpoint | None
    if named is not None:
        checkpoint = read_checkpoint(named)
    else:
        checkpoint = CheckpointStore(folder.checkpoints).newest_whole(watch.remark)
        if checkpoint is None:
            watch.remark(f"{folder.path}: has no checkpoint yet; it begins again.")
    name = "none" if checkpoint is None else checkpoint.path.name
    if any_of(name != from_first(name)):
        raise CheckpointError(
            f"{folder.checkpoints / name}: other processes stopped elsewhere; name one checkpoint "
            "that all have (--resume RUN/checkpoints/step_N)"
        )
    return checkpoint


def refuse_or_tell(
    changed: list[tuple[str, Any, Any]],
    fixed: Callable[[str], bool],
    folder: RunFolder,
    watch: Watch,
) -> None:
    """Name every setting that differs from the checkpoint's.

    Raises
    ------
    ConfigError
        If one of them can't change within a run.
    """
    for name, before, now in changed:
        if fixed(name):
            raise ConfigError(
                f"{name}: {now!r} differs from {before!r}, with which {folder.path} was trained "
                "and which can't change; leave it as it was, or start a new run"
            )
    for name, before, now in changed:
        watch.remark(f"{name} is {now!r} from here on; it was {before!r}.")


def fixed_of_finetuning(name: str) -> bool:
    section, key = _section_and_key(name)
    if section == "cqsac":
        return key in CQSAC_IS_FIXED
    return section in OFFLINE_ALGORITHMS or _always_fixed(section, key)


def fixed_of_pretraining(algo: OfflineAlgorithm, name: str) -> bool:
    section, key = _section_and_key(name)
    if section == algo:
        return key in OFFLINE_IS_FIXED
    return _always_fixed(section, key)


def fixed_without_market(name: str) -> bool:
    return _section_and_key(name)[0] in OF_MARKETS or fixed_of_pretraining("iql", name)


def _section_and_key(name: str) -> tuple[str, str]:
    """As in ``cqsac.policy_kwargs.n_quantiles``; the environment's id has no section."""
    section, _, rest = name.partition(".")
    return section, rest.partition(".")[0]


def _always_fixed(section: str, key: str) -> bool:
    if section == "market":
        return key not in MARKET_MAY_CHANGE
    if section == "env_kwargs":
        return key in ENV_IS_FIXED
    return section == "env" or (section, key) == ("run", "seed")


def _with_newer_prices(
    before: Settings, settings: Settings, noted: NotedMarket, watch: Watch
) -> Settings:
    """Let training and validation end as many days later as there are new ones."""
    source = settings.market
    prices = load_prices(source.prices, max_gap=source.max_gap, partial=source.partial)
    added = noted.require_past(prices, adjusted=True)
    if added == 0:
        watch.remark(f"{prices.source}: has no days after {prices.dates[-1]}, which are known.")
        return settings
    ends = {
        name: _later(prices, getattr(before.market, name), added)
        for name in ("train_end", "validation_end")
        if getattr(settings.market, name) == getattr(before.market, name)
    }
    settings = settings.replace(market=ends)
    watch.remark(
        f"{prices.source}: new from {prices.dates[noted.rows]} on ({added:,} days); training now "
        f"ends on {settings.market.train_end}, validation on {settings.market.validation_end}."
    )
    return settings


def _later(prices: PriceTable, date: str, days: int) -> str:
    """The row that lies so many rows after the last one that is not after `date`."""
    at = int((prices.dates <= np.datetime64(date, "D")).sum()) - 1
    return str(prices.dates[at + days])


def start(open: Reopened, watch: Watch) -> None:
    """From here on the run goes on with what it was opened with."""
    if open.settings != open.folder.settings():
        write_config(open.settings, open.folder.path / "config.yml")
    if len(open.market.prices) != noted_market(open.folder).rows:
        note_market(open.folder, open.market)
    watch.started(open.folder.path)
