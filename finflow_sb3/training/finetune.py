"""Fine-tuning online: seed, hand over, train, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from finflow_sb3.allocator import keep_freed_memory
from finflow_sb3.config import Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.seeding import SeedReport, seed, seeded_entropy
from finflow_sb3.cqsac.threads import threads_for
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.parallel import from_first
from finflow_sb3.pretrain.artefact import Artefact, write_sealed
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.stopping import stop_on_signal
from finflow_sb3.training.build import build_env, build_model
from finflow_sb3.training.callbacks import EndOfTraining, TrainingCallback, Validated
from finflow_sb3.training.guard import Guard
from finflow_sb3.training.known_callbacks import known_callbacks
from finflow_sb3.training.monitor import Event
from finflow_sb3.training.recording import recording
from finflow_sb3.training.state import restore

__all__ = ["FinetuneOutcome", "keep_policy", "prepare", "run_cqsac"]

ENTROPY_STATES = 1024
POLICY_FORMAT = "finflow-policy-1"


@dataclass(frozen=True)
class FinetuneOutcome:
    """What fine-tuning came to.

    Attributes
    ----------
    steps : environment steps done
    finished : False where it was stopped before its end
    best : validation Sharpe of what `best/` holds, None before the first validation
    validation : figures of the last validation
    seeding : what was seeded, None for a run from scratch or resumed
    stopped : why the stability monitor stopped it, None where it did not
    stability : by check, see `Monitor.summary`
    """

    steps: int
    finished: bool
    best: float | None
    validation: dict[str, float]
    seeding: SeedReport | None
    stopped: str | None
    stability: dict[str, dict[str, Any]]


def run_cqsac(
    settings: Settings,
    market: ObservedMarket,
    folder: RunFolder,
    artefact: Artefact | None = None,
    dataset: OfflineDataset | None = None,
    checkpoint: Checkpoint | None = None,
    stop_at: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_seeded: Callable[[SeedReport], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    on_validated: Validated | None = None,
) -> FinetuneOutcome:
    """Train CQSAC to `settings.cqsac.n_timesteps`, from scratch, from an artefact or from a
    checkpoint of the same run.

    Parameters
    ----------
    dataset : offline data to mix in; needed where `offline_fraction` is over 0
    checkpoint : go on from it, exactly
    stop_at : stop with a checkpoint at the first boundary at or after this step
    """
    keep_freed_memory()
    model, report = prepare(settings, market, artefact, dataset)
    if settings.run.threads == "auto":
        torch.set_num_threads(threads_for(model.policy, settings.cqsac.batch_size))
    if report is not None and checkpoint is None and on_seeded is not None:
        on_seeded(report)
    store = CheckpointStore(folder.checkpoints, settings.run.max_checkpoints)
    if checkpoint is not None:
        restore(model, checkpoint)  # before anything is cut: it may refuse
        store.go_on_from(checkpoint)
    total, run = settings.cqsac.n_timesteps, settings.run

    def keep_best(figures: dict[str, float]) -> None:
        if run.save_best:
            keep_policy(model, market, folder.best, figures, settings)

    with recording(settings, folder, "fine-tuning", total, checkpoint) as record:
        guard = Guard(settings.monitor, model, record.log, on_event)
        known = known_callbacks(settings, market, folder.path)
        callback = TrainingCallback(
            market,
            settings,
            record.log,
            guard,
            store,
            on_best=keep_best,
            on_progress=record.status.before(on_progress),
            stop_at=stop_at,
            known=known,
            on_validated=on_validated,
        )
        if checkpoint is not None:
            callback.go_on_from(checkpoint)
        others = [known, *record.tracker.callbacks]
        _learn(model, callback, total, checkpoint is not None, others)
        record.status.stopping = not callback.finished
        if callback.finished:
            record.log.hyperparameters(settings.flat(), callback.last_validation)
    if not run.save_best:
        keep_policy(model, market, folder.last, callback.last_validation, settings)
    return _outcome(callback, report)


def _outcome(callback: TrainingCallback, seeding: SeedReport | None) -> FinetuneOutcome:
    guard = callback.guard
    return FinetuneOutcome(
        steps=callback.seen,
        finished=callback.finished,
        best=callback.best if callback.best > float("-inf") else None,
        validation=callback.last_validation,
        seeding=seeding,
        stopped=guard.reason,
        stability=guard.monitor.summary(),
    )


def prepare(
    settings: Settings,
    market: ObservedMarket,
    artefact: Artefact | None = None,
    dataset: OfflineDataset | None = None,
) -> tuple[CQSAC, SeedReport | None]:
    """A model that is ready to learn: built, seeded, with its offline data.

    Raises
    ------
    ConfigError
        If a seeded entropy has no seed, or Cal-QL's floor no V.
    """
    if artefact is not None and settings.cqsac.cal_ql and not artefact.has_value:
        raise ConfigError(
            f"cal_ql: floors Q at a pretrained V, and {artefact.algo} has none; set it to false"
        )
    env = build_env(market, settings.env_kwargs, settings.cqsac, settings.run.seed)
    model = build_model(env, market, settings.env_kwargs, settings.cqsac, settings.run, artefact)
    if dataset is not None and settings.cqsac.offline_fraction > 0.0:
        market.layout.require_equal(dataset.layout, "the dataset")
        model.set_offline_data(dataset)
    if artefact is None:
        if settings.cqsac.target_entropy == "seeded":
            raise ConfigError("target_entropy: seeded needs a pretrained run; set auto")
        return model, None
    report = seed(model, artefact)
    if settings.cqsac.target_entropy == "seeded":
        states = _sample_observations(settings, market).to(model.device)
        model.target_entropy = float(from_first(repr(seeded_entropy(model, states))))
    return model, report


def _sample_observations(settings: Settings, market: ObservedMarket) -> torch.Tensor:
    """Observations of the training split: the starts of episodes, the same for a seed."""
    seeds: list[int | None] = [settings.run.seed + i for i in range(ENTROPY_STATES)]
    batch = PortfolioBatch(
        market, market.splits.train, ENTROPY_STATES, settings.env_kwargs, seeds=seeds
    )
    batch.reset()
    return torch.from_numpy(batch.observations())


def _learn(
    model: CQSAC,
    callback: TrainingCallback,
    total: int,
    resumed: bool,
    others: Sequence[BaseCallback] = (),
) -> None:
    """SB3's learn, to `total` steps in all, stopping at a boundary on Ctrl-C or SIGTERM."""
    remaining = total - model.num_timesteps
    if remaining <= 0:
        callback.init_callback(model)
        callback.finish()
        return
    with stop_on_signal() as callback.stop, suppress(EndOfTraining):
        model.learn(
            remaining if resumed else total,
            callback=[callback, *others],
            log_interval=None,
            reset_num_timesteps=not resumed,
        )
    if not callback.stopping:
        callback.finish()


def keep_policy(
    model: CQSAC,
    market: ObservedMarket,
    target: Path,
    figures: dict[str, float],
    settings: Settings,
) -> None:
    """Write the present policy, with what is needed to use it, into the folder `target`."""
    state = model.policy.state_dict()
    sizes = getattr(model.policy, "sizes", None)
    head = {
        "format": POLICY_FORMAT,
        "policy": settings.cqsac.policy,
        "policy_kwargs": settings.cqsac.policy_kwargs,
        "sizes": None if sizes is None else sizes.as_dict(),
        "gate_scale": settings.env_kwargs.gate_scale,
        "facts": {"step": model.num_timesteps, "validation": figures},
    }
    weights = {name: value for name, value in state.items() if name.startswith("actor.")}
    write_sealed(target, weights, market.layout, market.scaler, {"policy.json": head})
