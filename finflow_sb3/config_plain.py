"""Arguments of SB3's and sb3-contrib's algorithms that a file may hold, and the zoo's own keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from finflow_sb3 import config_forms as forms
from finflow_sb3.config_fields import Checked, setting
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import shown
from finflow_sb3.zoo_values import schedule

__all__ = [
    "PLAIN",
    "ZOO_KEYS",
    "OffPolicyArguments",
    "OnPolicyArguments",
    "PlainArgumentsBase",
]

ZOO_KEYS = (
    "callback",
    "env_wrapper",
    "eval_freq",
    "frame_stack",
    "monitor_kwargs",
    "replay_buffer_class",
    "replay_buffer_kwargs",
    "vec_env_wrapper",
)
"""Keys of the zoo that are read and kept, and that nothing here acts on."""


def _train_freq(value: Any) -> Any:
    """Steps, or a number and its unit, as ``[1, episode]``."""
    number, unit = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, "")
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    right = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= 10**6
    if not right or unit not in ("", "step", "episode"):
        raise ConfigError(f"{shown(value)} is neither a number of steps nor [number, step|episode]")
    return number if unit == "" else [number, unit]


def _own_entropy(value: str | float) -> str | float:
    if value == "seeded":
        raise ConfigError("seeded is for CQSAC; give auto or a number")
    return forms.target_entropy(value)


@dataclass(frozen=True)
class PlainArgumentsBase(Checked):
    """What all of them take, and what the zoo keeps beside it for the caller."""

    n_timesteps: int = setting(1_000_000, "environment steps", 1, 10**10)
    n_envs: int = setting(1, "environments", 1, 100_000)
    normalize: bool | dict[str, Any] = setting(False, "VecNormalize, or its arguments")
    env_kwargs: dict[str, Any] = setting({}, "arguments of an environment that is not ours")
    policy: Literal["MlpPolicy", "CnnPolicy", "MultiInputPolicy"] = setting("MlpPolicy", "policy")
    policy_kwargs: dict[str, Any] = setting({}, "arguments of the policy")
    learning_rate: float | str = setting(3e-4, "a number or lin_<number>", form=schedule)
    gamma: float = setting(0.99, "discount", 0.0, 1.0)
    verbose: int = setting(0, "SB3's own printing", 0, 2)


# ------------------------------------------------------------------ off-policy


@dataclass(frozen=True)
class OffPolicyArguments(PlainArgumentsBase):
    """What those with a replay buffer take; the zoo makes `action_noise` of the last two."""

    buffer_size: int = setting(1_000_000, "transitions kept", 1, 10**9)
    learning_starts: int = setting(100, "steps before the first update", 0, 10**9)
    batch_size: int = setting(256, "transitions in a batch", 2, 10**6)
    train_freq: Any = setting(1, "steps between updates", form=_train_freq)
    gradient_steps: int = setting(1, "updates at a time", -1, 10**6)
    optimize_memory_usage: bool = setting(False, "half the memory for observations")
    n_steps: int = setting(1, "steps of a return before the bootstrap", 1, 1000)
    noise_type: Literal["normal", "ornstein-uhlenbeck"] | None = setting(
        None, "noise that is added to actions while exploring"
    )
    noise_std: float = setting(0.0, "its standard deviation", 0.0, 10.0)


@dataclass(frozen=True)
class _Entropic(OffPolicyArguments):
    """What those with a learned temperature share."""

    ent_coef: str | float = setting("auto", "entropy coefficient", form=forms.ent_coef)
    target_entropy: str | float = setting("auto", "auto or a number", form=_own_entropy)
    use_sde: bool = setting(False, "state-dependent exploration")
    sde_sample_freq: int = setting(-1, "steps between its noise matrices", -1, 10**9)
    use_sde_at_warmup: bool = setting(False, "before the first update too")
    stats_window_size: int = setting(100, "episodes that SB3 averages over", 1, 10**6)


@dataclass(frozen=True)
class SACArguments(_Entropic):
    """SAC's."""

    tau: float = setting(0.005, "target network rate", 0.0, 1.0)
    target_update_interval: int = setting(1, "updates between target updates", 1, 10**6)


@dataclass(frozen=True)
class TQCArguments(SACArguments):
    """TQC's."""

    top_quantiles_to_drop_per_net: int = setting(2, "quantiles dropped of each critic", 0, 999)


@dataclass(frozen=True)
class CrossQArguments(_Entropic):
    """CrossQ's, which has no target networks."""

    policy: Literal["MlpPolicy"] = setting("MlpPolicy", "policy")
    learning_rate: float | str = setting(1e-3, "a number or lin_<number>", form=schedule)
    policy_delay: int = setting(3, "critic updates for each of the policy", 1, 1000)


@dataclass(frozen=True)
class DDPGArguments(OffPolicyArguments):
    """DDPG's."""

    learning_rate: float | str = setting(1e-3, "a number or lin_<number>", form=schedule)
    tau: float = setting(0.005, "target network rate", 0.0, 1.0)


@dataclass(frozen=True)
class TD3Arguments(DDPGArguments):
    """TD3's."""

    policy_delay: int = setting(2, "critic updates for each of the policy", 1, 1000)
    target_policy_noise: float = setting(0.2, "noise on the target's actions", 0.0, 10.0)
    target_noise_clip: float = setting(0.5, "its largest value", 0.0, 10.0)
    stats_window_size: int = setting(100, "episodes that SB3 averages over", 1, 10**6)


# ------------------------------------------------------------------ on-policy


@dataclass(frozen=True)
class OnPolicyArguments(PlainArgumentsBase):
    """What those that learn from rollouts take."""

    n_steps: int = setting(2048, "steps of each environment in a rollout", 1, 10**7)
    gae_lambda: float = setting(0.95, "bias against variance of advantages", 0.0, 1.0)
    normalize_advantage: bool = setting(True, "advantages to mean 0 and deviation 1")
    use_sde: bool = setting(False, "state-dependent exploration")
    sde_sample_freq: int = setting(-1, "steps between its noise matrices", -1, 10**9)
    stats_window_size: int = setting(100, "episodes that SB3 averages over", 1, 10**6)


@dataclass(frozen=True)
class _OneLoss(OnPolicyArguments):
    """What those take that minimise policy, value and entropy in one sum."""

    ent_coef: float = setting(0.0, "weight of the entropy bonus", 0.0, 100.0)
    vf_coef: float = setting(0.5, "weight of the value loss", 0.0, 1000.0)
    max_grad_norm: float = setting(0.5, "gradients are clipped to it", 0.0, 1e6)


@dataclass(frozen=True)
class PPOArguments(_OneLoss):
    """PPO's."""

    batch_size: int = setting(64, "transitions in a minibatch", 2, 10**6)
    n_epochs: int = setting(10, "passes through a rollout", 1, 1000)
    clip_range: float | str = setting(0.2, "a number or lin_<number>", form=schedule)
    clip_range_vf: float | str | None = setting(None, "the same of the value", form=schedule)
    target_kl: float | None = setting(None, "divergence that ends an update", 0.0, 100.0)


@dataclass(frozen=True)
class A2CArguments(_OneLoss):
    """A2C's."""

    learning_rate: float | str = setting(7e-4, "a number or lin_<number>", form=schedule)
    n_steps: int = setting(5, "steps of each environment in a rollout", 1, 10**7)
    gae_lambda: float = setting(1.0, "bias against variance of advantages", 0.0, 1.0)
    normalize_advantage: bool = setting(False, "advantages to mean 0 and deviation 1")
    rms_prop_eps: float = setting(1e-5, "RMSprop's epsilon", 1e-12, 1.0)
    use_rms_prop: bool = setting(True, "RMSprop in the place of Adam")


PLAIN: dict[str, type[PlainArgumentsBase]] = {
    "sac": SACArguments,
    "td3": TD3Arguments,
    "ddpg": DDPGArguments,
    "ppo": PPOArguments,
    "a2c": A2CArguments,
    "tqc": TQCArguments,
    "crossq": CrossQArguments,
}
