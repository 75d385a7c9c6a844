"""The verbs: collect, pretrain, finetune, evaluate, and train, which is all of them in a row.

Each takes a configuration and the previous stage's result, and returns a frozen dataclass with
what was written and measured. The command line adds parsing and printing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from finflow_sb3.config import Settings
from finflow_sb3.cqsac.seeding import SeedReport
from finflow_sb3.envs.observations import ObservedMarket, Scaler, observe
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluation.backtest import backtest, baselines
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures
from finflow_sb3.evaluation.quick import untrained
from finflow_sb3.evaluation.report import ReportInput, ReportMarket, ReportPaths, write_report
from finflow_sb3.market.sources import load_prices
from finflow_sb3.market.summary import SURVIVORSHIP_NOTE
from finflow_sb3.offline.collect import cached_dataset, collect_dataset
from finflow_sb3.offline.dataset import OfflineDataset, read_dataset, write_dataset, write_npz
from finflow_sb3.pretrain.artefact import Artefact, read_artefact, write_artefact
from finflow_sb3.pretrain.run import Epoch, run_iql
from finflow_sb3.runs.checkpoints import CheckpointStore, read_checkpoint
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training.build import pick_device
from finflow_sb3.training.finetune import FinetuneOutcome, run_cqsac
from finflow_sb3.training.trained import load_policy

__all__ = [
    "Collected",
    "Evaluated",
    "Finetuned",
    "Pretrained",
    "Trained",
    "Watch",
    "collect",
    "evaluate",
    "finetune",
    "open_market",
    "pretrain",
    "train",
]


class Watch:
    """What a caller may want to hear of while a stage runs; override what is of use."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of a stage (refits, episodes, steps) are done."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch of pretraining has ended."""

    def seeded(self, report: SeedReport) -> None:
        """CQSAC was seeded."""

    def remark(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True)
class Collected:
    """A dataset on disk, and how each rule did: (episodes, mean reward, mean distance)."""

    path: Path
    transitions: int
    episodes: int
    behaviours: dict[str, tuple[int, float, float]]


@dataclass(frozen=True)
class Pretrained:
    """A pretraining run. `untrained` are the zero action's validation figures."""

    run: Path
    dataset: Path
    best_epoch: int
    validation: dict[str, float]
    untrained: dict[str, float]


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuning run. `best` is the validation Sharpe of what `best/` holds."""

    run: Path
    steps: int
    finished: bool
    best: float | None
    validation: dict[str, float]
    seeded: dict[str, int] | None


@dataclass(frozen=True)
class Evaluated:
    """Test figures of a run: name of the curve → execution lag → measures."""

    run: Path
    report: Path
    verdict: str
    dates: tuple[str, str]
    measures: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Trained:
    """Results of the stages that ran."""

    pretrained: Pretrained | None
    finetuned: Finetuned | None
    evaluated: Evaluated | None


def open_market(
    settings: Settings, scaler: Scaler | None = None, watch: Watch | None = None
) -> ObservedMarket:
    """The market of a configuration, with features and anchors computed."""
    watch = watch or Watch()
    torch.set_num_threads(settings.run.threads)
    prices = load_prices(settings.market.prices, max_gap=settings.market.max_gap)
    return observe(
        prices,
        settings.market,
        settings.env_kwargs,
        scaler,
        on_progress=lambda done, total: watch.progress("anchors", done, total),
    )


def pinned(settings: Settings, market: ObservedMarket) -> Settings:
    """The settings with split dates written out, so that more data moves no split."""
    dates, splits = market.prices.dates, market.splits
    return settings.replace(
        market={
            "train_end": str(dates[splits.validation.start - 1]),
            "validation_end": str(dates[splits.test.start - 1]),
        }
    )


def collect(
    settings: Settings, save_path: str | Path | None = None, watch: Watch | None = None
) -> Collected:
    """Collect offline data; into the cache, or into `save_path` (`.h5`, or `.npz` to export)."""
    watch = watch or Watch()
    path = None if save_path is None else Path(save_path)
    if path is not None and path.suffix not in (".h5", ".hdf5", ".npz"):
        raise ConfigError(f"{path}: a dataset ends in .h5 or .npz")
    market = open_market(settings, watch=watch)
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
    watch = watch or Watch()
    if dataset is not None and not Path(dataset).is_file():
        raise ArtefactError(f"{dataset}: no such dataset; write one with finflow collect")
    market = open_market(settings, watch=watch)
    settings = pinned(settings, market)
    if dataset is None:
        data, path = _cached(settings, market, watch)
    else:
        data, path = read_dataset(Path(dataset)), Path(dataset)
        market.layout.require_equal(data.layout, str(path))
    folder = RunFolder.create(settings.run.log_dir, "iql", settings.env)
    folder.write_settings(settings)
    total = settings.iql.epochs * settings.iql.steps_per_epoch
    board = folder.tensorboard if settings.run.tensorboard else None
    with MetricsLog(folder.metrics, board) as log:
        outcome = run_iql(
            data,
            market,
            settings.env_kwargs,
            settings.iql,
            settings.run.seed,
            device=pick_device(settings.run.device),
            log=log,
            on_epoch=watch.epoch,
            on_best=lambda artefact: write_artefact(artefact, folder.best),
            on_step=lambda step: watch.progress("pretraining", step, total),
        )
    return Pretrained(
        run=folder.path,
        dataset=path,
        best_epoch=outcome.best.number,
        validation=outcome.best.validation,
        untrained=untrained(market, settings.env_kwargs),
    )


def finetune(
    settings: Settings,
    pretrained: str | Path | None = None,
    dataset: str | Path | None = None,
    stop_at: int | None = None,
    watch: Watch | None = None,
) -> Finetuned:
    """Train CQSAC online, seeded by a pretraining run or from scratch.

    Parameters
    ----------
    pretrained : run of `pretrain`
    dataset : offline data to mix in; collected (or from the cache) if needed and not given
    stop_at : stop with a checkpoint at the first boundary at or after this step
    """
    watch = watch or Watch()
    artefact = None if pretrained is None else _artefact(Path(pretrained))
    if artefact is None:
        settings = _from_scratch(settings)
    market = open_market(settings, artefact.scaler if artefact else None, watch)
    if artefact is not None:
        market.layout.require_equal(artefact.layout, str(pretrained))
    settings = pinned(settings, market)
    folder = RunFolder.create(settings.run.log_dir, "cqsac", settings.env)
    folder.write_settings(settings)
    if artefact is not None:
        write_artefact(artefact, folder.path / "seed")
    data = _offline_data(settings, market, dataset, watch)
    return _run(settings, market, folder, artefact, data, watch, stop_at=stop_at)


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
    named = path if path.name.startswith("step_") else None
    folder = RunFolder.open(path.parent.parent if named else path)
    settings = folder.settings()
    if n_timesteps is not None:
        settings = settings.replace(cqsac={"n_timesteps": n_timesteps})
        folder.write_settings(settings)
    store = CheckpointStore(folder.checkpoints, settings.run.max_checkpoints)
    checkpoint = read_checkpoint(named or store.pointed("latest"))
    seeded = folder.path / "seed"
    artefact = read_artefact(seeded) if seeded.is_dir() else None
    market = open_market(settings, artefact.scaler if artefact else None, watch)
    data = _offline_data(settings, market, None, watch)
    step = checkpoint.state["counters"]["num_timesteps"]
    watch.remark(f"resuming {folder.path} at step {step:,} of {settings.cqsac.n_timesteps:,}")
    return _run(settings, market, folder, artefact, data, watch, checkpoint, stop_at)


def _run(
    settings: Settings,
    market: ObservedMarket,
    folder: RunFolder,
    artefact: Artefact | None,
    data: OfflineDataset | None,
    watch: Watch,
    checkpoint: Any = None,
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


def _artefact(run: Path) -> Artefact:
    for folder in (run / "best", run):
        if (folder / "artefact.json").is_file():
            return read_artefact(folder)
    raise ArtefactError(f"{run}: no pretrained artefact in it; give a run of finflow pretrain")


def _from_scratch(settings: Settings) -> Settings:
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
    market.layout.require_equal(data.layout, str(dataset))
    return data


def evaluate(
    run: str | Path, prices: str | None = None, watch: Watch | None = None
) -> Evaluated:
    """Backtest a run's best policy on its test split, and write the report.

    Parameters
    ----------
    prices : other prices of the same universe; the run's own if not given
    """
    folder = RunFolder.open(run)
    settings = folder.settings()
    if prices is not None:
        settings = settings.replace(market={"prices": prices})
    policy = load_policy(folder.path)
    market = open_market(settings, policy.scaler, watch)
    market.layout.require_equal(policy.layout, str(run))
    env, span = settings.env_kwargs, market.splits.test
    lags = (0, 1)
    curves = [backtest(market, span, env, policy.act, policy.name, lag) for lag in lags]
    others = [curve for lag in lags for curve in baselines(market, span, env, lag)]
    paths = write_report(_report(folder, settings, market, policy, curves, others), folder.report)
    return Evaluated(
        run=folder.path,
        report=paths.index,
        verdict=paths.verdict.sentence,
        dates=span.dates(market.prices.dates),
        measures=_measures([*curves, *others], market),
    )


def _measures(
    curves: list[Curve], market: ObservedMarket
) -> dict[str, dict[str, dict[str, float]]]:
    span = market.splits.test
    cash = market.prices.cash_rate[span.start + 1 : span.stop]
    out: dict[str, dict[str, dict[str, float]]] = {}
    for curve in curves:
        out.setdefault(curve.name, {})[f"lag_{curve.execution_lag}"] = measures(curve, cash)
    return out


def _report(
    folder: RunFolder,
    settings: Settings,
    market: ObservedMarket,
    policy: Any,
    curves: list[Curve],
    others: list[Curve],
) -> ReportInput:
    prices, span = market.prices, market.splits.test
    return ReportInput(
        title=f"{policy.name} on {prices.source}",
        run=str(folder.path),
        market=ReportMarket(
            source=prices.source,
            assets=prices.assets,
            first=str(prices.dates[0]),
            last=str(prices.dates[-1]),
            survivorship=SURVIVORSHIP_NOTE if prices.survivorship else None,
        ),
        splits={name: s.dates(prices.dates) for name, s in market.splits.named().items()},
        policy=tuple(curves),
        baselines=tuple(others),
        settings=settings.as_dict(),
        command=folder.command(),
        cash_rate=prices.cash_rate[span.start + 1 : span.stop],
        extra={"policy": str(policy.facts)},
    )


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
        finetuned = finetune(settings, source, dataset, watch=watch)
        if not finetuned.finished:
            return Trained(pretrained, finetuned, None)
    last = finetuned.run if finetuned else pretrained.run if pretrained else None
    assert last is not None
    return Trained(pretrained, finetuned, evaluate(last, watch=watch))


def demo_settings(settings: Settings) -> Settings:
    """Small settings that end within minutes on two cores."""
    return settings.replace(
        collect={"episodes": min(settings.collect.episodes, 200)},
        iql={
            "epochs": min(settings.iql.epochs, 8),
            "batch_size": min(settings.iql.batch_size, 256),
        },
        cqsac={"n_timesteps": min(settings.cqsac.n_timesteps, 25_200)},
        run={"checkpoint_interval": 25, "evaluate_interval": 10},
    )
