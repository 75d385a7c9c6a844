"""Pretraining: epochs of IQL, each with a backtest on the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from finflow_sb3.config import EnvSettings, IQLSettings
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.evaluation.quick import validate
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.pretrain.artefact import Artefact, stacked_weights
from finflow_sb3.pretrain.iql import ExpertIQL, make_iql
from finflow_sb3.runs.metrics_log import MetricsLog

__all__ = ["Epoch", "PretrainOutcome", "policy_act", "run_iql"]


@dataclass(frozen=True)
class Epoch:
    """Means over one epoch, and its validation backtest.

    Attributes
    ----------
    v_loss, q_loss, policy_loss : as d3rlpy defines them
    gates : mean gate of the last batch
    validation : see `evaluation.quick.validate`
    """

    number: int
    v_loss: float
    q_loss: float
    policy_loss: float
    validation: dict[str, float]
    gates: tuple[float, ...] = ()


@dataclass(frozen=True)
class PretrainOutcome:
    """The best epoch's artefact and the course of all epochs."""

    artefact: Artefact
    best: Epoch
    epochs: tuple[Epoch, ...] = field(repr=False)


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
) -> PretrainOutcome:
    """Train IQL on `dataset`; the epoch with the best validation Sharpe is kept.

    Parameters
    ----------
    on_best : called with the artefact whenever an epoch is better than all before
    on_step : called with the gradient steps done so far

    Raises
    ------
    ArtefactError
        If the dataset was made with another universe or feature set.
    """
    market.layout.require_equal(dataset.layout, "the dataset")
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    algo = make_iql(settings, market.layout, env.gate_scale, device)
    epochs: list[Epoch] = []
    best: tuple[Epoch, Artefact] | None = None
    for number in range(1, settings.epochs + 1):
        losses = _one_epoch(algo, dataset, settings, generator, number, on_step)
        epoch = _validated(number, losses, algo, market, env, device)
        epochs.append(epoch)
        if best is None or epoch.validation["sharpe"] > best[0].validation["sharpe"]:
            best = epoch, _artefact(algo, market, epoch)
            if on_best is not None:
                on_best(best[1])
        _write(log, epoch, number * settings.steps_per_epoch)
        if on_epoch is not None:
            on_epoch(epoch)
    assert best is not None
    return PretrainOutcome(best[1], best[0], tuple(epochs))


def _one_epoch(
    algo: ExpertIQL,
    dataset: OfflineDataset,
    settings: IQLSettings,
    generator: torch.Generator,
    number: int,
    on_step: Callable[[int], None] | None,
) -> dict[str, float]:
    """Mean losses over the epoch's steps."""
    totals: dict[str, float] = {}
    for step in range(settings.steps_per_epoch):
        index = torch.randint(len(dataset), (settings.batch_size,), generator=generator)
        for name, value in algo.update_on(dataset.gather(index)).items():
            totals[name] = totals.get(name, 0.0) + value
        if on_step is not None:
            on_step((number - 1) * settings.steps_per_epoch + step + 1)
    return {name: total / settings.steps_per_epoch for name, total in totals.items()}


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


def _artefact(algo: ExpertIQL, market: ObservedMarket, epoch: Epoch) -> Artefact:
    modules = algo.modules
    experts: Any = modules.policy
    weights = stacked_weights(experts, modules.q_funcs, modules.targ_q_funcs, modules.value_func)
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
