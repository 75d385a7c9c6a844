"""Pretraining: epochs of IQL, each with a backtest on the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from finflow_sb3.config import EnvSettings, IQLSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.pretrain.artefact import Artefact
from finflow_sb3.pretrain.course import Course, Epoch, Tensors, capture, restore, stacked_weights_of
from finflow_sb3.pretrain.iql import ExpertIQL, make_iql
from finflow_sb3.runs.checkpoints import Checkpoint
from finflow_sb3.runs.metrics_log import MetricsLog

__all__ = ["Epoch", "PretrainOutcome", "policy_act", "run_iql"]


@dataclass(frozen=True)
class PretrainOutcome:
    """The best epoch's artefact (None before the first one ended), and the course of all epochs.

    Attributes
    ----------
    steps : gradient steps done
    finished : False where it was stopped before its end
    """

    artefact: Artefact | None
    best: Epoch | None
    epochs: tuple[Epoch, ...] = field(repr=False)
    steps: int = 0
    finished: bool = True


def policy_act(policy: nn.Module, device: str = "cpu") -> Callable[[Any], NDArray[np.float32]]:
    """Deterministic actions of a policy network: tanh of the mean."""

    @torch.no_grad()
    def act(observations: NDArray[np.float32]) -> NDArray[np.float32]:
        training = policy.training
        policy.eval()
        mean = policy(torch.from_numpy(observations).to(device)).mean
        policy.train(training)
        return np.asarray(torch.tanh(mean).cpu().numpy())

    return act


class Started(NamedTuple):
    """IQL ready for its next step: networks and optimisers, what draws batches, and the course."""

    algo: ExpertIQL
    generator: torch.Generator
    course: Course


def start_iql(
    market: ObservedMarket,
    env: EnvSettings,
    settings: IQLSettings,
    seed: int,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> Started:
    """IQL with fresh networks, or as it was at a checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit the settings.
    """
    set_random_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    algo = make_iql(settings, market.layout, env.gate_scale, device)
    course = Course() if checkpoint is None else restore(algo, generator, checkpoint)
    return Started(algo, generator, course)


def run_iql(
    dataset: OfflineDataset,
    market: ObservedMarket,
    env: EnvSettings,
    settings: IQLSettings,
    seed: int,
    device: str = "cpu",
    log: MetricsLog | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_best: Callable[[Artefact], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_checkpoint: Callable[[int, Tensors, dict[str, Any]], None] | None = None,
    started: Started | None = None,
    stop: Callable[[int], bool] | None = None,
) -> PretrainOutcome:
    """Train IQL on `dataset`; the epoch with the best validation Sharpe is kept.

    Parameters
    ----------
    on_best : called with the artefact whenever an epoch is better than all before
    on_step : called with the gradient steps done so far
    on_checkpoint : called with step, tensors and state after each epoch and at a stop
    started : of `start_iql`; made here if not given
    stop : asked after each step, with their number, whether to stop there

    Raises
    ------
    ArtefactError
        If the dataset was made with another universe or feature set.
    """
    market.layout.require_equal(dataset.layout, "the dataset")
    algo, generator, course = started or start_iql(market, env, settings, seed, device)
    if course.best is not None and on_best is not None:
        # What `best/` holds may come from after the checkpoint.
        on_best(_artefact(algo, market, course.best, course.best_weights))
    total = settings.epochs * settings.steps_per_epoch
    stopped = False
    while course.step < total and not stopped:
        _one_step(algo, dataset, settings.batch_size, generator, course)
        if on_step is not None:
            on_step(course.step)
        ended = course.step % settings.steps_per_epoch == 0
        if ended:
            epoch = _end_epoch(algo, market, env, settings, device, course)
            if epoch is course.best and on_best is not None:
                on_best(_artefact(algo, market, epoch, course.best_weights))
            _write(log, epoch, course.step)
            if on_epoch is not None:
                on_epoch(epoch)
        stopped = stop is not None and stop(course.step)
        if on_checkpoint is not None and (ended or stopped):
            on_checkpoint(course.step, *capture(algo, generator, course))
    best = course.best
    artefact = None if best is None else _artefact(algo, market, best, course.best_weights)
    return PretrainOutcome(artefact, best, tuple(course.epochs), course.step, course.step >= total)


def _one_step(
    algo: ExpertIQL,
    dataset: OfflineDataset,
    batch_size: int,
    generator: torch.Generator,
    course: Course,
) -> None:
    """One gradient step; its losses are added to the epoch's."""
    index = torch.randint(len(dataset), (batch_size,), generator=generator)
    for name, value in algo.update_on(dataset.gather(index)).items():
        course.totals[name] = course.totals.get(name, 0.0) + value
    course.step += 1


def _end_epoch(
    algo: ExpertIQL,
    market: ObservedMarket,
    env: EnvSettings,
    settings: IQLSettings,
    device: str,
    course: Course,
) -> Epoch:
    """Validate, and keep the weights if they are the best so far."""
    losses = {name: total / settings.steps_per_epoch for name, total in course.totals.items()}
    course.totals = {}
    epoch = _validated(len(course.epochs) + 1, losses, algo, market, env, device)
    course.epochs.append(epoch)
    best = course.best
    if best is None or epoch.validation["sharpe"] > best.validation["sharpe"]:
        course.best, course.best_weights = epoch, stacked_weights_of(algo)
    return epoch


def _validated(
    number: int,
    losses: dict[str, float],
    algo: ExpertIQL,
    market: ObservedMarket,
    env: EnvSettings,
    device: str,
) -> Epoch:
    experts: Any = algo.modules.policy.experts
    figures = validate(market, env, policy_act(experts, device))
    rows = slice(market.splits.validation.start, market.splits.validation.stop)
    return Epoch(
        number=number,
        v_loss=losses["v_loss"],
        q_loss=losses["q_loss"],
        policy_loss=losses["actor_loss"],
        validation=figures,
        gates=_mean_gates(experts, market, rows, device),
    )


@torch.no_grad()
def _mean_gates(
    experts: nn.Module, market: ObservedMarket, rows: slice, device: str
) -> tuple[float, ...]:
    """Mean gates over rows of the market, for a portfolio that holds equal weights."""
    observations = np.zeros((rows.stop - rows.start, market.layout.size), dtype=np.float32)
    observations[:, : market.layout.market_size] = market.rows[rows]
    n = market.layout.n_assets
    start = market.layout.slices["weights"].start
    observations[:, start : start + n] = 1.0 / n
    gates = experts(torch.from_numpy(observations).to(device)).gates
    return tuple(float(g) for g in gates.mean(dim=0))


def _artefact(
    algo: ExpertIQL, market: ObservedMarket, epoch: Epoch, weights: dict[str, torch.Tensor]
) -> Artefact:
    return Artefact(
        algo="iql",
        weights=weights,
        sizes=algo.sizes,
        gate_scale=algo.gate_scale,
        layout=market.layout,
        scaler=market.scaler,
        facts={"epoch": epoch.number, "validation": epoch.validation},
    )


def _write(log: MetricsLog | None, epoch: Epoch, step: int) -> None:
    if log is None:
        return
    log.write(
        step,
        kind="pretrain",
        epoch=epoch.number,
        v_loss=epoch.v_loss,
        q_loss=epoch.q_loss,
        policy_loss=epoch.policy_loss,
        **{f"validation_{name}": value for name, value in epoch.validation.items()},
        gates=list(epoch.gates),
    )
