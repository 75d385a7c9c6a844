"""CQSAC's networks as SB3's modules: batched quantile critics and the five-expert actor."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.tqc.policies import Actor
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn
from torch.utils.checkpoint import checkpoint

from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.critics import FlatEncoder, SetEncoder, ValueEncoder
from finflow_sb3.nets.experts import PolicyOutput, make_experts
from finflow_sb3.nets.hidden import perceptron
from finflow_sb3.nets.policy import sample_policy
from finflow_sb3.nets.stacked import StackedLinear
from finflow_sb3.nets.tokens import Tokens
from finflow_sb3.network_sizes import NetworkSizes, Regularisation

__all__ = ["ExpertActor", "QuantileCritics", "ReferenceValue", "RegularisedActor"]


def _features(module: BaseModel, obs: PyTorchObs | Tokens) -> Any:
    """What the features extractor makes of observations; tokens are features already."""
    if isinstance(obs, Tokens):
        return obs
    assert module.features_extractor is not None
    return module.extract_features(obs, module.features_extractor)


class QuantileCritics(BaseModel):
    """C critics with N quantiles each, as one batched module.

    Parameters
    ----------
    encoder : see `nets.critics`; built for the features extractor's output
    n_quantiles : N

    Attributes
    ----------
    checkpointing : compute activations again in the backward pass instead of keeping them
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        encoder: FlatEncoder | SetEncoder,
        n_quantiles: int = 25,
        normalize_images: bool = True,
        share_features_extractor: bool = False,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.encoder = encoder
        self.n_critics, self.n_quantiles = encoder.stack, n_quantiles
        self.quantiles_total = encoder.stack * n_quantiles
        self.share_features_extractor = share_features_extractor
        self.checkpointing = False
        self.head = StackedLinear(encoder.stack, encoder.out_size, n_quantiles)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Quantiles [B, C, N] of actions [B, A]."""
        return self.score(obs, actions[:, None])[:, :, 0].transpose(0, 1)

    def score(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Quantiles [C, B, M, N] of M actions for each observation, [B, M, A]."""
        batch, count, _ = actions.shape
        quantiles: th.Tensor = self.head(self._hidden(obs, actions))
        return quantiles.view(self.n_critics, batch, count, self.n_quantiles)

    def value(self, obs: PyTorchObs, actions: th.Tensor, weights: th.Tensor) -> th.Tensor:
        """Σ_i w_i·q_i of M actions, [C, B, M], for weights [N] of the quantiles.

        The last layer is linear: a weighted mean of its outputs is one output of the weighted
        mean of its columns, which is N times cheaper.
        """
        batch, count, _ = actions.shape
        mix = weights[:, None].to(self.head.weight.dtype)
        value = th.baddbmm(self.head.bias @ mix, self._hidden(obs, actions), self.head.weight @ mix)
        return value.view(self.n_critics, batch, count)

    def _hidden(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """[C, B·M, H]"""
        if self.checkpointing and th.is_grad_enabled():
            again: th.Tensor = checkpoint(self._encode, obs, actions, use_reentrant=False)
            return again
        return self._encode(obs, actions)

    def _encode(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = _features(self, obs)
        hidden: th.Tensor = self.encoder(features, actions)
        return hidden


class ReferenceValue(nn.Module):
    """V of the offline phase, kept as the floor of Cal-QL (Nakamoto et al. 2023)."""

    def __init__(self, encoder: ValueEncoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_size, 1)

    def forward(self, obs: th.Tensor | Tokens) -> th.Tensor:
        """[B, 1]"""
        if not isinstance(obs, Tokens):
            obs = obs.flatten(1).to(self.head.weight.dtype)
        value: th.Tensor = self.head(self.encoder(obs))
        return value


class ExpertActor(BasePolicy):
    """The five-expert network as SB3's SAC wants its actor."""

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        layout: ObservationLayout | dict[str, Any] | None,
        sizes: NetworkSizes | dict[str, Any],
        gate_scale: float = 5.0,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        size = get_action_dim(action_space)
        if isinstance(layout, dict):
            layout = ObservationLayout.from_dict(layout)
        if isinstance(sizes, dict):
            sizes = NetworkSizes.from_kwargs(sizes)
        self.features_dim, self.layout = features_dim, layout
        self.sizes, self.gate_scale = sizes, gate_scale
        self.experts = make_experts(features_dim, size, layout, sizes, gate_scale)

    def evaluate(self, obs: PyTorchObs) -> PolicyOutput:
        """Mean, log σ, gates, and the components of a full mixture."""
        out: PolicyOutput = self.experts(_features(self, obs))
        return out

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        out = self.evaluate(obs)
        return th.tanh(out.mean) if deterministic else sample_policy(out, 1)[0][:, 0]

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        actions, log_prob = sample_policy(self.evaluate(obs), 1)
        return actions[:, 0], log_prob[:, 0]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "features_extractor": self.features_extractor,
            "features_dim": self.features_dim,
            "layout": None if self.layout is None else self.layout.as_dict(),
            "sizes": self.sizes.as_dict(),
            "gate_scale": self.gate_scale,
        }


class RegularisedActor(Actor):
    """TQC's actor with dropout and layer norm in its hidden layers."""

    def __init__(self, *args: Any, dropout: float = 0.0, layer_norm: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.form = Regularisation(dropout, layer_norm)
        self.latent_pi = perceptron(
            self.features_dim, list(self.net_arch), self.form, self.activation_fn
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.form._asdict()}
