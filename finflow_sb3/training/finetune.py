"""Fine-tuning online: seed, hand over, train, keep the best."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from finflow_sb3.config import Settings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.parallel import from_first
from finflow_sb3.cqsac.seeding import SeedReport, seed, seeded_entropy
from finflow_sb3.cqsac.threads import threads_for
from finflow_sb3.envs.batch import PortfolioBatch
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError
from finflow_sb3.files import write_whole
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.pretrain.artefact import Artefact, write_json
from finflow_sb3.runs.checkpoints import Checkpoint, CheckpointStore
from finflow_sb3.runs.folder import RunFolder
from finflow_sb3.runs.metrics_log import MetricsLog
from finflow_sb3.training.build import build_env, build_model
from finflow_sb3.training.callbacks import TrainingCallback
from finflow_sb3.training.state import restore

__all__ = ["FinetuneOutcome", "keep_policy", "prepare", "require_own_scaler", "run_cqsac"]

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
    """

    steps: int
    finished: bool
    best: float | None
    validation: dict[str, float]
    seeding: SeedReport | None


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
) -> FinetuneOutcome:
    """Train CQSAC to `settings.cqsac.n_timesteps`, from scratch, from an artefact or from a
    checkpoint of the same run.

    Parameters
    ----------
    dataset : offline data to mix in; needed where `offline_fraction` is over 0
    checkpoint : go on from it, exactly
    stop_at : stop with a checkpoint at the first boundary at or after this step
    """
    model, report = prepare(settings, market, artefact, dataset)
    if settings.run.threads == "auto":
        torch.set_num_threads(threads_for(model.policy, settings.cqsac.batch_size))
    if report is not None and checkpoint is None and on_seeded is not None:
        on_seeded(report)
    if checkpoint is not None:
        restore(model, checkpoint)  # before metrics.jsonl is cut: it may refuse
    size = checkpoint.state["callback"]["metrics_size"] if checkpoint else None
    board = folder.tensorboard if settings.run.tensorboard else None
    store = CheckpointStore(folder.checkpoints, settings.run.max_checkpoints)

    def keep_best(figures: dict[str, float]) -> None:
        if settings.run.save_best:
            keep_policy(model, market, folder.best, figures, settings)

    with MetricsLog(folder.metrics, board, size) as log:
        callback = TrainingCallback(
            market,
            settings.env_kwargs,
            settings.run,
            log,
            store,
            on_best=keep_best,
            on_progress=on_progress,
            stop_at=stop_at,
        )
        if checkpoint is not None:
            callback.restore(checkpoint.state["callback"])
        _learn(model, callback, settings.cqsac.n_timesteps, resumed=checkpoint is not None)
    if not settings.run.save_best:
        keep_policy(model, market, folder.last, callback.last_validation, settings)
    return FinetuneOutcome(
        steps=callback.seen,
        finished=not callback.stopping,
        best=callback.best if callback.best > float("-inf") else None,
        validation=callback.last_validation,
        seeding=report,
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
        If observations are to be normalised once more, or a seeded entropy has no seed.
    """
    require_own_scaler(settings)
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


def require_own_scaler(settings: Settings) -> None:
    """Raise a `ConfigError` where observations are to be normalised once more."""
    if settings.cqsac.normalize:
        raise ConfigError(
            "normalize: observations are scaled by the market's own scaler, which travels with "
            "every artefact; set it to false"
        )


def _sample_observations(settings: Settings, market: ObservedMarket) -> torch.Tensor:
    """Observations of the training split: the starts of episodes, the same for a seed."""
    seeds: list[int | None] = [settings.run.seed + i for i in range(ENTROPY_STATES)]
    batch = PortfolioBatch(
        market, market.splits.train, ENTROPY_STATES, settings.env_kwargs, seeds=seeds
    )
    batch.reset()
    return torch.from_numpy(batch.observations())


def _learn(model: CQSAC, callback: TrainingCallback, total: int, resumed: bool) -> None:
    """SB3's learn, to `total` steps in all, stopping at a boundary on Ctrl-C or SIGTERM."""
    remaining = total - model.num_timesteps
    if remaining <= 0:
        callback.init_callback(model)
        callback.finish()
        return
    with _graceful(callback):
        model.learn(
            remaining if resumed else total,
            callback=callback,
            log_interval=None,
            reset_num_timesteps=not resumed,
        )
    if not callback.stopping:
        callback.finish()


@contextmanager
def _graceful(callback: TrainingCallback) -> Iterator[None]:
    """The first signal stops at the next boundary, a second one at once."""

    def stop(number: int, frame: Any) -> None:
        if callback.stop_at == 0:
            raise KeyboardInterrupt
        callback.stop_at = 0

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_policy(
    model: CQSAC,
    market: ObservedMarket,
    target: Path,
    figures: dict[str, float],
    settings: Settings,
) -> None:
    """Write the present policy, with what is needed to use it, into the folder `target`."""
    state = model.policy.state_dict()
    kept = {k: v.detach().cpu().contiguous() for k, v in state.items() if k.startswith("actor.")}
    write_whole(target / "weights.safetensors", save(kept))
    write_json(target / "layout.json", market.layout.as_dict())
    write_json(target / "scaler.json", market.scaler.as_dict())
    facts = {"step": model.num_timesteps, "validation": figures}
    sizes = getattr(model.policy, "sizes", None)
    write_json(
        target / "policy.json",
        {
            "format": POLICY_FORMAT,
            "policy": settings.cqsac.policy,
            "policy_kwargs": settings.cqsac.policy_kwargs,
            "sizes": None if sizes is None else sizes.as_dict(),
            "gate_scale": settings.env_kwargs.gate_scale,
            "facts": facts,
        },
    )
