"""What `policy_kwargs` may hold for each policy, as far as a file can say it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from finflow_sb3.config_fields import Checked, check_given, setting
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown
from finflow_sb3.network_sizes import NetworkSizes, dropout_probability

__all__ = [
    "CQSAC_POLICIES",
    "EXPERTS",
    "PERCEPTRONS",
    "check_policy_kwargs",
    "known_policy",
    "policy_fields",
]

EXPERTS = "MultiExpertPolicy"
PERCEPTRONS = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")
CQSAC_POLICIES = (EXPERTS, *PERCEPTRONS)

_WIDEST = 65_536
_DEEPEST = 20


def _net_arch(value: Any, critic: str = "qf") -> Any:
    """Widths, for actor and critics alike or as ``pi`` and ``qf``."""
    if value is None:
        return value
    parts = value if isinstance(value, dict) else {"pi": value, critic: value}
    if set(parts) != {"pi", critic}:
        raise ConfigError(
            f"{shown(value)} is neither a list of widths nor a mapping of pi and {critic}"
        )
    for widths in parts.values():
        if not isinstance(widths, list) or len(widths) > _DEEPEST:
            raise ConfigError(f"{shown(widths)} is not a list of at most {_DEEPEST} widths")
        for width in widths:
            if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= _WIDEST:
                raise ConfigError(f"{shown(width)} is not a width from 1 to {_WIDEST}")
    return value


@dataclass(frozen=True)
class _Common(Checked):
    """What every policy takes."""

    normalize_images: bool = setting(True, "")
    optimizer_kwargs: dict[str, Any] | None = setting(None, "")
    features_extractor_kwargs: dict[str, Any] | None = setting(None, "")
    share_features_extractor: bool = setting(False, "")


@dataclass(frozen=True)
class _TD3Policy(_Common):
    net_arch: Any = setting(None, "", form=_net_arch)
    activation_fn: str = setting("ReLU", "")
    n_critics: int = setting(2, "", 1, 20)


@dataclass(frozen=True)
class _SACPolicy(_TD3Policy):
    log_std_init: float = setting(-3.0, "", -20.0, 20.0)
    use_expln: bool = setting(False, "")
    clip_mean: float = setting(2.0, "", 0.0, 1e6)


@dataclass(frozen=True)
class _TQCPolicy(_SACPolicy):
    n_quantiles: int = setting(25, "", 1, 1000)


@dataclass(frozen=True)
class _CrossQPolicy(_SACPolicy):
    batch_norm: bool = setting(True, "")
    batch_norm_momentum: float = setting(0.01, "", 0.0, 1.0)
    batch_norm_eps: float = setting(0.001, "", 1e-12, 1.0)
    renorm_warmup_steps: int = setting(100_000, "", 0, 10**9)


@dataclass(frozen=True)
class _ActorCriticPolicy(_Common):
    share_features_extractor: bool = setting(True, "")
    net_arch: Any = setting(None, "", form=partial(_net_arch, critic="vf"))
    activation_fn: str = setting("Tanh", "")
    ortho_init: bool = setting(True, "")
    log_std_init: float = setting(0.0, "", -20.0, 20.0)
    full_std: bool = setting(True, "")
    use_expln: bool = setting(False, "")
    squash_output: bool = setting(False, "")


@dataclass(frozen=True)
class _CQSACPolicy(_TQCPolicy):
    dropout: float = setting(0.0, "", form=dropout_probability)
    layer_norm: bool = setting(False, "")


@dataclass(frozen=True)
class _ExpertPolicy(_Common, NetworkSizes):
    """Its layout, `gate_scale` and `with_value` come from the environment and the hand-over."""


_KINDS: dict[str, type[Checked]] = {
    "iql": NetworkSizes,
    "td3bc": NetworkSizes,
    "sac": _SACPolicy,
    "td3": _TD3Policy,
    "ddpg": _TD3Policy,
    "ppo": _ActorCriticPolicy,
    "a2c": _ActorCriticPolicy,
    "tqc": _TQCPolicy,
    "crossq": _CrossQPolicy,
    "cqsac": _CQSACPolicy,
}


def known_policy(value: str) -> str:
    """A policy of CQSAC."""
    if value not in CQSAC_POLICIES:
        raise ConfigError(f"{shown(value)} is not known; {remedy(value, CQSAC_POLICIES)}")
    return value


def policy_fields(algo: str, policy: str = "MlpPolicy") -> type[Checked]:
    """The dataclass whose fields are what `policy_kwargs` may hold; arguments as below."""
    return _ExpertPolicy if algo == "cqsac" and policy == EXPERTS else _KINDS[algo]


def check_policy_kwargs(algo: str, policy: str, kwargs: dict[str, Any]) -> None:
    """Refuse names that the policy does not take, and values of the wrong type or range.

    Parameters
    ----------
    algo : one of `config_keys.ALGORITHMS`
    policy : name of the policy; iql and td3bc have the experts always

    Raises
    ------
    ConfigError
        Naming the key, without the section.
    """
    try:
        check_given(policy_fields(algo, policy), kwargs, "key")
    except ConfigError as error:
        raise ConfigError(f"policy_kwargs: {error}") from None
