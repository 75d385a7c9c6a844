"""Arguments of SB3's SAC and sb3-contrib's TQC that a file may hold, and the zoo's other keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from finflow_sb3 import config_forms as forms
from finflow_sb3.config_fields import Checked, setting
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import shown
from finflow_sb3.zoo_values import schedule

__all__ = ["PLAIN", "ZOO_KEYS", "SACArguments", "TQCArguments"]

ZOO_KEYS = (
    "callback",
    "env_wrapper",
    "eval_freq",
    "frame_stack",
    "monitor_kwargs",
    "noise_std",
    "noise_type",
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
class SACArguments(Checked):
    """SAC's, and what the zoo keeps beside them for the caller."""

    n_timesteps: int = setting(1_000_000, "environment steps", 1, 10**10)
    n_envs: int = setting(1, "environments", 1, 100_000)
    normalize: bool | dict[str, Any] = setting(False, "VecNormalize, or its arguments")
    env_kwargs: dict[str, Any] = setting({}, "arguments of an environment that is not ours")
    policy: Literal["MlpPolicy", "CnnPolicy", "MultiInputPolicy"] = setting("MlpPolicy", "policy")
    policy_kwargs: dict[str, Any] = setting({}, "arguments of the policy")
    learning_rate: float | str = setting(3e-4, "a number or lin_<number>", form=schedule)
    buffer_size: int = setting(1_000_000, "transitions kept", 1, 10**9)
    learning_starts: int = setting(100, "steps before the first update", 0, 10**9)
    batch_size: int = setting(256, "transitions in a batch", 2, 10**6)
    tau: float = setting(0.005, "target network rate", 0.0, 1.0)
    gamma: float = setting(0.99, "discount", 0.0, 1.0)
    train_freq: Any = setting(1, "steps between updates", form=_train_freq)
    gradient_steps: int = setting(1, "updates at a time", -1, 10**6)
    optimize_memory_usage: bool = setting(False, "half the memory for observations")
    n_steps: int = setting(1, "steps of a return before the bootstrap", 1, 1000)
    ent_coef: str | float = setting("auto", "entropy coefficient", form=forms.ent_coef)
    target_update_interval: int = setting(1, "updates between target updates", 1, 10**6)
    target_entropy: str | float = setting("auto", "auto or a number", form=_own_entropy)
    use_sde: bool = setting(False, "state-dependent exploration")
    sde_sample_freq: int = setting(-1, "steps between its noise matrices", -1, 10**9)
    use_sde_at_warmup: bool = setting(False, "before the first update too")
    stats_window_size: int = setting(100, "episodes that SB3 averages over", 1, 10**6)
    verbose: int = setting(0, "SB3's own printing", 0, 2)


@dataclass(frozen=True)
class TQCArguments(SACArguments):
    """TQC's."""

    top_quantiles_to_drop_per_net: int = setting(2, "quantiles dropped of each critic", 0, 999)


PLAIN: dict[str, type[SACArguments]] = {"sac": SACArguments, "tqc": TQCArguments}
