"""What a policy is worth, from data alone: fitted Q evaluation (Le et al. 2019) through d3rlpy.

Q of a fixed policy π is fitted to r + γ·(1 − d)·Q̂(s', π(s')), Q̂ being a copy of Q that is
renewed from time to time; the policy's value is the mean of Q(s, π(s)) over the states in which
episodes start. Loss, target and update are d3rlpy's; batches come from one gather over arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from d3rlpy.algos.qlearning import QLearningAlgoImplBase
from d3rlpy.models.q_functions import MeanQFunctionFactory
from d3rlpy.ope import FQE, FQEConfig
from d3rlpy.torch_utility import Modules
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor, nn

from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.offline.transitions import TransitionBatch, Transitions
from finflow_sb3.pretrain.modules import FusedAdamFactory, LayoutEncoderFactory, mini_batch

__all__ = ["FQEOptions", "PolicyValue", "PolicyValueFit", "fitted_values"]

STARTS_AT_A_TIME = 4096


@dataclass(frozen=True)
class FQEOptions:
    """How Q is fitted.

    Attributes
    ----------
    steps : gradient steps for each policy
    gamma : discount
    n_critics : fits from different starts, each with a target of its own: the smallest of several
        Q, d3rlpy's target of an ensemble, falls with every backup
    target_interval : gradient steps between renewals of Q̂. Each lets Q see one reward further,
        so that steps / target_interval has to exceed 1 / (1 − γ)
    sizes : widths of Q; its n_critics and n_quantiles do not count
    """

    steps: int
    batch_size: int = 512
    gamma: float = 0.99
    learning_rate: float = 3e-4
    n_critics: int = 1
    target_interval: int = 5
    sizes: NetworkSizes = field(default_factory=NetworkSizes)
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class PolicyValue:
    """What one policy is estimated to be worth.

    Attributes
    ----------
    value : mean of Q(s, π(s)) over starts and critics, the discounted sum of rewards
    error : standard error over the critics; None of a single one. It is of the fit alone: the
        critics share the data
    loss : mean over the last tenth of the steps
    """

    value: float
    error: float | None
    loss: float


@dataclass(frozen=True)
class _PolicyModules(Modules):
    policy: nn.Module


class _FixedPolicy(QLearningAlgoImplBase):
    """As much of an algorithm as d3rlpy's evaluation asks for: its deterministic action."""

    _seen: Tensor | None = None
    _action: Tensor

    def inner_predict_best_action(self, x: Tensor) -> Tensor:
        if x is not self._seen:  # all fits of a batch ask for the same
            with torch.no_grad():
                self._seen, self._action = x, torch.tanh(self._modules.policy(x).mean)
        return self._action

    def inner_sample_action(self, x: Tensor) -> Tensor:
        return self.inner_predict_best_action(x)

    def inner_predict_value(self, x: Tensor, action: Tensor) -> Tensor:
        raise NotImplementedError("a policy has no values of its own")

    def inner_update(self, batch: Any, grad_step: int) -> dict[str, float]:
        raise NotImplementedError("the policy is fixed")


class _Evaluated:
    """The algorithm that d3rlpy's evaluation takes; it reads its implementation only."""

    def __init__(self, impl: _FixedPolicy):
        self.impl = impl


class PolicyValueFit:
    """d3rlpy's FQE of one policy, over our encoder.

    Attributes
    ----------
    fits : one for each critic
    step : gradient steps done

    Parameters
    ----------
    policy : network whose deterministic action is evaluated: observations [B, D] → `PolicyOutput`
    layout : of the observations; None where they are flat
    obs_size, action_size : D and A
    """

    def __init__(
        self,
        policy: nn.Module,
        layout: ObservationLayout | None,
        obs_size: int,
        action_size: int,
        options: FQEOptions,
    ):
        self.options, self.step = options, 0
        # The networks of all policies start the same: what differs in the end is the policies.
        set_random_seed(options.seed)
        self._policy = _FixedPolicy(
            (obs_size,), action_size, _PolicyModules(policy), options.device
        )
        config = FQEConfig(
            learning_rate=options.learning_rate,
            optim_factory=FusedAdamFactory(),
            encoder_factory=LayoutEncoderFactory(layout, action_size, options.sizes),
            q_func_factory=MeanQFunctionFactory(),
            batch_size=options.batch_size,
            gamma=options.gamma,
            target_update_interval=options.target_interval,
        )
        self.fits = [
            FQE(_Evaluated(self._policy), config, options.device) for _ in range(options.n_critics)
        ]
        for fit in self.fits:
            fit.create_impl((obs_size,), action_size)

    def update_on(self, batch: TransitionBatch) -> float:
        """One gradient step of every fit; their mean loss."""
        mini = mini_batch(batch, self.options.device)
        losses = [fit.impl.update(mini, self.step)["loss"] for fit in self.fits]
        self.step += 1
        return float(np.mean(losses))

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Q(s, π(s)) of every fit, [C, B]."""
        actions = self._policy.predict_best_action(observations)
        return torch.stack([fit.impl.predict_value(observations, actions) for fit in self.fits])


def fitted_values(
    policies: Sequence[nn.Module],
    dataset: Transitions,
    layout: ObservationLayout | None,
    options: FQEOptions,
    on_step: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[PolicyValue, ...] | None:
    """Evaluate policies on the same batches, from the same networks.

    Parameters
    ----------
    policies : networks whose deterministic actions are evaluated
    dataset : what Q is fitted to; values are of the states in which its episodes start
    layout : of the observations; None where they are flat
    on_step : called with (gradient steps done, gradient steps) of all policies
    stop : asked after each step whether to stop; then there is no result

    Returns
    -------
    in the order of `policies`; None where it was stopped
    """
    first = dataset.gather(torch.zeros(1, dtype=torch.int64))
    sizes = first.observations.shape[1], first.actions.shape[1]
    total = len(policies) * options.steps
    found: list[PolicyValue] = []
    for policy in policies:
        fit = PolicyValueFit(policy, layout, *sizes, options)
        generator = torch.Generator().manual_seed(options.seed)
        losses = []
        for _ in range(options.steps):
            index = torch.randint(len(dataset), (options.batch_size,), generator=generator)
            losses.append(fit.update_on(dataset.gather(index)))
            if on_step is not None:
                on_step(len(found) * options.steps + fit.step, total)
            if stop is not None and stop():
                return None
        found.append(_value(fit, dataset, losses))
    return tuple(found)


def _value(fit: PolicyValueFit, dataset: Transitions, losses: list[float]) -> PolicyValue:
    starts = dataset.starts
    sums = torch.zeros(fit.options.n_critics, dtype=torch.float64)
    for at in range(0, len(starts), STARTS_AT_A_TIME):
        some = torch.from_numpy(starts[at : at + STARTS_AT_A_TIME])
        sums += (
            fit.values(dataset.gather(some).observations.to(fit.options.device))
            .double()
            .sum(dim=1)
            .cpu()
        )
    means = sums / len(starts)
    critics = len(means)
    return PolicyValue(
        value=float(means.mean()),
        error=float(means.std()) / math.sqrt(critics) if critics > 1 else None,
        loss=float(np.mean(losses[-max(1, len(losses) // 10) :])),
    )
