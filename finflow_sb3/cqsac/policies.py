"""Policies for CQSAC: SB3's actors or the five experts, with batched quantile critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from finflow_sb3.errors import ConfigError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.critics import (
    CriticSizes,
    FlatEncoder,
    SetEncoder,
    ValueEncoder,
    make_encoder,
)
from finflow_sb3.nets.experts import PolicyOutput, make_experts
from finflow_sb3.nets.sizes import NetworkSizes
from finflow_sb3.nets.stacked import StackedLinear

__all__ = [
    "CQSACPolicy",
    "CnnPolicy",
    "ExpertActor",
    "MlpPolicy",
    "MultiExpertPolicy",
    "MultiInputPolicy",
    "QuantileCritics",
    "ReferenceValue",
]


class QuantileCritics(BaseModel):
    """C critics with N quantiles each, as one batched module.

    Parameters
    ----------
    encoder : see `nets.critics`; built for the features extractor's output
    n_quantiles : N
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
        self.head = StackedLinear(encoder.stack, encoder.out_size, n_quantiles)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Quantiles [B, C, N] of actions [B, A]."""
        return self.score(obs, actions[:, None])[:, :, 0].transpose(0, 1)

    def score(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """Quantiles [C, B, M, N] of M actions for each observation, [B, M, A]."""
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        batch, count, _ = actions.shape
        quantiles: th.Tensor = self.head(self.encoder(features, actions))
        return quantiles.view(self.n_critics, batch, count, self.n_quantiles)


class ReferenceValue(nn.Module):
    """V of the offline phase, kept as the floor of Cal-QL (Nakamoto et al. 2023)."""

    def __init__(self, encoder: ValueEncoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_size, 1)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """[B, 1]"""
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
        layout: ObservationLayout | None,
        widths: dict[str, Any],
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
        self.experts = make_experts(features_dim, size, layout, widths)
        self.action_dist = SquashedDiagGaussianDistribution(size)

    def evaluate(self, obs: PyTorchObs) -> PolicyOutput:
        """Mean, log σ and gates."""
        out: PolicyOutput = self.experts(self.extract_features(obs, self.features_extractor))
        return out

    def get_action_dist_params(
        self, obs: PyTorchObs
    ) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        out = self.evaluate(obs)
        return out.mean, out.log_std, {}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        mean, log_std, _ = self.get_action_dist_params(obs)
        return self.action_dist.actions_from_params(mean, log_std, deterministic=deterministic)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        mean, log_std, _ = self.get_action_dist_params(obs)
        return self.action_dist.log_prob_from_params(mean, log_std)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(observation, deterministic)


class CQSACPolicy(TQCPolicy):
    """TQC's policy with its critics batched; arguments are TQC's."""

    actor: Any
    critic: QuantileCritics  # type: ignore[assignment]
    critic_target: QuantileCritics  # type: ignore[assignment]
    reference_value: ReferenceValue | None

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.reference_value = None

    def make_critic(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> QuantileCritics:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        extractor: BaseFeaturesExtractor = kwargs["features_extractor"]
        encoder = self._critic_encoder(kwargs["n_critics"], extractor.features_dim)
        return QuantileCritics(
            self.observation_space,
            kwargs["action_space"],
            extractor,
            encoder,
            kwargs["n_quantiles"],
            kwargs["normalize_images"],
            kwargs["share_features_extractor"],
        ).to(self.device)

    def _critic_encoder(self, n_critics: int, features_dim: int) -> FlatEncoder | SetEncoder:
        return FlatEncoder(
            n_critics,
            features_dim,
            get_action_dim(self.action_space),
            list(self.critic_kwargs["net_arch"]),  # type: ignore[call-overload]
            self.activation_fn,
        )


MlpPolicy = CQSACPolicy


class CnnPolicy(CQSACPolicy):
    """`CQSACPolicy` for images."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class MultiInputPolicy(CQSACPolicy):
    """`CQSACPolicy` for Dict observations."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)


class MultiExpertPolicy(CQSACPolicy):
    """Five experts behind a gate, and critics over tokens where there is a layout.

    Parameters
    ----------
    layout : what stands where in observations (an `ObservationLayout` or its dictionary);
        without one, experts and critics are perceptrons on the whole observation. `CQSAC`
        takes it from the environment.
    expert_hidden, gate_hidden, token_hidden, critic_hidden : see `NetworkSizes`
    gate_scale : κ_g of the environment
    with_value : keep a reference value network beside the critics, for Cal-QL
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        layout: ObservationLayout | dict[str, Any] | None = None,
        expert_hidden: int = 16,
        gate_hidden: int = 32,
        token_hidden: int = 32,
        critic_hidden: Sequence[int] = (128, 128),
        gate_scale: float = 5.0,
        with_value: bool = False,
        use_sde: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_quantiles: int = 25,
        n_critics: int = 2,
        share_features_extractor: bool = False,
    ):
        if use_sde:
            raise ConfigError("MultiExpertPolicy has its own σ: use_sde needs MlpPolicy")
        if isinstance(layout, dict):
            layout = ObservationLayout.from_dict(layout)
        self.layout, self.gate_scale, self.with_value = layout, gate_scale, with_value
        self.sizes = NetworkSizes(
            expert_hidden, gate_hidden, token_hidden, tuple(critic_hidden), n_critics, n_quantiles
        )
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=list(critic_hidden),
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_quantiles=n_quantiles,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.with_value:
            features = int(np.prod(self.observation_space.shape or (0,)))
            encoder = self._critic_encoder(1, features)
            size = get_action_dim(self.action_space)
            self.reference_value = ReferenceValue(ValueEncoder(encoder, size)).to(self.device)
            self.reference_value.requires_grad_(False)

    def make_actor(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ExpertActor:
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        widths: dict[str, Any] = {
            "expert_hidden": self.sizes.expert_hidden,
            "gate_hidden": self.sizes.gate_hidden,
        }
        if self.layout is not None:
            widths["gate_scale"] = self.gate_scale
        extractor: BaseFeaturesExtractor = kwargs["features_extractor"]
        return ExpertActor(
            self.observation_space,
            kwargs["action_space"],
            extractor,
            extractor.features_dim,
            self.layout,
            widths,
            kwargs["normalize_images"],
        ).to(self.device)

    def _critic_encoder(self, n_critics: int, features_dim: int) -> FlatEncoder | SetEncoder:
        sizes = CriticSizes(self.sizes.token_hidden, self.sizes.critic_hidden)
        return make_encoder(
            n_critics, features_dim, get_action_dim(self.action_space), self.layout, sizes
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("net_arch", "activation_fn", "use_sde", "log_std_init", "use_expln"):
            data.pop(name)
        data.pop("clip_mean")
        sizes = self.sizes.as_dict()
        sizes.pop("n_critics")
        sizes.pop("n_quantiles")
        layout = None if self.layout is None else self.layout.as_dict()
        data |= {**sizes, "layout": layout, "gate_scale": self.gate_scale}
        data["with_value"] = self.with_value
        return data
