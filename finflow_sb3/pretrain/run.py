"""Pretraining: epochs of an offline algorithm, each with a backtest on the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from finflow_sb3.config import EnvSettings, IQLSettings, OfflineSettings, TD3BCSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.evaluation.ranking import Ranking
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.offline.transitions import Transitions
from finflow_sb3.parallel import Workers, own_rows, world_size
from finflow_sb3.pretrain.artefact import Artefact
from finflow_sb3.pretrain.choosing import best_by_value, rank_kept, write_ranking
from finflow_sb3.pretrain.course import Course, Epoch, Tensors, capture, restore
from finflow_sb3.pretrain.iql import make_iql
from finflow_sb3.pretrain.learner import Learner
from finflow_sb3.pretrain.td3bc import make_td3bc
from finflow_sb3.runs.checkpoints import Checkpoint
from finflow_sb3.runs.metrics_log import MetricsLog

__all__ = [
    "Epoch",
    "Judged",
    "PretrainOutcome",
    "Started",
    "make_learner",
    "policy_act",
    "run_epochs",
    "run_offline",
    "start_learner",
    "start_offline",
]


@dataclass(frozen=True)
class PretrainOutcome:
    """The best epoch's artefact (None before the first one ended), and the course of all epochs.

    Attributes
    ----------
    steps : gradient steps done
    finished : False where it was stopped before its end
    fqe : the kept epochs by fitted Q evaluation; None where none was asked for, or before its end
    """

    artefact: Artefact | None
    best: Epoch | None
    epochs: tuple[Epoch, ...] = field(repr=False)
    steps: int = 0
    finished: bool = True
    fqe: Ranking | None = None


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
    """An algorithm ready for its next step, what draws its batches, and the course so far."""

    learner: Learner
    generator: torch.Generator
    course: Course


class Judged(NamedTuple):
    """What a policy did on the validation split, and its mean gates there."""

    figures: dict[str, float]
    gates: tuple[float, ...]


Judge = Callable[[nn.Module], Judged]
"""Figures of a policy network at the end of an epoch."""

Rank = Callable[..., Ranking | None]
"""`rank_kept` but for the kept epochs, `on_step` and `stop`."""

Score = Callable[[Epoch], float]
"""What epochs are kept for; the highest is the best."""


def make_learner(
    settings: OfflineSettings,
    inputs: ObservationLayout | Spaces,
    gate_scale: float = 5.0,
    device: str = "cpu",
) -> Learner:
    """The algorithm that these settings are of, with fresh networks.

    Under `torchrun` its processes share their gradients.
    """
    ddp = world_size() > 1
    if isinstance(settings, IQLSettings):
        return make_iql(settings, inputs, gate_scale, device, ddp)
    if isinstance(settings, TD3BCSettings) and isinstance(inputs, ObservationLayout):
        return make_td3bc(settings, inputs, gate_scale, device, ddp)
    raise TypeError(f"{type(settings).__name__}: no algorithm has settings of this kind")


def start_offline(
    market: ObservedMarket,
    env: EnvSettings,
    settings: OfflineSettings,
    seed: int,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> Started:
    """The algorithm of `settings` with fresh networks, or as it was at a checkpoint.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit the settings.
    """
    return start_learner(market.layout, env.gate_scale, settings, seed, device, checkpoint)


def start_learner(
    inputs: ObservationLayout | Spaces,
    gate_scale: float,
    settings: OfflineSettings,
    seed: int,
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> Started:
    """`start_offline` for what the networks take in, be it of a market or not."""
    set_random_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    learner = make_learner(settings, inputs, gate_scale, device)
    course = Course() if checkpoint is None else restore(learner, generator, checkpoint)
    return Started(learner, generator, course)


def run_offline(
    dataset: OfflineDataset,
    market: ObservedMarket,
    env: EnvSettings,
    settings: OfflineSettings,
    seed: int,
    device: str = "cpu",
    log: MetricsLog | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_best: Callable[[Artefact], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_checkpoint: Callable[[int, Tensors, dict[str, Any]], None] | None = None,
    on_fqe: Callable[[int, int], None] | None = None,
    started: Started | None = None,
    stop: Callable[[int], bool] | None = None,
) -> PretrainOutcome:
    """Train on `dataset`; the epoch with the best validation Sharpe is kept.

    Parameters
    ----------
    on_best : called with the artefact whenever an epoch is better than all before
    on_step : called with the gradient steps done so far
    on_checkpoint : called with step, tensors and state after each epoch and at a stop
    on_fqe : called with (gradient steps done, gradient steps) of fitted Q evaluation
    started : of `start_offline`; made here if not given
    stop : asked after each step, with their number, whether to stop there

    Raises
    ------
    ArtefactError
        If the dataset was made with another universe or feature set.
    """
    market.layout.require_equal(dataset.layout, "the dataset")
    if started is None:
        started = start_offline(market, env, settings, seed, device)
    return run_epochs(
        dataset,
        settings,
        started,
        judge=partial(_judged, market, env, device),
        score=_sharpe,
        best_of=partial(_best, started.learner, started.course, market),
        log=log,
        on_epoch=on_epoch,
        on_best=on_best,
        on_step=on_step,
        on_checkpoint=on_checkpoint,
        on_fqe=on_fqe,
        stop=stop,
        rank=partial(
            rank_kept,
            started.learner,
            dataset=dataset,
            layout=market.layout,
            settings=settings,
            seed=seed,
            device=device,
        ),
    )


def run_epochs(
    dataset: Transitions,
    settings: OfflineSettings,
    started: Started,
    *,
    judge: Judge,
    score: Score,
    rank: Rank,
    best_of: Callable[[], Artefact],
    log: MetricsLog | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_best: Callable[[Artefact], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    on_checkpoint: Callable[[int, Tensors, dict[str, Any]], None] | None = None,
    on_fqe: Callable[[int, int], None] | None = None,
    stop: Callable[[int], bool] | None = None,
    by_value: bool = False,
) -> PretrainOutcome:
    """Epochs of gradient steps on any transitions; callbacks are those of `run_offline`.

    Parameters
    ----------
    judge, score : figures of an epoch, and what it is kept for
    rank : evaluates the kept epochs in the end, where `fqe_epochs` asks for it
    best_of : makes the artefact of the first of the kept epochs
    by_value : whether the kept epoch of the highest fitted value comes first in the end
    """
    learner, generator, course = started
    if course.best is not None and on_best is not None:
        # What `best/` holds may come from after the checkpoint.
        on_best(best_of())
    total = settings.epochs * settings.steps_per_epoch
    stopped = False
    while course.step < total and not stopped:
        # Each draws for all: W processes learn as one does from batches W times as large.
        drawn = (world_size() * settings.batch_size,)
        index = own_rows(torch.randint(len(dataset), drawn, generator=generator))
        course.add(learner.update_on(dataset.gather(index)))
        if on_step is not None:
            on_step(course.step)
        ended = course.step % settings.steps_per_epoch == 0
        if ended:
            epoch = _end_epoch(learner, course, judge, score, max(1, settings.fqe_epochs))
            if epoch is course.best and on_best is not None:
                on_best(best_of())
            _write(log, epoch, course.step)
            if on_epoch is not None:
                on_epoch(epoch)
        stopped = stop is not None and stop(course.step)
        if on_checkpoint is not None and (ended or stopped):
            on_checkpoint(course.step, *capture(learner, generator, course))
    finished, ranked = course.step >= total, None
    judged = course.kept[: settings.fqe_epochs]
    if finished and judged:
        asked = None if stop is None else partial(stop, course.step)
        ranked = rank(judged, on_step=on_fqe, stop=asked)
        finished = ranked is not None
        if ranked is not None and log is not None:
            write_ranking(log, course.step, ranked)
        if ranked is not None and by_value:
            course.put_first(best_by_value(judged, ranked))
            if on_best is not None:
                on_best(best_of())
    artefact = None if course.best is None else best_of()
    return PretrainOutcome(
        artefact, course.best, tuple(course.epochs), course.step, finished, ranked
    )


def _end_epoch(learner: Learner, course: Course, judge: Judge, score: Score, room: int) -> Epoch:
    """Validate, and keep the weights if they are among the `room` best so far."""
    losses = {name: _over_processes(loss) for name, loss in course.means().items()}
    figures, gates = judge(learner.experts)
    epoch = Epoch(len(course.epochs) + 1, losses, figures, gates)
    course.epochs.append(epoch)
    course.keep(epoch, learner.weights, room, score)
    return epoch


def _over_processes(loss: float) -> float:
    return float(Workers().mean(torch.tensor(loss, dtype=torch.float64)))


def _sharpe(epoch: Epoch) -> float:
    return epoch.validation["sharpe"]


def _judged(market: ObservedMarket, env: EnvSettings, device: str, policy: nn.Module) -> Judged:
    figures = validate(market, env, policy_act(policy, device))
    rows = slice(market.splits.validation.start, market.splits.validation.stop)
    return Judged(figures, _mean_gates(policy, market, rows, device))


@torch.no_grad()
def _mean_gates(
    policy: nn.Module, market: ObservedMarket, rows: slice, device: str
) -> tuple[float, ...]:
    """Mean gates over rows of the market, for a portfolio that holds equal weights."""
    observations = np.zeros((rows.stop - rows.start, market.layout.size), dtype=np.float32)
    observations[:, : market.layout.market_size] = market.rows[rows]
    n = market.layout.n_assets
    start = market.layout.slices["weights"].start
    observations[:, start : start + n] = 1.0 / n
    gates = policy(torch.from_numpy(observations).to(device)).gates
    return tuple(float(g) for g in gates.mean(dim=0))


def _best(learner: Learner, course: Course, market: ObservedMarket) -> Artefact:
    """What the best epoch leaves."""
    best, weights = course.kept[0]
    return Artefact(
        algo=learner.algo,
        weights=weights,
        sizes=learner.sizes,
        gate_scale=learner.gate_scale,
        layout=market.layout,
        scaler=market.scaler,
        facts={"epoch": best.number, "validation": best.validation},
    )


def _write(log: MetricsLog | None, epoch: Epoch, step: int) -> None:
    if log is None:
        return
    log.write(
        step,
        kind="pretrain",
        epoch=epoch.number,
        **epoch.losses,
        **{f"validation_{name}": value for name, value in epoch.validation.items()},
        gates=list(epoch.gates),
    )
