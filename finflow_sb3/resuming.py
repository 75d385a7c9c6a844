"""Going on with runs that were stopped or killed, exactly or with other settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finflow_sb3.collecting import collect_into, offline_data, transitions_for
from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.config_files import read_config, write_config
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError, CheckpointError, ConfigError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.market.sources import load_prices
from finflow_sb3.offline.collect import market_key
from finflow_sb3.offline.own import Own, noted, require_same
from finflow_sb3.offline.own_rules import GivenRule, own_rules
from finflow_sb3.offline.parts import Parts
from finflow_sb3.offline.record import read_record
from finflow_sb3.opening import open_own, open_pinned
from finflow_sb3.parallel import (
    any_of,
    connect,
    first_goes_first,
    from_first,
    rank,
    require_alone,
    world_size,
)
from finflow_sb3.pipeline import (
    finetune,
    going_on,
    is_pretraining,
    run_finetuning,
    run_pretraining,
)
from finflow_sb3.plain_pretraining import (
    OF_MARKETS,
    is_without_market,
    noted_plain,
    plain_settings,
    run_plain_pretraining,
)
from finflow_sb3.pretrain.artefact import read_artefact
from finflow_sb3.results import Collected, Finetuned, Pretrained, Trained, Watch
from finflow_sb3.run_notes import (
    NotedMarket,
    note_market,
    noted_algo,
    noted_behaviours,
    noted_dataset,
    noted_market,
    noted_plan,
    noted_ranking,
)
from finflow_sb3.runs.checkpoints import (
    Checkpoint,
    CheckpointStore,
    named_checkpoint,
    read_checkpoint,
)
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.provenance import (
    changed_settings,
    same_validation,
    warn_of_other_versions,
)
from finflow_sb3.training.build import pick_device

__all__ = ["continue_training", "resume", "resume_collecting", "resume_pretraining"]

MARKET_MAY_CHANGE = ("prices", "train_end", "validation_end")
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


def resume(
    run: str | Path,
    n_timesteps: int | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
    *,
    settings: Settings | None = None,
    prices: str | None = None,
    behaviours: Sequence[GivenRule] = (),
) -> Finetuned:
    """Go on with a fine-tuning run from its latest checkpoint, or from one that is named.

    With nothing else given, what comes is bit for bit what the run would have come to had it
    never stopped.

    Parameters
    ----------
    run : the run's folder, or one checkpoint in it
    n_timesteps : train to this many steps instead of what the run was set to
    settings : instead of the run's own; what differs is named in a remark
    prices : of the same universe, with a longer history: training goes on with the new days,
        and validation moves on by as many
    behaviours : the rules of your own that the run began with: none is imported because a file
        says so

    Raises
    ------
    CheckpointError
        If no checkpoint is whole.
    ConfigError
        If a setting differs that a run can't change.
    """
    watch = watch or Watch()
    path = Path(run)
    named = named_checkpoint(path)
    folder = RunFolder.open(named.parent.parent if named else path)
    if is_pretraining(folder.path):
        raise ArtefactError(
            f"{path}: is a pretraining run; go on with finflow pretrain --resume {path}, or "
            f"fine-tune it with finflow finetune --pretrained {path}"
        )
    own = _same_rules(folder, behaviours)
    settings = settings or folder.settings()
    if n_timesteps is not None:
        settings = settings.replace(cqsac={"n_timesteps": n_timesteps})
    folder, named = _of_this_process(folder, named, settings, "finetune")
    seeded = folder.path / "seed"
    artefact = read_artefact(seeded) if seeded.is_dir() else None
    open = _reopened(folder, named, settings, prices, _fixed_of_finetuning, watch)
    settings, checkpoint = open.settings, open.checkpoint
    step = 0 if checkpoint is None else checkpoint.step
    if prices is not None and step >= settings.cqsac.n_timesteps:
        raise ConfigError(
            f"{folder.path}: has done all its {step:,} steps; say with --n-timesteps how many it "
            "is to do in all"
        )
    data = offline_data(settings, open.market, noted_dataset(folder), watch, own)
    _start(open, watch)
    watch.remark(f"Resuming at step {step:,} of {settings.cqsac.n_timesteps:,}.")
    return run_finetuning(settings, open.market, folder, artefact, data, watch, checkpoint, stop_at)


def resume_pretraining(
    run: str | Path,
    stop_at: int | None = None,
    watch: Watch | None = None,
    *,
    settings: Settings | None = None,
    prices: str | None = None,
    behaviours: Sequence[GivenRule] = (),
) -> Pretrained:
    """Go on with a pretraining run, as `resume` does with a fine-tuning run.

    Parameters
    ----------
    stop_at : stop with a checkpoint after this gradient step
    """
    watch = watch or Watch()
    path = Path(run)
    named = named_checkpoint(path)
    folder = RunFolder.open(named.parent.parent if named else path)
    if not is_pretraining(folder.path):
        raise ArtefactError(
            f"{path}: is no pretraining run; go on with finflow finetune --resume {path}"
        )
    algo = noted_algo(folder)
    own = _same_rules(folder, behaviours)
    settings = settings or folder.settings()
    folder, named = _of_this_process(folder, named, settings, "pretrain")
    if is_without_market(folder):
        return _resume_plain(folder, named, settings, prices, stop_at, watch)
    open = _reopened(folder, named, settings, prices, partial(_fixed_of_pretraining, algo), watch)
    settings, checkpoint = open.settings, open.checkpoint
    learned = settings.offline(algo)
    total = learned.epochs * learned.steps_per_epoch
    if checkpoint is not None and checkpoint.step >= total:
        _require_same_validation(checkpoint, settings, folder, total)
    with first_goes_first():
        data, dataset = transitions_for(settings, open.market, noted_dataset(folder), watch, own)
    _start(open, watch)
    step = 0 if checkpoint is None else checkpoint.step
    watch.remark(f"Resuming at gradient step {step:,} of {total:,}.")
    return run_pretraining(settings, open.market, data, dataset, folder, watch, checkpoint, stop_at)


def _require_same_validation(
    checkpoint: Checkpoint, settings: Settings, folder: RunFolder, total: int
) -> None:
    """Refuse another validation where no epoch is left that could be judged by it."""
    if not same_validation(checkpoint, settings):
        raise ConfigError(
            f"{folder.path}: has done all its {total:,} steps, and validation would begin anew; "
            "say with --epochs how many epochs it is to do in all"
        )


def _resume_plain(
    folder: RunFolder,
    named: Path | None,
    settings: Settings,
    prices: str | None,
    stop_at: int | None,
    watch: Watch,
) -> Pretrained:
    """Go on with a run that has no market."""
    if prices is not None:
        raise ConfigError(f"{folder.path}: learns without a market; leave out --prices")
    settings = plain_settings(settings, str(folder.path))
    checkpoint = _chosen_checkpoint(folder, named, watch)
    if checkpoint is not None:
        changed = changed_settings(checkpoint, settings)
        _refuse_or_tell(changed, _fixed_without_market, folder, watch)
        warn_of_other_versions(checkpoint, watch.remark)
    dataset = noted_plain(folder).open(watch)
    if settings != folder.settings():
        write_config(settings, folder.path / "config.yml")
    watch.started(folder.path)
    with going_on(folder, "pretrain"):
        return run_plain_pretraining(settings, dataset, folder, watch, checkpoint, stop_at)


def resume_collecting(
    dataset: str | Path,
    watch: Watch | None = None,
    *,
    behaviours: Sequence[GivenRule] = (),
    records: Sequence[str | Path] = (),
) -> Collected:
    """Go on with a collection that was stopped or killed, to the same dataset.

    Parameters
    ----------
    dataset : the file that it was to write
    behaviours, records : those that it began with

    Raises
    ------
    ArtefactError
        If nothing was left of it, what was left is damaged, or it began with other rules of the
        user's own, or records.
    """
    require_alone("collect")
    path, watch = Path(dataset), watch or Watch()
    parts = Parts(path)
    if not parts.plan.is_file():
        why = "is whole" if path.is_file() else "there is no collection of that name to go on with"
        raise ArtefactError(f"{path}: {why}; leave --resume out to collect anew")
    note, rules = parts.own, own_rules(behaviours)
    found = [read_record(record) for record in records]
    require_same(note, noted(rules, found, False), str(path))
    settings, market = open_pinned(read_config(parts.plan), None, watch)
    if parts.market != market_key(market):
        raise ArtefactError(
            f"{settings.market.prices}: its prices are not those that {path} was begun on; give "
            "them back, or leave --resume out to collect anew"
        )
    own = open_own(market, rules, found, bool(note.get("only_own")), watch)
    return collect_into(settings, market, path, watch, own)


def continue_training(
    run: str | Path,
    watch: Watch | None = None,
    *,
    settings: Settings | None = None,
    prices: str | None = None,
    behaviours: Sequence[GivenRule] = (),
) -> Trained:
    """Go on with what `train` left: with pretraining that was cut short, then with fine-tuning
    where that was to follow; or with fine-tuning; then evaluate.

    Parameters
    ----------
    run : a run of either kind, or one checkpoint in it
    behaviours : as for `resume`
    """
    path, pretrained = Path(run), None
    named = named_checkpoint(path)
    folder = RunFolder.open(named.parent.parent if named else path)
    if is_without_market(folder):
        raise ArtefactError(
            f"{path}: has no market to go on in; go on with finflow pretrain --resume {path}"
        )
    if not is_pretraining(folder.path):
        finetuned = resume(
            path, watch=watch, settings=settings, prices=prices, behaviours=behaviours
        )
        evaluated = evaluate(finetuned.run, watch=watch) if finetuned.finished else None
        return Trained(None, finetuned, evaluated)
    if named is not None or not _pretraining_is_done(folder):
        pretrained = resume_pretraining(
            path, watch=watch, settings=settings, prices=prices, behaviours=behaviours
        )
        if not pretrained.finished:
            return Trained(pretrained, None, None)
    if noted_plan(folder) == "offline":
        return Trained(pretrained, None, evaluate(folder.path, watch=watch))
    own = settings or folder.settings()
    dataset = noted_dataset(folder) if own.cqsac.offline_fraction > 0.0 else None
    rules = _same_rules(folder, behaviours).rules if own.cqsac.offline_fraction > 0.0 else ()
    finetuned = finetune(own, folder.path, dataset, watch=watch, behaviours=rules)
    evaluated = evaluate(finetuned.run, watch=watch) if finetuned.finished else None
    return Trained(pretrained, finetuned, evaluated)


def _same_rules(folder: RunFolder, behaviours: Sequence[GivenRule]) -> Own:
    """The user's own rules, which must be those that the run began with."""
    own = Own(own_rules(behaviours))
    require_same(noted_behaviours(folder.path), own.as_dict(), str(folder.path))
    return own


def _pretraining_is_done(folder: RunFolder) -> bool:
    own = folder.settings().offline(noted_algo(folder))
    checkpoints = CheckpointStore(folder.checkpoints).all()
    if not checkpoints:
        return False
    learned = int(checkpoints[-1].name.rpartition("_")[2]) >= own.epochs * own.steps_per_epoch
    return learned and (own.fqe_epochs == 0 or noted_ranking(folder) is not None)


# ------------------------------------------------------------------- opening a run again


def _of_this_process(
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


def _reopened(
    folder: RunFolder,
    named: Path | None,
    settings: Settings,
    prices: str | None,
    fixed: Callable[[str], bool],
    watch: Watch,
) -> Reopened:
    """Checkpoint, settings and market of a run. Nothing is written yet: each may be refused."""
    noted = noted_market(folder)
    checkpoint = _chosen_checkpoint(folder, named, watch)
    before = folder.settings()
    if checkpoint is not None:
        _refuse_or_tell(changed_settings(checkpoint, settings), fixed, folder, watch)
        warn_of_other_versions(checkpoint, watch.remark)
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
        settings = _with_newer_prices(before, settings, noted, watch)
    settings, market = open_pinned(settings, noted.scaler, watch)
    noted.layout.require_equal(market.layout, str(folder.path))
    noted.require_past(market.prices, adjusted=prices is not None)
    return Reopened(folder, settings, market, checkpoint)


def _chosen_checkpoint(folder: RunFolder, named: Path | None, watch: Watch) -> Checkpoint | None:
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


def _refuse_or_tell(
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


def _fixed_of_finetuning(name: str) -> bool:
    section, key = _section_and_key(name)
    if section == "cqsac":
        return key in CQSAC_IS_FIXED
    return section in OFFLINE_ALGORITHMS or _always_fixed(section, key)


def _fixed_of_pretraining(algo: OfflineAlgorithm, name: str) -> bool:
    section, key = _section_and_key(name)
    if section == algo:
        return key in OFFLINE_IS_FIXED
    return _always_fixed(section, key)


def _fixed_without_market(name: str) -> bool:
    return _section_and_key(name)[0] in OF_MARKETS or _fixed_of_pretraining("iql", name)


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
    prices = load_prices(settings.market.prices, max_gap=settings.market.max_gap)
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


def _start(open: Reopened, watch: Watch) -> None:
    """From here on the run goes on with what it was opened with."""
    if open.settings != open.folder.settings():
        write_config(open.settings, open.folder.path / "config.yml")
    if len(open.market.prices) != noted_market(open.folder).rows:
        note_market(open.folder, open.market)
    watch.started(open.folder.path)
