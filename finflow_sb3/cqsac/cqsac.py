"""CQSAC: SAC with truncated quantile critics and a conservative penalty.

Used bare it is TQC (Kuznetsov et al. 2020). On top: CQL(H) (Kumar et al. 2020) with the
calibrated floor of Cal-QL (Nakamoto et al. 2023), offline data in every batch (Ball et al.
2023), and a warm-up with the policy's own actions (Zhou et al. 2024).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.utils import quantile_huber_loss
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    ReplayBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import polyak_update, update_learning_rate

from finflow_sb3.cqsac.policies import (
    CnnPolicy,
    CQSACPolicy,
    ExpertActor,
    MlpPolicy,
    MultiExpertPolicy,
    MultiInputPolicy,
)
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.distributions import sample_with_log_prob
from finflow_sb3.nets.losses import (
    balance_loss,
    conservative_penalty,
    log_uniform_density,
    prior_loss,
)
from finflow_sb3.offline.dataset import TransitionBatch

__all__ = ["CQSAC"]

SelfCQSAC = TypeVar("SelfCQSAC", bound="CQSAC")


class OfflineData(Protocol):
    """Transitions to mix in: anything with a length and a gather by index."""

    def __len__(self) -> int: ...

    def gather(self, index: th.Tensor) -> TransitionBatch: ...


class PolicyStep(NamedTuple):
    """Actions [B, A] of the present policy, log π [B, 1], mean before the tanh [B, A], gates
    [B, K] or None.
    """

    actions: th.Tensor
    log_prob: th.Tensor
    mean: th.Tensor | None
    gates: th.Tensor | None


class CQSAC(SAC):
    """Conservative quantile SAC.

    The arguments of sb3-contrib's TQC keep their names and defaults; those below are added and
    neutral by default, so that a bare CQSAC is TQC.

    Parameters
    ----------
    actor_lr, critic_lr : learning rates where they differ from `learning_rate`
    cql_alpha : weight of the conservative penalty at the start, against the quantile loss
        summed over quantiles: both are divided by N. Over N/2 the penalty wins and Q runs away
    cql_alpha_final : its weight at the end of training (linear in between); constant if None
    cql_n_actions : sampled actions from each of uniform, π(·|s) and π(·|s')
    cql_batch_size : states of each batch that the penalty is computed on (an unbiased estimate
        of it, for a fraction of the time); all if None
    cql_temperature : T of the logsumexp over actions
    cal_ql : floor Q of policy samples at the reference value (needs a policy `with_value`)
    backup_entropy : entropy bonus in the target. At γ = 0.99 a bonus of α·H a step shifts Q by
        100·α·H, which is why `zoo_configs/cqsac.yml` leaves it out
    balance_coef : weight of the gate's load balancing in the actor loss
    prior_coef : pull of the policy towards the zero action in the actor loss
    warmup_steps : steps that the policy itself takes before the first update, instead of
        SB3's uniform actions
    offline_fraction : share of every batch that comes from `set_offline_data`

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
        cql_alpha: float = 0.0,
        cql_alpha_final: float | None = None,
        cql_n_actions: int = 4,
        cql_batch_size: int | None = None,
        cql_temperature: float = 1.0,
        cal_ql: bool = False,
        backup_entropy: bool = True,
        balance_coef: float = 0.0,
        prior_coef: float = 0.0,
        warmup_steps: int = 0,
        offline_fraction: float = 0.0,
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
        self.cql_alpha, self.cql_alpha_final = cql_alpha, cql_alpha_final
        self.cql_n_actions, self.cql_temperature = cql_n_actions, cql_temperature
        self.cql_batch_size = cql_batch_size
        self.cal_ql, self.backup_entropy = cal_ql, backup_entropy
        self.balance_coef, self.prior_coef = balance_coef, prior_coef
        self.warmup_steps, self.offline_fraction = warmup_steps, offline_fraction
        self.offline_data: OfflineData | None = None
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.n_steps > 1 and isinstance(self.observation_space, spaces.Dict):
            raise ConfigError(
                f"n_steps: {self.n_steps} is not supported with Dict observations; set it to 1"
            )
        self._take_layout_from_env()
        super()._setup_model()
        n_quantiles = self.policy.critic.n_quantiles
        if not 0 <= self.top_quantiles_to_drop_per_net < n_quantiles:
            raise ConfigError(
                f"top_quantiles_to_drop_per_net: {self.top_quantiles_to_drop_per_net} must lie "
                f"between 0 and n_quantiles − 1 ({n_quantiles - 1})"
            )
        if self.cal_ql and self.policy.reference_value is None:
            raise ConfigError(
                "cal_ql needs a reference value: use MultiExpertPolicy with "
                "policy_kwargs with_value, seeded from a pretrained run"
            )

    def _take_layout_from_env(self) -> None:
        """An environment's own `layout` tells `MultiExpertPolicy` what stands where."""
        if not issubclass(self.policy_class, MultiExpertPolicy) or self.env is None:
            return
        if "layout" in self.policy_kwargs:
            return
        try:
            layout = self.env.get_attr("layout")[0]
        except AttributeError:
            return
        # A new dictionary: the caller's may serve another environment.
        self.policy_kwargs = {**self.policy_kwargs, "layout": layout.as_dict()}

    def set_offline_data(self, data: OfflineData) -> None:
        """Give the transitions that `offline_fraction` of every batch is drawn from."""
        self.offline_data = data

    # ---------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        self._check_offline_data()
        logs: dict[str, th.Tensor] = {}
        for step in range(gradient_steps):
            batch = self._sample_batch(batch_size)
            if self.use_sde:
                self.actor.reset_noise()
            now = self._act(batch.observations)
            ent_coef = self._update_temperature(now.log_prob, logs)
            self._update_critics(batch, ent_coef, logs)
            self._update_actor(batch, now, ent_coef, logs)
            if step % self.target_update_interval == 0:
                self._update_targets()
        self._n_updates += gradient_steps
        self._record(logs)

    def _update_temperature(self, log_prob: th.Tensor, logs: dict[str, th.Tensor]) -> th.Tensor:
        """J(α) = −log α·(log π + target entropy); returns α as it was before the step."""
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return self.ent_coef_tensor
        ent_coef = th.exp(self.log_ent_coef.detach())
        loss = -(self.log_ent_coef * (log_prob + float(self.target_entropy)).detach()).mean()
        self.ent_coef_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.ent_coef_optimizer.step()
        logs["ent_coef_loss"] = loss.detach()
        return ent_coef

    def _update_critics(
        self, batch: ReplayBufferSamples, ent_coef: th.Tensor, logs: dict[str, th.Tensor]
    ) -> None:
        target = self._target_quantiles(batch, ent_coef)
        quantiles = self.critic(batch.observations, batch.actions)
        loss = quantile_huber_loss(quantiles, target[:, None], sum_over_quantiles=False)
        logs["critic_loss"] = loss.detach()
        alpha = self._cql_alpha_now()
        if alpha > 0.0:
            penalty = self._conservative_penalty(batch, quantiles.mean(dim=2).T)
            # The quantile loss is a mean over N quantiles of bounded slope: weighed against it
            # unscaled, any α over a half wins for good and Q runs away. Against their sum, as
            # the papers have it, α keeps its meaning up to N/2.
            loss = loss + alpha / quantiles.shape[2] * penalty
            logs["cql_penalty"] = penalty.detach()
        self.critic.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.critic.optimizer.step()
        logs["q_mean"] = quantiles.detach().mean()
        logs["q_spread"] = quantiles.detach().std(dim=2).mean()

    def _target_quantiles(self, batch: ReplayBufferSamples, ent_coef: th.Tensor) -> th.Tensor:
        """r + γ·(pooled quantiles of the targets without the top ones − α·log π'), [B, n]."""
        discounts = batch.discounts if batch.discounts is not None else self.gamma
        with th.no_grad():
            after = self._act(batch.next_observations)
            pooled = self.critic_target(batch.next_observations, after.actions).flatten(1)
            dropped = self.top_quantiles_to_drop_per_net * self.policy.critic.n_critics
            keep = self.policy.critic.quantiles_total - dropped
            kept = th.sort(pooled, dim=1).values[:, :keep]
            if self.backup_entropy:
                kept = kept - ent_coef * after.log_prob
            return batch.rewards + (1 - batch.dones) * discounts * kept

    def _conservative_penalty(self, batch: ReplayBufferSamples, data_q: th.Tensor) -> th.Tensor:
        """CQL(H) over actions from uniform, π(·|s) and π(·|s'), each with its density.

        Parameters
        ----------
        data_q : [C, B], Q of the batch's own actions
        """
        count = self.cql_n_actions
        # Every k-th state: online and offline transitions stand one after the other in a batch.
        stride = max(1, len(batch.actions) // (self.cql_batch_size or len(batch.actions)))
        here = _every(stride, batch.observations)
        there = _every(stride, batch.next_observations)
        kept = batch.actions[::stride]
        data_q = data_q[:, ::stride]
        with th.no_grad():
            size = kept.shape[1]
            uniform = kept.new_empty(len(kept), count, size).uniform_(-1.0, 1.0)
            from_here, here_density = sample_with_log_prob(*self._gaussian(here), count)
            from_there, there_density = sample_with_log_prob(*self._gaussian(there), count)
            flat = th.full_like(here_density, log_uniform_density(size))
        actions = th.cat([uniform, from_here, from_there], dim=1)
        q = self.policy.critic.score(here, actions).mean(dim=3)
        if self.cal_ql:
            q = self._calibrated(q, here, count)
        density = th.cat([flat, here_density, there_density], dim=1)
        return conservative_penalty(q, density, data_q, self.cql_temperature)

    def _calibrated(self, q: th.Tensor, observations: th.Tensor, uniform: int) -> th.Tensor:
        """Q [C, B, M] with the floor V_ref(s) under policy samples (those after `uniform`)."""
        assert self.policy.reference_value is not None
        with th.no_grad():
            floor = self.policy.reference_value(observations)
        return th.cat([q[:, :, :uniform], th.maximum(q[:, :, uniform:], floor)], dim=2)

    def _update_actor(
        self,
        batch: ReplayBufferSamples,
        now: PolicyStep,
        ent_coef: th.Tensor,
        logs: dict[str, th.Tensor],
    ) -> None:
        """E[α·log π − Q], Q the mean over critics and quantiles; plus the load balancing."""
        q = self.critic(batch.observations, now.actions).mean(dim=(1, 2))[:, None]
        loss = (ent_coef * now.log_prob - q).mean()
        if now.gates is not None:
            logs["gates"] = now.gates.detach().mean(dim=0)
            if self.balance_coef > 0.0:
                loss = loss + self.balance_coef * balance_loss(now.gates)
        if self.prior_coef > 0.0 and now.mean is not None:
            loss = loss + self.prior_coef * prior_loss(now.mean)
        self.actor.optimizer.zero_grad()
        loss.backward()
        self.actor.optimizer.step()
        logs["actor_loss"] = loss.detach()
        logs["ent_coef"] = ent_coef.detach()
        logs["entropy"] = -now.log_prob.detach().mean()

    def _update_targets(self) -> None:
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        # Running statistics are copied, see DLR-RM/stable-baselines3 issue 996.
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    # ---------------------------------------------------------------- parts

    def _act(self, observations: th.Tensor) -> PolicyStep:
        """Reparametrised actions of the present policy."""
        actor = self.policy.actor
        if isinstance(actor, ExpertActor):
            out = actor.evaluate(observations)
            actions, log_prob = actor.action_dist.log_prob_from_params(out.mean, out.log_std)
            return PolicyStep(actions, log_prob.reshape(-1, 1), out.mean, out.gates)
        actions, log_prob = actor.action_log_prob(observations)
        mean = self._gaussian(observations)[0] if self.prior_coef > 0.0 else None
        return PolicyStep(actions, log_prob.reshape(-1, 1), mean, None)

    def _gaussian(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean and log σ before the tanh; with gSDE those of the marginal Gaussian."""
        mean, log_std, kwargs = self.actor.get_action_dist_params(observations)
        if not self.use_sde:
            return mean, log_std
        marginal = self.actor.action_dist.proba_distribution(mean, log_std, **kwargs)
        return mean, marginal.distribution.stddev.log()

    def _cql_alpha_now(self) -> float:
        if self.cql_alpha_final is None:
            return self.cql_alpha
        done = 1.0 - self._current_progress_remaining
        return self.cql_alpha + done * (self.cql_alpha_final - self.cql_alpha)

    def _sample_batch(self, batch_size: int) -> ReplayBufferSamples:
        """A batch from the replay buffer, `offline_fraction` of it from the offline data."""
        assert self.replay_buffer is not None
        n_offline = round(self.offline_fraction * batch_size) if self.offline_data else 0
        if n_offline == 0:
            return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        assert self.offline_data is not None
        index = np.random.randint(0, len(self.offline_data), size=n_offline)
        offline = self.offline_data.gather(th.from_numpy(index))
        if n_offline == batch_size:
            online: Any = None
        else:
            online = self.replay_buffer.sample(batch_size - n_offline, env=self._vec_normalize_env)
        return _joined(online, offline, self.gamma, self.device)

    def _check_offline_data(self) -> None:
        if self.offline_fraction > 0.0 and self.offline_data is None:
            raise ConfigError(
                f"offline_fraction is {self.offline_fraction} but there is no offline data; "
                "call set_offline_data, or set it to 0"
            )

    def _set_learning_rates(self) -> None:
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        if self.actor_lr is not None:
            update_learning_rate(self.actor.optimizer, self.actor_lr)
        if self.critic_lr is not None:
            update_learning_rate(self.critic.optimizer, self.critic_lr)

    def _record(self, logs: dict[str, th.Tensor]) -> None:
        """Hand the last step's figures to SB3's logger."""
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        gates = logs.pop("gates", None)
        for name, value in logs.items():
            self.logger.record(f"train/{name}", float(value.mean()))
        if self.cql_alpha > 0.0:
            self.logger.record("train/cql_alpha", self._cql_alpha_now())
        if gates is not None:
            for k, gate in enumerate(gates.tolist()):
                self.logger.record(f"train/gate_{k}", gate)

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
        return [*super()._excluded_save_params(), "offline_data"]


def _every(stride: int, observations: PyTorchObs) -> Any:
    """Every `stride`-th of a batch of observations, which may be a dictionary of tensors."""
    if isinstance(observations, dict):
        return {name: part[::stride] for name, part in observations.items()}
    return observations[::stride]


def _joined(
    online: ReplayBufferSamples | None,
    offline: TransitionBatch,
    gamma: float,
    device: th.device,
) -> ReplayBufferSamples:
    """Online and offline transitions as one batch; the offline ones are single steps."""
    parts = (
        offline.observations,
        offline.actions,
        offline.next_observations,
        offline.terminals,
        offline.rewards,
    )
    moved = tuple(part.to(device) for part in parts)
    if online is None:
        return ReplayBufferSamples(*moved)
    observations, actions, after, dones, rewards = (
        th.cat([mine, theirs]) for mine, theirs in zip(online[:5], moved, strict=True)
    )
    discounts = online.discounts
    if discounts is not None:
        discounts = th.cat([discounts, th.full_like(offline.rewards, gamma, device=device)])
    return ReplayBufferSamples(observations, actions, after, dones, rewards, discounts)
