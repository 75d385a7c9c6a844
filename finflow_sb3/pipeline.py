"""The verbs: collect, pretrain, finetune, evaluate, and train, which is all of them in a row.

Each takes a configuration and the previous stage's result, and returns a frozen dataclass with
what was written and measured. The command line adds parsing and printing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finflow_sb3.allocator import keep_freed_memory
from finflow_sb3.collecting import collect, offline_data, transitions_for
from finflow_sb3.config import OFFLINE_ALGORITHMS, OfflineAlgorithm, Settings
from finflow_sb3.cqsac.compiling import require_mode
from finflow_sb3.cqsac.precision import Precision
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError, ConfigError, StorageError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.evaluation.quick import untrained
from finflow_sb3.files import present
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.formats import is_plain
from finflow_sb3.offline.own import NOTHING, Own, flags_of
from finflow_sb3.offline.own_rules import GivenRule
from finflow_sb3.offline.spaces import ActionRange
from finflow_sb3.opening import new_run, open_market, open_pinned, rules_instead_of
from finflow_sb3.parallel import connect, first_goes_first, require_alone
from finflow_sb3.plain_pretraining import (
    note_plain,
    open_plain,
    plain_name,
    plain_settings,
    run_plain_pretraining,
)
from finflow_sb3.pretrain.artefact import Artefact, read_artefact, write_artefact
from finflow_sb3.pretrain.plain import hold_out
from finflow_sb3.pretrain.run import run_offline, start_offline
from finflow_sb3.pretraining_record import pretraining_record
from finflow_sb3.results import Collected, Evaluated, Finetuned, Pretrained, Trained, Watch
from finflow_sb3.run_notes import (
    PLAN,
    copy_ranking,
    note_behaviours,
    note_dataset,
    note_market,
    note_plan,
    noted_algo,
    noted_behaviours,
    run_of,
)
from finflow_sb3.runs.checkpoints import Checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.provenance import same_validation
from finflow_sb3.training.build import pick_device
from finflow_sb3.training.finetune import FinetuneOutcome, run_cqsac

__all__ = [
    "Collected",
    "Evaluated",
    "Finetuned",
    "Pretrained",
    "Start",
    "Trained",
    "Watch",
    "collect",
    "demo_settings",
    "evaluate",
    "finetune",
    "from_scratch",
    "is_pretraining",
    "new_run",
    "open_market",
    "open_start",
    "pretrain",
    "run_finetuning",
    "run_pretraining",
    "train",
    "without_value",
]


Mode = Literal["demo", "full", "offline", "online"]


@contextmanager
def going_on(folder: RunFolder, verb: str) -> Iterator[None]:
    """Say how to go on with a run that a full disk has stopped."""
    try:
        yield
    except StorageError as error:
        raise StorageError(
            f"{error}; checkpoints are whole: go on with finflow {verb} --resume {folder.path}"
        ) from error


def pretrain(
    settings: Settings,
    dataset: str | Path | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
    plan: Mode = "full",
    algo: OfflineAlgorithm = "iql",
    action_range: ActionRange | None = None,
    *,
    behaviours: Sequence[GivenRule] = (),
) -> Pretrained:
    """Learn from offline data; collects it (or takes it from the cache) if not given.

    Under `torchrun` all processes train one model, on batches of their own, through d3rlpy's
    distributed support.

    Parameters
    ----------
    dataset : file of `collect`; or a dataset without a market, as `read_plain` takes it, from
        which a perceptron learns for the environment that it comes from
    action_range : of a dataset without a market, see `read_plain`
    stop_at : stop with a checkpoint after this gradient step
    algo : "iql" or "td3bc"; its settings are in the section of its name
    plan : what `resuming.continue_training` does after it; `train` says so
    behaviours : as for `collect`, where nothing is given as the dataset
    """
    settings.offline(algo)
    watch = watch or Watch()
    own = rules_instead_of(dataset, behaviours)
    if dataset is not None and is_plain(dataset):
        if algo != "iql":
            raise ConfigError(f"{dataset}: has no market, and {algo} needs one; use algo iql")
        return _pretrain_plain(settings, str(dataset), stop_at, watch, action_range)
    if action_range is not None:
        raise ConfigError(
            "action_range: is for datasets of others; portfolios have bounds of their own"
        )
    if dataset is not None and not Path(dataset).is_file():
        raise ArtefactError(f"{dataset}: no such dataset; write one with finflow collect")
    connect(torch.device(pick_device(settings.run.device)))
    with first_goes_first():
        settings, market = open_pinned(settings, None, watch)
        data, path = transitions_for(settings, market, dataset, watch, own)
    with new_run(settings, algo, watch) as folder:
        note_dataset(folder, dataset)
        note_behaviours(folder, own)
        note_plan(folder, plan, algo)
        note_market(folder, market)
        return run_pretraining(settings, market, data, path, folder, watch, stop_at=stop_at)


def _pretrain_plain(
    settings: Settings,
    source: str,
    stop_at: int | None,
    watch: Watch,
    action_range: ActionRange | None,
) -> Pretrained:
    settings = plain_settings(settings, source)
    connect(torch.device(pick_device(settings.run.device)))
    dataset = open_plain(source, action_range, watch)
    hold_out(dataset, settings.run.seed)  # refuses a dataset that is too small
    with new_run(settings, "iql", watch, plain_name(source)) as folder:
        note_plan(folder, "offline", "iql")
        note_plain(folder, source, dataset)
        with going_on(folder, "pretrain"):
            return run_plain_pretraining(settings, dataset, folder, watch, stop_at=stop_at)


def run_pretraining(
    settings: Settings,
    market: ObservedMarket,
    data: OfflineDataset,
    dataset: Path,
    folder: RunFolder,
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    stop_at: int | None = None,
) -> Pretrained:
    """Train the run's algorithm in its folder, from the start or from a checkpoint of it."""
    env, seed = settings.env_kwargs, settings.run.seed
    own = settings.offline(noted_algo(folder))
    keep_freed_memory()
    device, total = pick_device(settings.run.device), own.epochs * own.steps_per_epoch
    started = start_offline(market, env, own, seed, device, checkpoint)
    if checkpoint is not None and not same_validation(checkpoint, settings):
        started.course.kept.clear()
    opened = pretraining_record(settings, own, folder, total, watch, checkpoint, stop_at)
    with going_on(folder, "pretrain"), opened as record:
        outcome = run_offline(
            data, market, env, own, seed, device=device, started=started, **record.callbacks
        )
        return record.end(outcome, dataset, untrained(market, env))


def finetune(
    settings: Settings,
    pretrained: str | Path | None = None,
    dataset: str | Path | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
    *,
    behaviours: Sequence[GivenRule] = (),
) -> Finetuned:
    """Train CQSAC online, seeded by a pretraining run or from scratch.

    Under `torchrun` all processes train one model, on portfolios and batches of their own.

    Parameters
    ----------
    pretrained : run of `pretrain`
    dataset : offline data to mix in; collected (or from the cache) if needed and not given
    stop_at : stop with a checkpoint at the first boundary at or after this step
    behaviours : as for `collect`, where offline data is needed and not given
    """
    watch = watch or Watch()
    own = rules_instead_of(dataset, behaviours)
    start = open_start(settings, pretrained, dataset, watch, own)
    settings, market, artefact = start.settings, start.market, start.artefact
    with new_run(settings, "cqsac", watch) as folder:
        if artefact is not None:
            write_artefact(artefact, folder.path / "seed")
            copy_ranking(run_of(Path(str(pretrained))), folder)
        note_dataset(folder, dataset)
        note_behaviours(folder, own)
        note_market(folder, market)
        return run_finetuning(
            settings, market, folder, artefact, start.data, watch, stop_at=stop_at
        )


@dataclass(frozen=True)
class Start:
    """What a new fine-tuning starts from; `settings` have the split dates written out."""

    settings: Settings
    market: ObservedMarket
    artefact: Artefact | None
    data: OfflineDataset | None


def open_start(
    settings: Settings,
    pretrained: str | Path | None,
    dataset: str | Path | None,
    watch: Watch,
    own: Own = NOTHING,
) -> Start:
    """Market, artefact and offline data of a new fine-tuning; arguments are `finetune`'s."""
    _check_finetune(settings, dataset, own)
    connect(torch.device(pick_device(settings.run.device)))
    artefact = None if pretrained is None else _artefact(Path(pretrained))
    if artefact is None:
        settings = from_scratch(settings)
    elif not artefact.has_value:
        settings = without_value(settings, watch)
    with first_goes_first():
        layout, scaler = artefact.of_market(str(pretrained)) if artefact else (None, None)
        settings, market = open_pinned(settings, scaler, watch)
        if layout is not None:
            market.layout.require_equal(layout, str(pretrained))
        if pretrained is not None and dataset is None and not own.names:
            _tell_of_other_data(Path(pretrained), settings, watch)
        data = offline_data(settings, market, dataset, watch, own)
        return Start(settings, market, artefact, data)


def _tell_of_other_data(pretrained: Path, settings: Settings, watch: Watch) -> None:
    """Say so where the run that seeds this one learned from rules that are not given now."""
    flags = flags_of(noted_behaviours(run_of(pretrained)))
    if flags and settings.cqsac.offline_fraction > 0.0:
        watch.remark(
            f"{pretrained}: learned from rules of your own too, and the data that is mixed in now "
            f"has none of them; it would with {' '.join(flags)}."
        )


def _check_finetune(settings: Settings, dataset: str | Path | None, own: Own = NOTHING) -> None:
    """Refuse what this machine lacks before anchors are fitted, or a network pretrained."""
    device = torch.device(pick_device(settings.run.device))
    require_mode(settings.cqsac.compile)
    Precision(settings.cqsac.mixed_precision, device)
    unused = [str(dataset)] if dataset is not None else list(own.names)
    if unused and settings.cqsac.offline_fraction == 0.0:
        raise ConfigError(
            f"{unused[0]}: would not be used, as offline_fraction is 0; "
            "set it with -p offline_fraction:0.25, or leave it out"
        )
    if dataset is not None and not Path(dataset).is_file():
        raise ArtefactError(f"{dataset}: no such dataset; write one with finflow collect")


def run_finetuning(
    settings: Settings,
    market: ObservedMarket,
    folder: RunFolder,
    artefact: Artefact | None,
    data: OfflineDataset | None,
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    stop_at: int | None = None,
) -> Finetuned:
    """Train CQSAC in a run's folder, from the start or from a checkpoint of it."""
    total = settings.cqsac.n_timesteps
    with going_on(folder, "finetune"):
        outcome: FinetuneOutcome = run_cqsac(
            settings,
            market,
            folder,
            artefact,
            data,
            checkpoint,
            stop_at,
            on_progress=lambda step: watch.progress("fine-tuning", min(step, total), total),
            on_seeded=watch.seeded,
            on_event=watch.warned,
            on_validated=watch.validated,
        )
    return Finetuned(
        run=folder.path,
        steps=outcome.steps,
        finished=outcome.finished,
        best=outcome.best,
        validation=outcome.validation,
        seeded=None if outcome.seeding is None else outcome.seeding.copied,
        stopped=outcome.stopped,
        stability=outcome.stability,
    )


def is_pretraining(run: Path) -> bool:
    if (run / "artefact.json").is_file():
        return True
    return (run / PLAN).is_file() or (present(run / "best") / "artefact.json").is_file()


def _artefact(run: Path) -> Artefact:
    if not run.is_dir():
        raise ArtefactError(f"{run}: no such run; give a run of finflow pretrain")
    for folder in (present(run / "best"), run):
        if (folder / "artefact.json").is_file():
            return read_artefact(folder)
    raise ArtefactError(f"{run}: no pretrained artefact in it; give a run of finflow pretrain")


def from_scratch(settings: Settings) -> Settings:
    """Without an artefact there is nothing to hand over: SB3's start and target entropy."""
    changes: dict[str, Any] = {"warmup_steps": 0, "cal_ql": False}
    if settings.cqsac.target_entropy == "seeded":
        changes["target_entropy"] = "auto"
    return settings.replace(cqsac=changes)


def without_value(settings: Settings, watch: Watch) -> Settings:
    """With an artefact that has no V there is nothing to floor Q at."""
    if not settings.cqsac.cal_ql:
        return settings
    watch.remark("cal_ql is off: the pretraining has no V that Q could be floored at.")
    return settings.replace(cqsac={"cal_ql": False})


def train(
    settings: Settings,
    mode: Mode = "full",
    dataset: str | Path | None = None,
    watch: Watch | None = None,
    offline_algo: OfflineAlgorithm = "iql",
    *,
    behaviours: Sequence[GivenRule] = (),
    report: bool = True,
) -> Trained:
    """All stages in one go.

    `full` and `demo`: collect, pretrain, seed, fine-tune, evaluate. `offline`: without
    fine-tuning. `online`: fine-tuning from scratch. `demo` is `full` with small settings.

    Parameters
    ----------
    offline_algo : what pretrains, "iql" or "td3bc"
    dataset, behaviours : as for `pretrain`; fine-tuning mixes in the same data
    report : evaluate at the end
    """
    require_alone("train")
    pretrained = finetuned = None
    if dataset is not None and is_plain(dataset):
        raise ConfigError(
            f"{dataset}: has no market to fine-tune and evaluate in; learn from it with pretrain"
        )
    if mode == "demo":
        settings = demo_settings(settings)
    if mode != "offline":
        _check_finetune(settings, None)
    if mode != "online":
        plan: Mode = "offline" if mode == "offline" else "full"
        pretrained = pretrain(
            settings, dataset, watch=watch, plan=plan, algo=offline_algo, behaviours=behaviours
        )
        if not pretrained.finished:
            return Trained(pretrained, None, None)
    if mode != "offline":
        source = pretrained.run if pretrained else None
        mixes = settings.cqsac.offline_fraction > 0.0
        mixed = dataset if mixes else None
        rules = behaviours if mixes or mode == "online" else ()
        finetuned = finetune(settings, source, mixed, watch=watch, behaviours=rules)
        if not finetuned.finished:
            return Trained(pretrained, finetuned, None)
    last = finetuned.run if finetuned else pretrained.run if pretrained else None
    assert last is not None
    return Trained(pretrained, finetuned, evaluate(last, watch=watch) if report else None)


def demo_settings(settings: Settings) -> Settings:
    """Small settings that end within five minutes on two cores; smaller ones stay."""
    cqsac = settings.cqsac
    offline = {
        algo: {"epochs": min(own.epochs, 8), "batch_size": min(own.batch_size, 256)}
        for algo in OFFLINE_ALGORITHMS
        for own in [settings.offline(algo)]
    }
    return settings.replace(
        collect={"episodes": min(settings.collect.episodes, 200)},
        **offline,
        cqsac={
            "n_timesteps": min(cqsac.n_timesteps, 60 * settings.env_kwargs.episode_length),
            "warmup_steps": min(cqsac.warmup_steps, 1008),
        },
        run={
            "checkpoint_interval": min(settings.run.checkpoint_interval, 30),
            "evaluate_interval": min(settings.run.evaluate_interval, 15),
        },
    )
