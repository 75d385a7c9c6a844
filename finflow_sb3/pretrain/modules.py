"""Our networks in d3rlpy's dress: what every algorithm of the offline phase learns with.

The policy is the five-expert network, or a perceptron where there is no market; the critics and V
have encoders of our own, their heads are d3rlpy's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from d3rlpy.models.builders import create_continuous_q_function
from d3rlpy.models.encoders import EncoderFactory
from d3rlpy.models.q_functions import QRQFunctionFactory
from d3rlpy.models.torch.encoders import Encoder, EncoderWithAction
from d3rlpy.models.torch.policies import Policy
from d3rlpy.optimizers import AdamFactory
from d3rlpy.torch_utility import TorchMiniBatch
from torch import Tensor
from torch.optim import Adam

from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.critics import ValueEncoder, make_encoder
from finflow_sb3.nets.experts import Components, FlatExperts, LayoutExperts, make_experts
from finflow_sb3.nets.perceptron import PerceptronPolicy
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.offline.spaces import Spaces
from finflow_sb3.offline.transitions import TransitionBatch

__all__ = [
    "Critics",
    "ExpertAction",
    "ExpertPolicy",
    "FusedAdamFactory",
    "LayoutEncoderFactory",
    "make_critics",
    "make_policy",
    "mini_batch",
]


class ExpertAction(NamedTuple):
    """d3rlpy's `ActionOutput`, with the gates [B, K] where there are experts, and the components
    of a full mixture.
    """

    mu: Tensor
    squashed_mu: Tensor
    logstd: Tensor
    gates: Tensor | None
    components: Components | None


def make_policy(
    inputs: ObservationLayout | Spaces, sizes: NetworkSizes, gate_scale: float
) -> LayoutExperts | FlatExperts | PerceptronPolicy:
    """The policy network: five experts for a layout, one perceptron for spaces without one."""
    if isinstance(inputs, ObservationLayout):
        return make_experts(inputs.size, inputs.action_size, inputs, sizes, gate_scale)
    return PerceptronPolicy(inputs.size, inputs.action_size, sizes)


class ExpertPolicy(Policy):
    """A policy network in d3rlpy's dress."""

    def __init__(self, experts: torch.nn.Module):
        super().__init__()
        self.experts = experts

    def forward(self, x: Any, *args: Any) -> Any:
        out = self.experts(x)
        squashed = torch.tanh(out.mean)
        return ExpertAction(out.mean, squashed, out.log_std, out.gates, out.components)


class StateActionEncoder(EncoderWithAction):
    """One critic's encoder: [B, D], [B, A] → [B, H]."""

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Any, action: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(x, action[:, None])[0]
        return hidden


class StateEncoder(Encoder):
    """V's encoder: [B, D] → [B, H]."""

    def __init__(self, encoder: ValueEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Any) -> Tensor:
        hidden: Tensor = self.encoder(x)
        return hidden


class LayoutEncoderFactory(EncoderFactory):
    """Makes the critics' and V's encoders: for a layout, or for flat observations without one."""

    def __init__(self, layout: ObservationLayout | None, action_size: int, sizes: NetworkSizes):
        self.layout, self.action_size, self.sizes = layout, action_size, sizes

    def _encoder(self, observation_shape: Any) -> Any:
        return make_encoder(1, observation_shape[0], self.action_size, self.layout, self.sizes)

    def create(self, observation_shape: Any) -> Encoder:
        return StateEncoder(ValueEncoder(self._encoder(observation_shape), self.action_size))

    def create_with_action(
        self, observation_shape: Any, action_size: int, discrete_action: bool = False
    ) -> EncoderWithAction:
        return StateActionEncoder(self._encoder(observation_shape))

    @staticmethod
    def get_type() -> str:
        return "finflow"


class FusedAdamFactory(AdamFactory):
    """d3rlpy's Adam with torch's fused step."""

    def create_optimizer(self, named_modules: Any, lr: float) -> Adam:
        plain = super().create_optimizer(named_modules, lr)
        return Adam(plain.param_groups[0]["params"], lr=lr, fused=True)

    @staticmethod
    def get_type() -> str:
        return "finflow_fused_adam"


class Critics(NamedTuple):
    """The critics and their targets, each with d3rlpy's forwarder of the ensemble."""

    q_funcs: Any
    forwarder: Any
    targets: Any
    target_forwarder: Any


def make_critics(
    encoders: LayoutEncoderFactory,
    observation_shape: Any,
    action_size: int,
    sizes: NetworkSizes,
    device: str,
    ddp: bool,
) -> Critics:
    """d3rlpy's quantile functions over our encoders.

    Parameters
    ----------
    ddp : share gradients with the other processes
    """
    pairs = [
        create_continuous_q_function(
            observation_shape,
            action_size,
            encoders,
            QRQFunctionFactory(n_quantiles=sizes.n_quantiles),
            device=device,
            enable_ddp=ddp,
            n_ensembles=sizes.n_critics,
        )
        for _ in range(2)
    ]
    return Critics(*pairs[0], *pairs[1])


def mini_batch(batch: TransitionBatch, device: str, experts: Any = None) -> TorchMiniBatch:
    """A batch as d3rlpy's algorithms take it; on the CPU without a copy.

    Parameters
    ----------
    experts : the policy network. Observations are taken apart as it sees them, once for all
        networks: in d3rlpy's words they become a tuple observation. As they are if not given
    """
    batch = TransitionBatch(*(tensor.to(device) for tensor in batch))
    observations, following = batch.observations, batch.next_observations
    return TorchMiniBatch(
        observations=observations if experts is None else experts.view(observations),
        actions=batch.actions,
        rewards=batch.rewards,
        next_observations=following if experts is None else experts.view(following),
        next_actions=batch.actions,
        returns_to_go=torch.zeros_like(batch.rewards),
        terminals=batch.terminals,
        intervals=torch.ones_like(batch.rewards),
        device=device,
    )
