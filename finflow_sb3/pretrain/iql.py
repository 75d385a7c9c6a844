"""IQL (Kostrikov et al. 2021) in d3rlpy, with the networks that CQSAC goes on with.

The policy is our five-expert network with a state-dependent σ, the critics are d3rlpy's
quantile functions over our encoder, V is d3rlpy's value function over the same kind of
encoder. Losses, targets and optimisers are d3rlpy's; the gate's load balancing joins the actor
loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from d3rlpy.algos import IQL, IQLConfig
from d3rlpy.algos.qlearning.torch.ddpg_impl import DDPGBaseActorLoss
from d3rlpy.algos.qlearning.torch.iql_impl import IQLCriticLoss, IQLImpl, IQLModules
from d3rlpy.models.builders import create_value_function
from d3rlpy.models.torch.q_functions.utility import compute_quantile_loss
from d3rlpy.torch_utility import TorchMiniBatch, unwrap_ddp_model, wrap_model_by_ddp
from torch import Tensor

from finflow_sb3.config import IQLSettings
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.experts import PolicyOutput
from finflow_sb3.nets.losses import balance_loss, prior_loss
from finflow_sb3.nets.policy import policy_log_prob, sample_policy
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.parallel import Workers
from finflow_sb3.pretrain.artefact import stacked_weights
from finflow_sb3.pretrain.learner import ActorCriticLearner, sizes_of
from finflow_sb3.pretrain.modules import (
    ExpertPolicy,
    FusedAdamFactory,
    LayoutEncoderFactory,
    make_critics,
    make_policy,
)

__all__ = ["ExpertIQL", "make_iql"]


class ExpertIQLImpl(IQLImpl):
    """IQL's equations where they differ from d3rlpy's: policy likelihood, balance, prior; and
    where d3rlpy's compute something twice.
    """

    balance_coef: float = 0.0
    prior_coef: float = 0.0
    _target_q: Tensor

    def compute_critic_loss(self, batch: TorchMiniBatch, q_tpn: Tensor) -> IQLCriticLoss:
        """Quantile Huber loss of every critic towards r + γ·V(s'), and V's loss (eq. 5, 6).

        The critic's return distribution is that of one reward on top of a known value: d3rlpy's
        loss of N quantiles against one target [B, 1], where N equal ones would cost N times it.
        """
        q_loss = batch.rewards.new_zeros(())
        for critic in self._modules.q_funcs:
            out = critic(batch.observations, batch.actions)
            q_loss = (
                q_loss
                + compute_quantile_loss(
                    quantiles=out.quantiles,
                    rewards=batch.rewards,
                    target=q_tpn,
                    terminals=batch.terminals,
                    taus=out.taus,
                    gamma=self._gamma**batch.intervals,
                ).mean()
            )
        v_loss = self.compute_value_loss(batch)
        return IQLCriticLoss(critic_loss=q_loss + v_loss, q_loss=q_loss, v_loss=v_loss)

    def compute_value_loss(self, batch: TorchMiniBatch) -> Tensor:
        """Expectile regression of V on min Q̂ (eq. 5).

        Q̂ of the batch is kept for the actor's weights: its networks do not move in between.
        """
        with torch.no_grad():
            self._target_q = self._targ_q_func_forwarder.compute_expected_q(
                batch.observations, batch.actions, "min"
            )
        difference = self._target_q - self._modules.value_func(batch.observations)
        weight = (self._expectile - (difference < 0.0).float()).abs().detach()
        return (weight * difference**2).mean()

    def _compute_weight(self, batch: TorchMiniBatch) -> Tensor:
        """min(exp(β·(Q̂ − V)), w_max), [B, 1]."""
        advantage = self._target_q - self._modules.value_func(batch.observations)
        return (self._weight_temp * advantage).exp().clamp(max=self._max_weight)

    def compute_actor_loss(self, batch: TorchMiniBatch, action: Any) -> DDPGBaseActorLoss:
        """−E[min(exp(β·A), w_max)·log π(a|s)], π squashed Gaussian (eq. 7), with the gate's load
        balancing and the pull towards the zero action.
        """
        policy = PolicyOutput(action.mu, action.logstd, action.gates, action.components)
        density = policy_log_prob(policy, batch.actions)
        with torch.no_grad():
            weight = self._compute_weight(batch)[:, 0]
        loss = -(weight * density).mean()
        if action.gates is not None:
            gates = Workers().mean(action.gates.mean(dim=0))
            loss = loss + self.balance_coef * balance_loss(gates)
        return DDPGBaseActorLoss(loss + self.prior_coef * prior_loss(action.mu))

    def inner_sample_action(self, x: Any) -> Tensor:
        policy: Any = unwrap_ddp_model(self._modules.policy)
        actions, _ = sample_policy(policy.experts(x), 1)
        return actions[:, 0]


class ExpertIQL(ActorCriticLearner, IQL):
    """d3rlpy's IQL over our networks.

    Parameters
    ----------
    config : d3rlpy's own
    inputs, sizes : what the networks are built for
    balance_coef : weight of the gate's load balancing
    prior_coef : pull of the policy towards the zero action
    ddp : share gradients with the other processes
    """

    algo = "iql"
    implementation: ClassVar[type[IQLImpl]] = ExpertIQLImpl
    losses: ClassVar[dict[str, str]] = {
        "v_loss": "v_loss",
        "q_loss": "q_loss",
        "actor_loss": "policy_loss",
    }

    def __init__(
        self,
        config: IQLConfig,
        inputs: ObservationLayout | Spaces,
        sizes: NetworkSizes,
        balance_coef: float = 0.0,
        prior_coef: float = 0.0,
        gate_scale: float = 5.0,
        device: str = "cpu",
        ddp: bool = False,
    ):
        super().__init__(config, device, ddp)
        self.inputs, self.sizes = inputs, sizes
        self.balance_coef, self.prior_coef = balance_coef, prior_coef
        self.gate_scale = gate_scale

    def inner_create_impl(self, observation_shape: Any, action_size: int) -> None:
        config, sizes = self._config, self.sizes
        experts = make_policy(self.inputs, sizes, self.gate_scale)
        policy = ExpertPolicy(experts).to(self._device)
        layout = self.inputs if isinstance(self.inputs, ObservationLayout) else None
        encoders = LayoutEncoderFactory(layout, action_size, sizes)
        ddp = self._enable_ddp
        critics = make_critics(encoders, observation_shape, action_size, sizes, self._device, ddp)
        value = create_value_function(
            observation_shape, encoders, device=self._device, enable_ddp=ddp
        )
        actor_optim = config.actor_optim_factory.create(
            policy.named_modules(), lr=config.actor_learning_rate, compiled=False
        )
        critic_optim = config.critic_optim_factory.create(
            [*critics.q_funcs.named_modules(), *value.named_modules()],
            lr=config.critic_learning_rate,
            compiled=False,
        )
        self._impl = self.implementation(
            observation_shape=observation_shape,
            action_size=action_size,
            modules=IQLModules(
                policy=wrap_model_by_ddp(policy) if ddp else policy,
                q_funcs=critics.q_funcs,
                targ_q_funcs=critics.targets,
                value_func=value,
                actor_optim=actor_optim,
                critic_optim=critic_optim,
            ),
            q_func_forwarder=critics.forwarder,
            targ_q_func_forwarder=critics.target_forwarder,
            gamma=config.gamma,
            tau=config.tau,
            expectile=config.expectile,
            weight_temp=config.weight_temp,
            max_weight=config.max_weight,
            compiled=False,
            device=self._device,
        )
        self._impl.balance_coef = self.balance_coef
        self._impl.prior_coef = self.prior_coef

    def weights(self) -> dict[str, Tensor]:
        """A copy of policy, critics, their targets and V, under the artefact's names."""
        modules: Any = self.torch_modules()
        policy = {f"policy.{k}": tensor for k, tensor in modules["policy"].state_dict().items()}
        critics = (modules[name] for name in ("q_funcs", "targ_q_funcs", "value_func"))
        return stacked_weights(policy, *critics)


def make_iql(
    settings: IQLSettings,
    inputs: ObservationLayout | Spaces,
    gate_scale: float = 5.0,
    device: str = "cpu",
    ddp: bool = False,
) -> ExpertIQL:
    """An `ExpertIQL` with its networks built."""
    sizes = sizes_of(settings)
    config = IQLConfig(
        actor_optim_factory=FusedAdamFactory(),
        critic_optim_factory=FusedAdamFactory(),
        actor_learning_rate=settings.actor_lr,
        critic_learning_rate=settings.critic_lr,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        tau=settings.tau,
        n_critics=sizes.n_critics,
        expectile=settings.expectile,
        weight_temp=settings.weight_temp,
        max_weight=settings.max_weight,
    )
    algo = ExpertIQL(
        config, inputs, sizes, settings.balance_coef, settings.prior_coef, gate_scale, device, ddp
    )
    algo.create_impl((inputs.size,), inputs.action_size)
    return algo
