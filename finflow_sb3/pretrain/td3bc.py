"""TD3+BC (Fujimoto and Gu 2021) in d3rlpy, with the networks that CQSAC goes on with.

The policy is our five-expert network, of which it moves the mean alone: actions are tanh of it,
and log σ stays as it was made. The critics are d3rlpy's quantile functions over our encoder.
There is no V. Losses, targets and optimisers are d3rlpy's; the gate's load balancing and the pull
towards the zero action join the actor loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from d3rlpy.algos import TD3PlusBC, TD3PlusBCConfig
from d3rlpy.algos.qlearning.torch.ddpg_impl import DDPGModules
from d3rlpy.algos.qlearning.torch.td3_plus_bc_impl import TD3PlusBCActorLoss, TD3PlusBCImpl
from d3rlpy.torch_utility import TorchMiniBatch, unwrap_ddp_model, wrap_model_by_ddp
from torch import Tensor

from finflow_sb3.config import TD3BCSettings
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.losses import balance_loss, prior_loss
from finflow_sb3.nets.mean_rows import mean_state
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.parallel import Workers, own_rows, world_size
from finflow_sb3.pretrain.artefact import stacked_weights
from finflow_sb3.pretrain.learner import ActorCriticLearner, sizes_of
from finflow_sb3.pretrain.modules import (
    ExpertPolicy,
    FusedAdamFactory,
    LayoutEncoderFactory,
    make_critics,
    make_policy,
)

__all__ = ["ExpertTD3BC", "make_td3bc"]


class ExpertTD3BCImpl(TD3PlusBCImpl):
    """TD3+BC's equations where they differ from d3rlpy's: the terms that join the actor loss."""

    balance_coef: float = 0.0
    prior_coef: float = 0.0

    def compute_target(self, batch: TorchMiniBatch) -> Tensor:
        """Quantiles of the smaller target Q at a smoothed action of the target policy (eq. 14 of
        Fujimoto et al. 2018). Of several processes each draws for all and keeps its rows.
        """
        with torch.no_grad():
            action = self._modules.targ_policy(batch.next_observations)
            rows, width = action.squashed_mu.shape
            drawn = torch.randn(world_size() * rows, width, device=batch.device)
            limit = self._target_smoothing_clip
            noise = (self._target_smoothing_sigma * own_rows(drawn)).clamp(-limit, limit)
            smoothed = (action.squashed_mu + noise).clamp(-1.0, 1.0)
            target: Tensor = self._targ_q_func_forwarder.compute_target(
                batch.next_observations, smoothed, reduction="min"
            )
        return target

    def compute_actor_loss(self, batch: TorchMiniBatch, action: Any) -> TD3PlusBCActorLoss:
        """−λ·E[Q(s, π(s))] + E[(π(s) − a)²], λ = α/E|Q(s, π(s))| (eq. 3 and 5), with the gate's
        load balancing and the pull towards the zero action.

        Q is the first critic's, as in the paper: the others are not computed.
        """
        # Not as it shares gradients: it gets none here.
        critic = unwrap_ddp_model(self._modules.q_funcs[0])
        q = critic(batch.observations, action.squashed_mu).q_value
        workers = Workers()
        weight = self._alpha / workers.mean(q.abs().mean()).detach()
        cloning = (action.squashed_mu - batch.actions).square().mean()
        balance = balance_loss(workers.mean(action.gates.mean(dim=0)))
        loss = cloning - weight * q.mean() + self.balance_coef * balance
        return TD3PlusBCActorLoss(loss + self.prior_coef * prior_loss(action.mu), cloning)

    def compute_actor_grad(self, batch: TorchMiniBatch) -> TD3PlusBCActorLoss:
        """Gradients of the policy alone: nobody would use those of the critic."""
        self._modules.actor_optim.zero_grad()
        loss = self.compute_actor_loss(batch, self._modules.policy(batch.observations))
        loss.actor_loss.backward(inputs=list(self._modules.policy.parameters()))
        return loss


class ExpertTD3BC(ActorCriticLearner, TD3PlusBC):
    """d3rlpy's TD3+BC over our networks.

    Parameters
    ----------
    config : d3rlpy's own
    layout, sizes : what the networks are built for
    balance_coef : weight of the gate's load balancing
    prior_coef : pull of the policy towards the zero action
    ddp : share gradients with the other processes
    """

    algo = "td3bc"
    losses: ClassVar[dict[str, str]] = {
        "critic_loss": "q_loss",
        "actor_loss": "policy_loss",
        "bc_loss": "bc_loss",
    }

    def __init__(
        self,
        config: TD3PlusBCConfig,
        layout: ObservationLayout,
        sizes: NetworkSizes,
        balance_coef: float = 0.0,
        prior_coef: float = 0.0,
        gate_scale: float = 5.0,
        device: str = "cpu",
        ddp: bool = False,
    ):
        super().__init__(config, device, ddp)
        self.layout, self.sizes = layout, sizes
        self.balance_coef, self.prior_coef = balance_coef, prior_coef
        self.gate_scale = gate_scale

    def inner_create_impl(self, observation_shape: Any, action_size: int) -> None:
        config, sizes = self._config, self.sizes
        policy, target_policy = (self._make_policy() for _ in range(2))
        encoders = LayoutEncoderFactory(self.layout, action_size, sizes)
        ddp = self._enable_ddp
        critics = make_critics(encoders, observation_shape, action_size, sizes, self._device, ddp)
        actor_optim = config.actor_optim_factory.create(
            policy.named_modules(), lr=config.actor_learning_rate, compiled=False
        )
        critic_optim = config.critic_optim_factory.create(
            critics.q_funcs.named_modules(), lr=config.critic_learning_rate, compiled=False
        )
        self._impl = ExpertTD3BCImpl(
            observation_shape=observation_shape,
            action_size=action_size,
            modules=DDPGModules(
                policy=wrap_model_by_ddp(policy) if ddp else policy,
                targ_policy=target_policy,
                q_funcs=critics.q_funcs,
                targ_q_funcs=critics.targets,
                actor_optim=actor_optim,
                critic_optim=critic_optim,
            ),
            q_func_forwarder=critics.forwarder,
            targ_q_func_forwarder=critics.target_forwarder,
            gamma=config.gamma,
            tau=config.tau,
            target_smoothing_sigma=config.target_smoothing_sigma,
            target_smoothing_clip=config.target_smoothing_clip,
            alpha=config.alpha,
            update_actor_interval=config.update_actor_interval,
            compiled=False,
            device=self._device,
        )
        self._impl.balance_coef = self.balance_coef
        self._impl.prior_coef = self.prior_coef

    def _make_policy(self) -> ExpertPolicy:
        experts = make_policy(self.layout, self.sizes, self.gate_scale)
        policy: ExpertPolicy = ExpertPolicy(experts).to(self._device)
        return policy

    def weights(self) -> dict[str, Tensor]:
        """A copy of the policy's mean, the critics and their targets, under the artefact's names.

        Neither σ nor V is among them: nothing was learned of either.
        """
        modules: Any = self.torch_modules()
        state = mean_state(modules["policy"].experts)
        mean = {f"policy_mean.experts.{name}": tensor for name, tensor in state.items()}
        return stacked_weights(mean, modules["q_funcs"], modules["targ_q_funcs"])


def make_td3bc(
    settings: TD3BCSettings,
    layout: ObservationLayout,
    gate_scale: float = 5.0,
    device: str = "cpu",
    ddp: bool = False,
) -> ExpertTD3BC:
    """An `ExpertTD3BC` with its networks built."""
    sizes = sizes_of(settings)
    config = TD3PlusBCConfig(
        actor_optim_factory=FusedAdamFactory(),
        critic_optim_factory=FusedAdamFactory(),
        actor_learning_rate=settings.actor_lr,
        critic_learning_rate=settings.critic_lr,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        tau=settings.tau,
        n_critics=sizes.n_critics,
        target_smoothing_sigma=settings.target_smoothing_sigma,
        target_smoothing_clip=settings.target_smoothing_clip,
        alpha=settings.alpha,
        update_actor_interval=settings.update_actor_interval,
    )
    algo = ExpertTD3BC(
        config, layout, sizes, settings.balance_coef, settings.prior_coef, gate_scale, device, ddp
    )
    algo.create_impl((layout.size,), layout.action_size)
    return algo
