"""The verbs: collect, pretrain, finetune, evaluate, and train, which is all of them in a row.

Each takes a configuration and the previous stage's result, and returns a frozen dataclass with
what was written and measured. The command line adds parsing and printing.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finflow_sb3.config import Settings
from finflow_sb3.config_files import write_config
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.parallel import (
    any_of,
    connect,
    first_goes_first,
    from_first,
    rank,
    require_alone,
    world_size,
)
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ArtefactError, CheckpointError, ConfigError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.evaluation.quick import untrained
from finflow_sb3.files import write_whole
from finflow_sb3.market.cache import content_key
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.market.prices import PriceTable
from finflow_sb3.offline.behaviours import check_behaviours
from finflow_sb3.offline.collect import cached_dataset, collect_dataset, require_fit
from finflow_sb3.offline.dataset import OfflineDataset, read_dataset, write_dataset, write_npz
from finflow_sb3.opening import open_market, open_pinned
from finflow_sb3.pretrain.artefact import (
    Artefact,
    read_artefact,
    read_json,
    write_artefact,
    write_json,
)
from finflow_sb3.pretrain.run import PretrainOutcome, run_iql
from finflow_sb3.results import Collected, Evaluated, Finetuned, Pretrained, Trained, Watch
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore, read_checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
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
    "continue_training",
    "demo_settings",
    "evaluate",
    "finetune",
    "from_scratch",
    "is_pretraining",
    "new_run",
    "note_market",
    "open_market",
    "open_start",
    "pretrain",
    "require_noted_market",
    "resume",
    "train",
]


DATASET = "dataset.txt"
"""In a run: the dataset that was named, so that a resumed run goes on with the same."""
MARKET = "market.json"
"""In a run: its layout and a hash of its prices, so that a resumed run goes on with the same."""


@contextmanager
def new_run(settings: Settings, algo: str, watch: Watch) -> Iterator[RunFolder]:
    """A new run's folder. An end that comes before it holds anything of use removes it."""
    path = RunFolder.create(settings.run.log_dir, algo, settings.env).path if rank() == 0 else ""
    folder = RunFolder(Path(from_first(str(path)))).of_worker(rank())
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        folder.write_settings(settings)
        watch.started(folder.path)
        yield folder
    except BaseException:
        if not (folder.best.is_dir() or folder.checkpoints.is_dir()):
            shutil.rmtree(folder.path)
        raise


def collect(
    settings: Settings, save_path: str | Path | None = None, watch: Watch | None = None
) -> Collected:
    """Collect offline data; into the cache, or into `save_path` (`.h5`, or `.npz` to export)."""
    require_alone("collect")
    watch = watch or Watch()
    path = None if save_path is None else Path(save_path)
    if path is not None and path.suffix not in (".h5", ".hdf5", ".npz"):
        raise ConfigError(f"{path}: a dataset ends in .h5 or .npz")
    check_behaviours(settings.collect.behaviours)
    settings, market = open_pinned(settings, None, watch)
    if path is None:
        dataset, path = _cached(settings, market, watch)
    else:
        dataset = collect_dataset(
            market,
            settings.env_kwargs,
            settings.collect,
            settings.run.seed,
            on_progress=lambda done, total: watch.progress("episodes", done, total),
        )
        (write_npz if path.suffix == ".npz" else write_dataset)(dataset, path)
    return Collected(path, len(dataset), dataset.n_episodes, dataset.returns_by_behaviour())


def _cached(
    settings: Settings, market: ObservedMarket, watch: Watch
) -> tuple[OfflineDataset, Path]:
    return cached_dataset(
        market,
        settings.env_kwargs,
        settings.collect,
        settings.run.seed,
        on_progress=lambda done, total: watch.progress("episodes", done, total),
    )


def pretrain(
    settings: Settings, dataset: str | Path | None = None, watch: Watch | None = None
) -> Pretrained:
    """Learn from offline data with IQL; collects it (or takes it from the cache) if not given."""
    require_alone("pretrain")
    watch = watch or Watch()
    if dataset is not None and not Path(dataset).is_file():
        raise ArtefactError(f"{dataset}: no such dataset; write one with finflow collect")
    check_behaviours(settings.collect.behaviours)
    device = pick_device(settings.run.device)
    settings, market = open_pinned(settings, None, watch)
    if dataset is None:
        data, path = _cached(settings, market, watch)
    else:
        data, path = read_dataset(Path(dataset)), Path(dataset)
        require_fit(data, market, settings.env_kwargs, str(path))
    with new_run(settings, "iql", watch) as folder:
        _note_dataset(folder, dataset)
        outcome = _pretrained(settings, market, data, folder, device, watch)
    return Pretrained(
        run=folder.path,
        dataset=path,
        best_epoch=outcome.best.number,
        validation=outcome.best.validation,
        untrained=untrained(market, settings.env_kwargs),
    )


def _pretrained(
    settings: Settings,
    market: ObservedMarket,
    data: OfflineDataset,
    folder: RunFolder,
    device: str,
    watch: Watch,
) -> PretrainOutcome:
    total = settings.iql.epochs * settings.iql.steps_per_epoch
    board = folder.tensorboard if settings.run.tensorboard else None
    with MetricsLog(folder.metrics, board) as log:
        return run_iql(
            data,
            market,
            settings.env_kwargs,
            settings.iql,
            settings.run.seed,
            device=device,
            log=log,
            on_epoch=watch.epoch,
            on_best=lambda artefact: write_artefact(artefact, folder.best),
            on_step=lambda step: watch.progress("pretraining", step, total),
        )


def finetune(
    settings: Settings,
    pretrained: str | Path | None = None,
    dataset: str | Path | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
) -> Finetuned:
    """Train CQSAC online, seeded by a pretraining run or from scratch.

    Under `torchrun` all processes train one model, on portfolios and batches of their own.

    Parameters
    ----------
    pretrained : run of `pretrain`
    dataset : offline data to mix in; collected (or from the cache) if needed and not given
    stop_at : stop with a checkpoint at the first boundary at or after this step
    """
    watch = watch or Watch()
    start = open_start(settings, pretrained, dataset, watch)
    settings, market, artefact = start.settings, start.market, start.artefact
    with new_run(settings, "cqsac", watch) as folder:
        if artefact is not None:
            write_artefact(artefact, folder.path / "seed")
        _note_dataset(folder, dataset)
        note_market(folder, market)
        return _run(settings, market, folder, artefact, start.data, watch, stop_at=stop_at)


@dataclass(frozen=True)
class Start:
    """What a new fine-tuning starts from; `settings` have the split dates written out."""

    settings: Settings
    market: ObservedMarket
    artefact: Artefact | None
    data: OfflineDataset | None


def open_start(
    settings: Settings, pretrained: str | Path | None, dataset: str | Path | None, watch: Watch
) -> Start:
    """Market, artefact and offline data of a new fine-tuning; arguments are `finetune`'s."""
    _check_finetune(settings, dataset)
    connect(torch.device(pick_device(settings.run.device)))
    artefact = None if pretrained is None else _artefact(Path(pretrained))
    if artefact is None:
        settings = from_scratch(settings)
    with first_goes_first():
        settings, market = open_pinned(settings, artefact.scaler if artefact else None, watch)
        if artefact is not None:
            market.layout.require_equal(artefact.layout, str(pretrained))
        return Start(settings, market, artefact, _offline_data(settings, market, dataset, watch))


def _check_finetune(settings: Settings, dataset: str | Path | None) -> None:
    """Refuse what would come to light only after the anchors were fitted."""
    pick_device(settings.run.device)
    name, known = settings.cqsac.policy, CQSAC.policy_aliases
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"policy: {name!r} is not known; {hint}")
    if dataset is not None and settings.cqsac.offline_fraction == 0.0:
        raise ConfigError(
            f"{dataset}: would not be used, as offline_fraction is 0; "
            "set it with -p offline_fraction:0.25, or leave the dataset out"
        )
    if dataset is not None and not Path(dataset).is_file():
        raise ArtefactError(f"{dataset}: no such dataset; write one with finflow collect")
    if dataset is None and settings.cqsac.offline_fraction > 0.0:
        check_behaviours(settings.collect.behaviours)


def resume(
    run: str | Path,
    n_timesteps: int | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
) -> Finetuned:
    """Go on with a run from its latest checkpoint, or from one that is named.

    Parameters
    ----------
    run : the run's folder, or one checkpoint in it
    n_timesteps : train to this many steps instead of what the run was set to

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, truncated or altered.
    """
    watch = watch or Watch()
    path = Path(run)
    named = path.absolute() if path.name.startswith("step_") else None
    folder = RunFolder.open(named.parent.parent if named else path)
    if is_pretraining(folder.path):
        raise ArtefactError(
            f"{path}: is a pretraining run; go on with finflow finetune --pretrained {path}"
        )
    settings = folder.settings()
    connect(torch.device(pick_device(settings.run.device)))
    if folder.workers != world_size():
        raise CheckpointError(
            f"{folder.path}: was trained by {folder.workers} processes; go on with as many "
            f"(torchrun --nproc-per-node {folder.workers} -m finflow_sb3.cli.app finetune)"
        )
    if rank() > 0:
        folder = folder.of_worker(rank())
        named = folder.checkpoints / named.name if named else None
    if n_timesteps is not None:
        settings = settings.replace(cqsac={"n_timesteps": n_timesteps})
    store = CheckpointStore(folder.checkpoints, settings.run.max_checkpoints)
    checkpoint = read_checkpoint(named or store.pointed("latest"))
    _require_same_step(checkpoint)
    seeded = folder.path / "seed"
    artefact = read_artefact(seeded) if seeded.is_dir() else None
    settings, market = open_pinned(settings, artefact.scaler if artefact else None, watch)
    require_noted_market(folder, market)
    data = _offline_data(settings, market, _noted_dataset(folder), watch)
    if named is not None:
        store.rewind(named)
    if n_timesteps is not None:
        write_config(settings, folder.path / "config.yml")
    watch.started(folder.path)
    step = checkpoint.state["counters"]["num_timesteps"]
    watch.remark(f"Resuming at step {step:,} of {settings.cqsac.n_timesteps:,}.")
    return _run(settings, market, folder, artefact, data, watch, checkpoint, stop_at)


def _require_same_step(checkpoint: Checkpoint) -> None:
    """Processes that were killed may have written their last checkpoints a step apart."""
    name = checkpoint.path.name
    if any_of(name != from_first(name)):
        raise CheckpointError(
            f"{checkpoint.path}: other processes stopped elsewhere; name one checkpoint that all "
            "have (--resume RUN/checkpoints/step_N)"
        )


def _run(
    settings: Settings,
    market: ObservedMarket,
    folder: RunFolder,
    artefact: Artefact | None,
    data: OfflineDataset | None,
    watch: Watch,
    checkpoint: Checkpoint | None = None,
    stop_at: int | None = None,
) -> Finetuned:
    total = settings.cqsac.n_timesteps
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
    )
    return Finetuned(
        run=folder.path,
        steps=outcome.steps,
        finished=outcome.finished,
        best=outcome.best,
        validation=outcome.validation,
        seeded=None if outcome.seeding is None else outcome.seeding.copied,
    )


def _note_dataset(folder: RunFolder, dataset: str | Path | None) -> None:
    if dataset is not None:
        write_whole(folder.path / DATASET, f"{Path(dataset).resolve()}\n".encode())


def _noted_dataset(folder: RunFolder) -> str | None:
    noted = folder.path / DATASET
    return noted.read_text().rstrip("\n") if noted.is_file() else None


def note_market(folder: RunFolder, market: ObservedMarket) -> None:
    """Write down what `require_noted_market` compares with."""
    prices = market.prices
    content = {"rows": len(prices), "prices": _prices_key(prices, len(prices))}
    write_json(folder.path / MARKET, {**content, "layout": market.layout.as_dict()})


def require_noted_market(folder: RunFolder, market: ObservedMarket) -> None:
    """Refuse to go on with another universe, or where the past has changed."""
    noted = read_json(folder.path / MARKET)
    layout = ObservationLayout.from_dict(noted.get("layout", {}))
    layout.require_equal(market.layout, market.prices.source)
    if noted.get("prices") != _prices_key(market.prices, int(noted.get("rows", 0))):
        raise ArtefactError(
            f"{folder.path}: was trained on other prices than {market.prices.source} has now; "
            "give it the same past, or start a new run"
        )


def _prices_key(prices: PriceTable, rows: int) -> str:
    return content_key(prices.dates[:rows], prices.close[:rows], prices.assets)


def is_pretraining(run: Path) -> bool:
    """Whether it is a run of `pretrain`."""
    return any((folder / "artefact.json").is_file() for folder in (run / "best", run))


def _artefact(run: Path) -> Artefact:
    if not run.is_dir():
        raise ArtefactError(f"{run}: no such run; give a run of finflow pretrain")
    for folder in (run / "best", run):
        if (folder / "artefact.json").is_file():
            return read_artefact(folder)
    raise ArtefactError(f"{run}: no pretrained artefact in it; give a run of finflow pretrain")


def from_scratch(settings: Settings) -> Settings:
    """Without an artefact there is nothing to hand over: SB3's start and target entropy."""
    changes: dict[str, Any] = {"warmup_steps": 0, "cal_ql": False}
    if settings.cqsac.target_entropy == "seeded":
        changes["target_entropy"] = "auto"
    return settings.replace(cqsac=changes)


def _offline_data(
    settings: Settings, market: ObservedMarket, dataset: str | Path | None, watch: Watch
) -> OfflineDataset | None:
    if settings.cqsac.offline_fraction == 0.0:
        return None
    if dataset is None:
        return _cached(settings, market, watch)[0]
    data = read_dataset(Path(dataset))
    require_fit(data, market, settings.env_kwargs, str(dataset))
    return data


Mode = Literal["demo", "full", "offline", "online"]


def train(
    settings: Settings,
    mode: Mode = "full",
    dataset: str | Path | None = None,
    watch: Watch | None = None,
) -> Trained:
    """All stages in one go.

    `full` and `demo`: collect, pretrain, seed, fine-tune, evaluate. `offline`: without
    fine-tuning. `online`: fine-tuning from scratch. `demo` is `full` with small settings.
    """
    pretrained = finetuned = None
    if mode == "demo":
        settings = demo_settings(settings)
    if mode != "online":
        pretrained = pretrain(settings, dataset, watch)
    if mode != "offline":
        source = pretrained.run if pretrained else None
        mixed = dataset if settings.cqsac.offline_fraction > 0.0 else None
        finetuned = finetune(settings, source, mixed, watch=watch)
        if not finetuned.finished:
            return Trained(pretrained, finetuned, None)
    last = finetuned.run if finetuned else pretrained.run if pretrained else None
    assert last is not None
    return Trained(pretrained, finetuned, evaluate(last, watch=watch))


def continue_training(run: str | Path, watch: Watch | None = None) -> Trained:
    """Go on with what `train` left: fine-tuning from its latest checkpoint or, where only a
    pretraining run is given, from its best epoch; then evaluate.

    Parameters
    ----------
    run : a run of either kind, or one checkpoint of a fine-tuning run
    """
    path = Path(run)
    if is_pretraining(path):
        folder = RunFolder.open(path)
        settings = folder.settings()
        dataset = _noted_dataset(folder) if settings.cqsac.offline_fraction > 0.0 else None
        finetuned = finetune(settings, path, dataset, watch=watch)
    else:
        finetuned = resume(path, watch=watch)
    evaluated = evaluate(finetuned.run, watch=watch) if finetuned.finished else None
    return Trained(None, finetuned, evaluated)


def demo_settings(settings: Settings) -> Settings:
    """Small settings that end within five minutes on two cores; smaller ones stay."""
    iql, cqsac = settings.iql, settings.cqsac
    return settings.replace(
        collect={"episodes": min(settings.collect.episodes, 200)},
        iql={"epochs": min(iql.epochs, 8), "batch_size": min(iql.batch_size, 256)},
        cqsac={
            "n_timesteps": min(cqsac.n_timesteps, 60 * settings.env_kwargs.episode_length),
            "warmup_steps": min(cqsac.warmup_steps, 1008),
        },
        run={
            "checkpoint_interval": min(settings.run.checkpoint_interval, 30),
            "evaluate_interval": min(settings.run.evaluate_interval, 15),
        },
    )
