"""Policies for CQSAC: SB3's actors or the five experts, with batched quantile critics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch.utils.checkpoint import checkpoint

from finflow_sb3.cqsac.networks import (
    ExpertActor,
    QuantileCritics,
    ReferenceValue,
    RegularisedActor,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.critics import FlatEncoder, SetEncoder, ValueEncoder, make_encoder
from finflow_sb3.nets.experts import PolicyOutput
from finflow_sb3.nets.hidden import PLAIN
from finflow_sb3.network_sizes import NetworkSizes, Regularisation, require_regularisation

__all__ = ["CQSACPolicy", "CnnPolicy", "MlpPolicy", "MultiExpertPolicy", "MultiInputPolicy"]


class CQSACPolicy(TQCPolicy):
    """TQC's policy with its critics batched; arguments are TQC's, and two more.

    Parameters
    ----------
    dropout, layer_norm : after every hidden linear layer of actor and critics

    Notes
    -----
    Adam and AdamW are fused unless `optimizer_kwargs` says how they are to step.
    """

    actor: Any
    critic: QuantileCritics  # type: ignore[assignment]
    critic_target: QuantileCritics  # type: ignore[assignment]
    reference_value: ReferenceValue | None
    # Gaussians that the policy is a mixture of.
    n_components = 1

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *args: Any,
        dropout: float = 0.0,
        layer_norm: bool = False,
        **kwargs: Any,
    ):
        require_regularisation(dropout, layer_norm)
        self.form = Regularisation(dropout, layer_norm)
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        fusable = self.optimizer_class in (th.optim.Adam, th.optim.AdamW)
        if fusable and not {"fused", "foreach", "differentiable"} & set(self.optimizer_kwargs):
            self.optimizer_kwargs = {**self.optimizer_kwargs, "fused": True}
        super()._build(lr_schedule)
        self.reference_value = None

    def prepared(self, obs: PyTorchObs) -> Any:
        """Observations as the networks of an update share them."""
        return obs

    def distribution(self, obs: PyTorchObs) -> PolicyOutput:
        """What the policy is in these states; with gSDE its marginal Gaussian."""
        if self.critic.checkpointing and th.is_grad_enabled():
            again: PolicyOutput = checkpoint(self._distribution, obs, use_reentrant=False)
            return again
        return self._distribution(obs)

    def _distribution(self, obs: PyTorchObs) -> PolicyOutput:
        if isinstance(self.actor, ExpertActor):
            return self.actor.evaluate(obs)
        mean, log_std, kwargs = self.actor.get_action_dist_params(obs)
        if self.actor.use_sde:
            marginal = self.actor.action_dist.proba_distribution(mean, log_std, **kwargs)
            log_std = marginal.distribution.stddev.log()
        return PolicyOutput(mean, log_std)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        if self.form == PLAIN:
            return super().make_actor(features_extractor)
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return RegularisedActor(**kwargs, **self.form._asdict()).to(self.device)

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
            self.form,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.form._asdict()}


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
    expert_hidden, gate_hidden, token_hidden, critic_hidden, mixture : see `NetworkSizes`
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
        mixture: Literal["soft", "full"] = "soft",
        dropout: float = 0.0,
        layer_norm: bool = False,
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
        if isinstance(observation_space, spaces.Dict):
            raise ConfigError("MultiExpertPolicy needs flat observations; use MultiInputPolicy")
        if use_sde:
            raise ConfigError("MultiExpertPolicy has its own σ: use_sde needs MlpPolicy")
        if isinstance(layout, dict):
            layout = ObservationLayout.from_dict(layout)
        self.layout, self.gate_scale, self.with_value = layout, gate_scale, with_value
        self.sizes = NetworkSizes(
            expert_hidden,
            gate_hidden,
            token_hidden,
            tuple(critic_hidden),
            n_critics,
            n_quantiles,
            mixture,
            dropout,
            layer_norm,
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
            dropout=dropout,
            layer_norm=layer_norm,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.sizes.mixture == "full":
            self.n_components = self.actor.experts.n_experts
        if self.with_value:
            features = int(np.prod(self.observation_space.shape or (0,)))
            encoder = self._critic_encoder(1, features)
            size = get_action_dim(self.action_space)
            self.reference_value = ReferenceValue(ValueEncoder(encoder, size)).to(self.device)
            self.reference_value.requires_grad_(False).eval()

    def prepared(self, obs: PyTorchObs) -> Any:
        """Observations taken apart once for all networks, where there is a layout."""
        plain = self.features_extractor_class is FlattenExtractor
        if self.layout is None or not plain or isinstance(obs, dict):
            return obs
        experts = self.actor.experts
        return experts.tokens.view(obs.to(experts.look.weight.dtype))

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        extractor: BaseFeaturesExtractor = kwargs["features_extractor"]
        return ExpertActor(
            self.observation_space,
            kwargs["action_space"],
            extractor,
            extractor.features_dim,
            self.layout,
            self.sizes,
            self.gate_scale,
            kwargs["normalize_images"],
        ).to(self.device)

    def _critic_encoder(self, n_critics: int, features_dim: int) -> FlatEncoder | SetEncoder:
        size = get_action_dim(self.action_space)
        return make_encoder(n_critics, features_dim, size, self.layout, self.sizes)

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
