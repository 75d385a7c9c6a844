"""CQSAC: SAC with truncated quantile critics and a conservative penalty.

Used bare it is TQC (Kuznetsov et al. 2020). On top: CQL(H) (Kumar et al. 2020) with the
calibrated floor of Cal-QL (Nakamoto et al. 2023), offline data in every batch (Ball et al.
2023), and a warm-up with the policy's own actions (Zhou et al. 2024). The equations are in
`objectives`, the order of updates in `updates`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    Schedule,
    TrainFrequencyUnit,
)

from finflow_sb3.config_checks import dropping_fault, multiplier_fault
from finflow_sb3.cqsac.batches import OfflineData
from finflow_sb3.cqsac.compiling import Parts, compiled, pays, require_mode
from finflow_sb3.cqsac.policies import (
    CnnPolicy,
    CQSACPolicy,
    MlpPolicy,
    MultiExpertPolicy,
    MultiInputPolicy,
)
from finflow_sb3.cqsac.precision import Precision
from finflow_sb3.cqsac.replay import (
    PortfolioReplayBuffer,
    TensorNStepReplayBuffer,
    replay_class,
)
from finflow_sb3.cqsac.updates import Updates
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.noise import Noise
from finflow_sb3.nets.risk import risk_weights
from finflow_sb3.parallel import JointNoise, Workers, connect, rank

__all__ = ["CQSAC"]

# What is added to TQC's arguments lies between these; NaN does not.
RANGES: dict[str, tuple[float, float]] = {
    "actor_lr": (0.0, math.inf),
    "critic_lr": (0.0, math.inf),
    "utd_ratio": (1, math.inf),
    "policy_delay": (1, math.inf),
    "obs_noise_std": (0.0, math.inf),
    "cql_alpha": (0.0, math.inf),
    "cql_alpha_final": (0.0, math.inf),
    "cql_target_action_gap": (-math.inf, math.inf),
    "cql_n_actions": (1, math.inf),
    "cql_batch_size": (1, math.inf),
    "cql_temperature": (1e-6, math.inf),
    "balance_coef": (0.0, math.inf),
    "prior_coef": (0.0, math.inf),
    "warmup_steps": (0, math.inf),
    "offline_fraction": (0.0, 1.0),
}

WHOLE = ("utd_ratio", "policy_delay", "cql_n_actions", "cql_batch_size", "warmup_steps")

SelfCQSAC = TypeVar("SelfCQSAC", bound="CQSAC")


class CQSAC(Updates):
    """Conservative quantile SAC.

    The arguments of sb3-contrib's TQC keep their names and defaults; those below are added and
    neutral by default, so that a bare CQSAC is TQC.

    Parameters
    ----------
    actor_lr, critic_lr : learning rates where they differ from `learning_rate`
    utd_ratio : critic updates, each on a batch of its own, for every gradient step
    policy_delay : gradient steps for every update of actor and temperature
    risk_measure : of the actor's objective, over the quantiles: `neutral`, `cvar:0.25` (mean of
        the worst quarter) or `wang:0.75` (mean − 0.75σ on a Gaussian)
    obs_noise_std : standard deviation of Gaussian noise on the observations of every batch; on
        market features alone where the policy has a layout
    cql_alpha : weight of the conservative penalty at the start, against the quantile loss
        summed over quantiles: both are divided by N. Over N/2 the penalty wins and Q runs away
    cql_alpha_final : its weight at the end of training (linear in between); constant if None
    cql_target_action_gap : with it α_cql is a Lagrange multiplier that starts at `cql_alpha`,
        grows while the penalty is over this gap and shrinks while it is under it
    cql_n_actions : sampled actions from each of uniform, π(·|s) and π(·|s')
    cql_batch_size : at most so many states of each batch, evenly spread, that the penalty is
        computed on (an estimate of it for a fraction of the time); all if None
    cql_temperature : T of the logsumexp over actions
    cal_ql : floor Q of policy samples at the reference value (needs a policy `with_value`)
    backup_entropy : entropy bonus in the target. At γ = 0.99 a bonus of α·H a step shifts Q by
        100·α·H, which is why `zoo_configs/cqsac.yml` leaves it out
    balance_coef : weight of the gate's load balancing in the actor loss
    prior_coef : pull of the policy towards the zero action in the actor loss
    warmup_steps : steps that the policy itself takes before the first update, instead of
        SB3's uniform actions
    offline_fraction : share of every batch that comes from `set_offline_data`
    compile : `off`, `on`, or `auto`: compile the update where `learn` is long enough for that
    mixed_precision : `off`, `bf16`, `fp16` (CUDA), or `auto`
    gradient_checkpointing : compute activations again in the backward pass: less memory, more
        time (with gSDE in the critics alone)
    prefetch : gather the next batch in a thread while one is used (where several updates
        follow each other)

    Attributes
    ----------
    lr_scale : 1.0; multiplies the learning rates that the schedules give, of everything that
        learns, from the next `train` on
    track_gradients : False; whether `train` logs the norms of the gradients of actor and critics

    Raises
    ------
    ConfigError
        Where arguments contradict each other.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
        "MultiExpertPolicy": MultiExpertPolicy,
    }
    policy: CQSACPolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[CQSACPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        top_quantiles_to_drop_per_net: int = 2,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        actor_lr: float | None = None,
        critic_lr: float | None = None,
        utd_ratio: int = 1,
        policy_delay: int = 1,
        risk_measure: str = "neutral",
        obs_noise_std: float = 0.0,
        cql_alpha: float = 0.0,
        cql_alpha_final: float | None = None,
        cql_target_action_gap: float | None = None,
        cql_n_actions: int = 4,
        cql_batch_size: int | None = None,
        cql_temperature: float = 1.0,
        cal_ql: bool = False,
        backup_entropy: bool = True,
        balance_coef: float = 0.0,
        prior_coef: float = 0.0,
        warmup_steps: int = 0,
        offline_fraction: float = 0.0,
        compile: str = "off",
        mixed_precision: str = "off",
        gradient_checkpointing: bool = False,
        prefetch: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            buffer_size=buffer_size,
            learning_starts=max(learning_starts, warmup_steps),
            batch_size=batch_size,
            tau=tau,
            gamma=gamma,
            train_freq=train_freq,
            gradient_steps=gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            ent_coef=ent_coef,
            target_update_interval=target_update_interval,
            target_entropy=target_entropy,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.top_quantiles_to_drop_per_net = top_quantiles_to_drop_per_net
        self.actor_lr, self.critic_lr = actor_lr, critic_lr
        self.utd_ratio, self.policy_delay = utd_ratio, policy_delay
        self.risk_measure, self.obs_noise_std = risk_measure, obs_noise_std
        self.cql_alpha, self.cql_alpha_final = cql_alpha, cql_alpha_final
        self.cql_target_action_gap = cql_target_action_gap
        self.cql_n_actions, self.cql_temperature = cql_n_actions, cql_temperature
        self.cql_batch_size = cql_batch_size
        self.cal_ql, self.backup_entropy = cal_ql, backup_entropy
        self.balance_coef, self.prior_coef = balance_coef, prior_coef
        self.warmup_steps, self.offline_fraction = warmup_steps, offline_fraction
        self.compile, self.mixed_precision = compile, mixed_precision
        self.gradient_checkpointing, self.prefetch = gradient_checkpointing, prefetch
        self.lr_scale, self.track_gradients = 1.0, False
        self._logs = None
        self.offline_data: OfflineData | None = None
        self.log_cql_alpha, self.cql_alpha_optimizer = None, None
        if _init_setup_model:
            self._setup_model()

    # ---------------------------------------------------------------- setting up

    def _setup_model(self) -> None:
        ours = self.replay_buffer_class is None
        if ours and self.n_steps > 1 and isinstance(self.observation_space, spaces.Dict):
            raise ConfigError(
                f"n_steps: {self.n_steps} is not supported with Dict observation spaces; use 1"
            )
        self._check_ranges()
        connect(self.device)
        self._take_layout_from_env()
        self._choose_replay_buffer()
        with warnings.catch_warnings():
            if "n_steps" in self.replay_buffer_kwargs:  # SB3 knows of its own buffers only
                warnings.filterwarnings("ignore", message="`n_steps=")
            super()._setup_model()
        self._check_arguments()
        critic = self.policy.critic
        self.quantile_weights = risk_weights("neutral", critic.n_quantiles).to(self.device)
        self.risk_weights = risk_weights(self.risk_measure, critic.n_quantiles).to(self.device)
        critic.checkpointing = self.gradient_checkpointing
        self.precision = Precision(self.mixed_precision, self.device)
        if self.log_ent_coef is not None:  # SB3's own steps one number in a dozen operations
            self.ent_coef_optimizer = _adam(self.log_ent_coef, self.lr_schedule)
        self._setup_multiplier()
        self._setup_workers()
        self._parts = self._equations()
        self._noise_scale = self._observation_noise()
        self._target_pairs = (
            list(self.critic_target.parameters()),
            list(self.critic.parameters()),
        )

    def _check_ranges(self) -> None:
        require_mode(self.compile)
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name}: {value} must lie between {low:g} and {high:g}")
        for name in WHOLE:
            value = getattr(self, name)
            if value is not None and not float(value).is_integer():
                raise ConfigError(f"{name}: {value} must be a whole number")

    def _check_arguments(self) -> None:
        n_quantiles = self.policy.critic.n_quantiles
        fault = dropping_fault(self.top_quantiles_to_drop_per_net, n_quantiles)
        if fault is not None:
            raise ConfigError(f"top_quantiles_to_drop_per_net: {fault}")
        if self.cal_ql and self.policy.reference_value is None:
            raise ConfigError(
                "cal_ql needs a reference value: use MultiExpertPolicy with "
                "policy_kwargs with_value, seeded from a pretrained run"
            )
        if self.compile == "on" and self.use_sde:
            raise ConfigError("compile: gSDE's exploration can't be compiled; set it to off")

    def _setup_multiplier(self) -> None:
        """α_cql as a Lagrange multiplier; its logarithm is what moves."""
        if self.cql_target_action_gap is None:
            return
        fault = multiplier_fault(self.cql_alpha, self.cql_alpha_final, self.cql_target_action_gap)
        if fault is not None:
            raise ConfigError(f"cql_target_action_gap: {fault}")
        start = th.full((1,), math.log(self.cql_alpha), device=self.device)
        self.log_cql_alpha = start.requires_grad_()
        self.cql_alpha_optimizer = _adam(self.log_cql_alpha, self.lr_schedule)

    def _setup_workers(self) -> None:
        self.workers = Workers()
        self.noise = Noise()
        if self.workers.count == 1:
            return
        if self.use_sde or self._vec_normalize_env is not None or self.compile == "on":
            raise ConfigError(
                "several processes: use_sde, VecNormalize and compile: on are for one process"
            )
        if self.train_freq.unit is not TrainFrequencyUnit.STEP:  # type: ignore[union-attr]
            raise ConfigError("several processes: train_freq in episodes is for one; give steps")
        self.noise = JointNoise(self.seed or 0, self.device)
        self.workers.share([*self.policy.parameters(), *self.policy.buffers()])

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; processes that share a batch explore with seeds of their own."""
        # Environment i has seed + i.
        super().set_random_seed(None if seed is None else seed + rank() * max(self.n_envs, 1))

    def _choose_replay_buffer(self) -> None:
        """Our buffers where SB3 would take its own; `n_steps` for those that know of it."""
        if self.replay_buffer_class is None:
            self.replay_buffer_class = replay_class(self.observation_space, self.n_steps)
        knowing = (TensorNStepReplayBuffer, PortfolioReplayBuffer)
        told = self.n_steps > 1 or "n_steps" in self.replay_buffer_kwargs
        if told and issubclass(self.replay_buffer_class, knowing):
            steps = {"n_steps": self.n_steps, "gamma": self.gamma}
            self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, **steps}

    def _observation_noise(self) -> th.Tensor | None:
        """Standard deviation of the noise for every column of the observation, or None."""
        if self.obs_noise_std == 0.0:
            return None
        space = self.observation_space
        shape = space.shape or ()
        if len(shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            raise ConfigError("obs_noise_std is for flat Box observations of floats; set it to 0")
        scale = th.full(shape, self.obs_noise_std, device=self.device)
        layout = getattr(self.policy, "layout", None)
        if layout is not None:
            scale[layout.slices["anchor_weights"]] = 0.0
            scale[layout.market_size :] = 0.0
        return scale

    def _equations(self) -> Parts:
        return Parts(self._critic_half, self._actor_half)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> Any:
        out = super()._setup_learn(total_timesteps, *args, **kwargs)
        possible = not self.use_sde and self.workers.count == 1
        # Of the whole run: a part that is resumed has to round as the whole does.
        if possible and pays(self.compile, self._planned_updates(self._total_timesteps)):
            self._parts = compiled(self._equations())
        return out

    def _planned_updates(self, total_timesteps: int) -> int:
        """About how many updates so many steps of the environment bring; 0 if nobody knows."""
        frequency = self.train_freq.frequency  # type: ignore[union-attr]
        in_steps = self.train_freq.unit is TrainFrequencyUnit.STEP  # type: ignore[union-attr]
        if frequency < 1 or not (in_steps or self.gradient_steps < 0):
            return 0
        if self.gradient_steps < 0:
            return total_timesteps * self.utd_ratio
        rollouts: int = total_timesteps // (self.n_envs * frequency)
        return rollouts * self.gradient_steps * self.utd_ratio

    def _take_layout_from_env(self) -> None:
        """An environment's own `layout` tells `MultiExpertPolicy` what stands where.

        Its `gate_scale`, without which the policy would take a gate's action for another mixture,
        comes with it.
        """
        if not issubclass(self.policy_class, MultiExpertPolicy) or self.env is None:
            return
        if "layout" in self.policy_kwargs:
            return
        try:
            own = {"layout": self.env.get_attr("layout")[0].as_dict()}
        except AttributeError:
            return
        with contextlib.suppress(AttributeError):
            own["gate_scale"] = self.env.get_attr("gate_scale")[0]
        # A new dictionary: the caller's may serve another environment.
        self.policy_kwargs = {**own, **self.policy_kwargs}

    def set_offline_data(self, data: OfflineData) -> None:
        """Give the transitions that `offline_fraction` of every batch is drawn from."""
        self.offline_data = data

    # ---------------------------------------------------------------- SB3's hooks

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """As SB3's; while `warmup_steps` last the policy acts, not chance."""
        if self.warmup_steps > 0:
            learning_starts = 0
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def learn(
        self: SelfCQSAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "CQSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfCQSAC:
        return OffPolicyAlgorithm.learn(
            self,
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,  # type: ignore[arg-type]
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _excluded_save_params(self) -> list[str]:
        own = ["offline_data", "quantile_weights", "risk_weights", "precision", "workers", "noise"]
        own += ["log_cql_alpha", "cql_alpha_optimizer"]
        own += ["_parts", "_noise_scale", "_logs", "_target_pairs"]
        return [*super()._excluded_save_params(), *own]

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions belong to this model's networks, not to a copy's.
        return {**self.__dict__, "_parts": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._parts = self._equations()

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        states, tensors = super()._get_torch_save_params()
        if self.log_cql_alpha is not None:
            states, tensors = [*states, "cql_alpha_optimizer"], [*tensors, "log_cql_alpha"]
        return states, tensors


def _adam(parameter: th.Tensor, schedule: Schedule) -> th.optim.Adam:
    return th.optim.Adam([parameter], lr=schedule(1), fused=True)
