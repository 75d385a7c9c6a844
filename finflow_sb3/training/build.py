"""From settings to a market, an environment and a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.vec_env import VecEnv

from finflow_sb3.config import CQSACSettings, EnvSettings, RunSettings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.replay import PortfolioReplayBuffer
from finflow_sb3.cqsac.seeding import policy_kwargs_for
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.parallel import rank
from finflow_sb3.pretrain.artefact import Artefact
from finflow_sb3.zoo_values import activation_name

__all__ = ["activation", "build_env", "build_model", "learning_rate", "pick_device"]


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is one.

    Raises
    ------
    ConfigError
        If the device is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {name!r} asked for, but torch sees no CUDA; use cpu")
    return name


def learning_rate(value: float | str) -> float | Callable[[float], float]:
    """A number, or the zoo's `lin_<number>`: linear from it to zero."""
    linear = isinstance(value, str) and value.startswith("lin_")
    start = float(str(value).removeprefix("lin_"))
    return (lambda remaining: remaining * start) if linear else start


def build_env(
    market: ObservedMarket, env: EnvSettings, settings: CQSACSettings, seed: int
) -> VecEnv:
    """The training environment of a run."""
    # Every process has portfolios of its own.
    seed += rank() * settings.n_envs
    return PortfolioVecEnv(
        market, settings.n_envs, split="train", seed=seed, **dataclasses.asdict(env)
    )


def build_model(
    env: VecEnv,
    market: ObservedMarket,
    env_settings: EnvSettings,
    settings: CQSACSettings,
    run: RunSettings,
    artefact: Artefact | None = None,
) -> CQSAC:
    """A CQSAC as the settings ask for it; its networks fit `artefact` where there is one."""
    try:
        return _model(env, market, env_settings, settings, run, artefact)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cqsac: these settings make no model: {reason}") from None


def _model(
    env: VecEnv,
    market: ObservedMarket,
    env_settings: EnvSettings,
    settings: CQSACSettings,
    run: RunSettings,
    artefact: Artefact | None,
) -> CQSAC:
    return CQSAC(
        settings.policy,
        env,
        learning_rate=learning_rate(settings.learning_rate),
        actor_lr=settings.actor_lr,
        critic_lr=settings.critic_lr,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=settings.train_freq,
        gradient_steps=settings.gradient_steps,
        n_steps=settings.n_steps,
        utd_ratio=settings.utd_ratio,
        policy_delay=settings.policy_delay,
        risk_measure=settings.risk_measure,
        obs_noise_std=settings.obs_noise_std,
        ent_coef=_ent_coef(settings),
        target_entropy=_target_entropy(settings),
        top_quantiles_to_drop_per_net=settings.top_quantiles_to_drop_per_net,
        cql_alpha=settings.cql_alpha,
        cql_alpha_final=settings.cql_alpha_final,
        cql_target_action_gap=settings.cql_target_action_gap,
        cql_n_actions=settings.cql_n_actions,
        cql_batch_size=settings.cql_batch_size,
        cql_temperature=settings.cql_temperature,
        cal_ql=settings.cal_ql and artefact is not None,
        backup_entropy=settings.backup_entropy,
        balance_coef=settings.balance_coef,
        prior_coef=settings.prior_coef,
        warmup_steps=settings.warmup_steps,
        offline_fraction=settings.offline_fraction,
        compile=settings.compile,
        mixed_precision=settings.mixed_precision,
        gradient_checkpointing=settings.gradient_checkpointing,
        prefetch=settings.prefetch,
        policy_kwargs=_policy_kwargs(settings, env_settings, artefact),
        seed=run.seed,
        device=pick_device(run.device),
        replay_buffer_class=PortfolioReplayBuffer,
        replay_buffer_kwargs={"market_rows": market.rows, "layout": market.layout},
    )


def _ent_coef(settings: CQSACSettings) -> str | float:
    return settings.ent_coef if settings.alpha_init is None else f"auto_{settings.alpha_init}"


def _target_entropy(settings: CQSACSettings) -> str | float:
    return "auto" if settings.target_entropy == "seeded" else settings.target_entropy


def _policy_kwargs(
    settings: CQSACSettings, env: EnvSettings, artefact: Artefact | None
) -> dict[str, Any]:
    kwargs = dict(settings.policy_kwargs)
    if settings.policy == "MultiExpertPolicy":
        kwargs["gate_scale"] = env.gate_scale
        if artefact is not None:
            fixed = policy_kwargs_for(artefact)
            _refuse_other_sizes(settings.policy_kwargs, fixed)
            kwargs |= fixed
    elif "activation_fn" in kwargs:
        kwargs["activation_fn"] = activation(kwargs["activation_fn"])
    return kwargs


def _refuse_other_sizes(wanted: dict[str, Any], seeded: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if name in seeded and value != seeded[name]:
            raise ConfigError(
                f"cqsac.policy_kwargs: {name} {value!r} differs from the pretrained run's "
                f"{seeded[name]!r}; sizes are set where it is pretrained (policy_kwargs of iql "
                "or td3bc)"
            )


def activation(name: Any) -> Any:
    """The activation class of this name; others than the known ones are refused."""
    return getattr(torch.nn, activation_name(name))
