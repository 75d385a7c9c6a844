"""The order of CQSAC's updates: `train` reads as the algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update, update_learning_rate

from finflow_sb3.cqsac.batches import Batches, OfflineData
from finflow_sb3.cqsac.compiling import Parts
from finflow_sb3.cqsac.objectives import ConservativeDraws, Objectives
from finflow_sb3.cqsac.precision import Precision
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.noise import Noise
from finflow_sb3.nets.policy import draw

__all__ = ["Updates"]


class Updates(Objectives, SAC):  # type: ignore[misc]
    """`CQSAC` after it is set up: one method for each thing that moves."""

    actor_lr: float | None
    critic_lr: float | None
    lr_scale: float
    track_gradients: bool
    utd_ratio: int
    policy_delay: int
    cql_alpha: float
    cql_alpha_final: float | None
    cql_target_action_gap: float | None
    cql_n_actions: int
    offline_fraction: float
    prefetch: bool
    offline_data: OfflineData | None
    log_cql_alpha: th.Tensor | None
    cql_alpha_optimizer: th.optim.Adam | None
    precision: Precision
    noise: Noise
    _parts: Parts
    _noise_scale: th.Tensor | None
    _target_pairs: tuple[list[th.Tensor], list[th.Tensor]]
    _logs: dict[str, th.Tensor] | None

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self.policy.set_training_mode(True)
        self._set_learning_rates()
        updates = gradient_steps * self.utd_ratio
        batches = self._batches(batch_size).stream(updates, self.prefetch)
        due = {step for step in range(updates) if self._policy_is_due(step)}
        # Figures are of the last update in which the policy moves, if it does.
        told = max(due, default=updates - 1)
        logs: dict[str, th.Tensor] = {}
        for step, batch in enumerate(map(self._prepared, batches)):
            self._logs = logs if step == told else None
            if self.use_sde:
                self.actor.reset_noise()
            moves = step in due
            normal = self._policy_noise(batch) if moves else None
            ent_coef = self._temperature()
            self._update_critics(batch, ent_coef)
            if moves:
                entropy = self._update_actor(batch, normal, ent_coef)
                self._update_temperature(entropy)
            if step % self.target_update_interval == 0:
                self._update_targets()
        self._n_updates += gradient_steps
        self._record(logs)

    def _policy_is_due(self, step: int) -> bool:
        """The policy moves after every `utd_ratio` updates of the critics, `policy_delay` times
        that; it is due at the last of them.
        """
        gradient_step, update = divmod(step, self.utd_ratio)
        last = update == self.utd_ratio - 1
        return last and (self._n_updates + gradient_step) % self.policy_delay == 0

    def _policy_noise(self, batch: ReplayBufferSamples) -> th.Tensor | None:
        """Noise of the actions that the actor is judged by; gSDE has its own."""
        if self.use_sde:
            return None
        size = get_action_dim(self.action_space)
        shape = len(batch.actions), self.policy.n_components, size
        return self.noise.normal(*shape, device=self.device)

    def _temperature(self) -> th.Tensor:
        """α, the weight of the entropy."""
        if self.log_ent_coef is None:
            return self.ent_coef_tensor
        return th.exp(self.log_ent_coef.detach())

    def _update_temperature(self, entropy: th.Tensor) -> None:
        """A step down J(α) = log α·(H − H*), the loss that SB3 uses, where α is learned.

        Parameters
        ----------
        entropy : H of each state, [B], of the policy before its step
        """
        if self.ent_coef_optimizer is None or self.log_ent_coef is None:
            return
        # The loss is linear in log α: its slope needs no backward pass.
        slope = (entropy - float(self.target_entropy)).mean().reshape(1)
        self._log(ent_coef_loss=self.log_ent_coef.detach() * slope)
        self.log_ent_coef.grad = slope
        self.workers.average_gradients([self.log_ent_coef])
        self.ent_coef_optimizer.step()

    def _update_critics(self, batch: ReplayBufferSamples, ent_coef: th.Tensor) -> None:
        cql_alpha = self._cql_alpha_now()
        after = self._draws(len(batch.actions), 1)
        draws = None if cql_alpha is None else self._conservative_draws(batch)
        with self.precision.autocast():
            loss = self._parts.critic(batch, ent_coef, after, cql_alpha, draws)
        self._descend(loss.total, self.critic.optimizer, "grad_norm_critic")
        if loss.penalty is not None:
            self._update_multiplier(loss.penalty)
            self._log(cql_penalty=loss.penalty)
        if self._logs is not None:
            spread = loss.quantiles.std(dim=2, correction=0)
            self._log(critic_loss=loss.td, q_mean=loss.quantiles, q_spread=spread)

    def _update_multiplier(self, penalty: th.Tensor) -> None:
        """max over α of α·(penalty − gap), a step of gradient ascent (Kumar et al. 2020)."""
        if self.log_cql_alpha is None or self.cql_alpha_optimizer is None:
            return
        assert self.cql_target_action_gap is not None
        gap = penalty.detach() - self.cql_target_action_gap
        loss = -(th.exp(self.log_cql_alpha) * gap).mean()
        self._descend(loss, self.cql_alpha_optimizer)

    def _update_actor(
        self, batch: ReplayBufferSamples, normal: th.Tensor | None, ent_coef: th.Tensor
    ) -> th.Tensor:
        """Returns the policy's entropy before the step, [B]."""
        # Frozen in the backward pass too, which may compute the forward pass again.
        with _frozen(_parameters(self.critic.optimizer)):
            with self.precision.autocast():
                loss = self._parts.actor(batch.observations, normal, ent_coef)
            self._descend(loss.total, self.actor.optimizer, "grad_norm_actor")
        self._log(actor_loss=loss.total, ent_coef=ent_coef, entropy=loss.entropy)
        if loss.gates is not None and self._logs is not None:
            self._log(**{f"gate_{k}": gate for k, gate in enumerate(loss.gates)})
        entropy: th.Tensor = loss.entropy
        return entropy

    def _update_targets(self) -> None:
        with th.no_grad():
            th._foreach_lerp_(*self._target_pairs, self.tau)
        # Running statistics are copied, see DLR-RM/stable-baselines3 issue 996.
        polyak_update(self.batch_norm_stats, self.batch_norm_stats_target, 1.0)

    def _descend(
        self, loss: th.Tensor, optimizer: th.optim.Optimizer, figure: str | None = None
    ) -> None:
        """One step down `loss`, with the gradients of all processes.

        Parameters
        ----------
        figure : what the norm of the gradient is logged as, where gradients are tracked
        """
        parameters = _parameters(optimizer)
        for parameter in parameters:
            parameter.grad = None
        self.precision.backward(loss, optimizer)
        self.workers.average_gradients(parameters)
        if figure is not None and self.track_gradients and self._logs is not None:
            self._log(**{figure: self.precision.gradient_norm(parameters, optimizer)})
        self.precision.step(optimizer)

    # ---------------------------------------------------------------- parts of an update

    def _batches(self, batch_size: int) -> Batches:
        if self.offline_fraction > 0.0 and self.offline_data is None:
            raise ConfigError(
                f"offline_fraction is {self.offline_fraction} but there is no offline data; "
                "call set_offline_data, or set it to 0"
            )
        if self.offline_fraction > 0.0 and self._vec_normalize_env is not None:
            raise ConfigError(
                "offline_fraction: offline data are not scaled by VecNormalize; set it to 0, or "
                "leave VecNormalize out"
            )
        assert self.replay_buffer is not None
        return Batches(
            self.replay_buffer,
            batch_size,
            self.gamma,
            self.device,
            self._vec_normalize_env,
            self.offline_data,
            self.offline_fraction,
        )

    def _prepared(self, batch: ReplayBufferSamples) -> ReplayBufferSamples:
        """The batch with `obs_noise_std` on its observations, in the form that nets share."""
        here, there = (
            self.policy.prepared(self._perturbed(observations))
            for observations in (batch.observations, batch.next_observations)
        )
        return batch._replace(observations=here, next_observations=there)

    def _perturbed(self, observations: Any) -> Any:
        if self._noise_scale is None:
            return observations
        noise = self.noise.normal(*observations.shape, device=self.device)
        return observations + self._noise_scale * noise

    def _draws(self, states: int, count: int) -> Any:
        """Random numbers for `count` actions in each state; gSDE has its own."""
        if self.use_sde and count == 1:
            return None
        size, full = get_action_dim(self.action_space), self.policy.n_components > 1
        return draw(self.noise, states, count, size, full, self.device)

    def _conservative_draws(self, batch: ReplayBufferSamples) -> ConservativeDraws:
        size, count = len(batch.actions), self.cql_n_actions
        states = -(-size // self._cql_stride(size))
        width = batch.actions.shape[1]
        uniform = self.noise.uniform(states, count, width, device=self.device) * 2.0 - 1.0
        here = self._draws(states, count)
        return ConservativeDraws(uniform, here, self._draws(states, count))

    def _cql_alpha_now(self) -> th.Tensor | None:
        """α_cql, None where there is no penalty."""
        if self.log_cql_alpha is not None:
            return th.exp(self.log_cql_alpha.detach())[0]
        done = 1.0 - self._current_progress_remaining
        final = self.cql_alpha if self.cql_alpha_final is None else self.cql_alpha_final
        alpha = self.cql_alpha + done * (final - self.cql_alpha)
        return th.full((), alpha, device=self.device) if alpha > 0.0 else None

    def _set_learning_rates(self) -> None:
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        for extra in (self.ent_coef_optimizer, self.cql_alpha_optimizer):
            if extra is not None:
                optimizers.append(extra)
        self._update_learning_rate(optimizers)
        if self.actor_lr is not None:
            update_learning_rate(self.actor.optimizer, self.actor_lr)
        if self.critic_lr is not None:
            update_learning_rate(self.critic.optimizer, self.critic_lr)
        if self.lr_scale != 1.0:  # every rate was set afresh above: cuts do not pile up
            for group in (g for optimizer in optimizers for g in optimizer.param_groups):
                group["lr"] *= self.lr_scale
            self.logger.record("train/lr_scale", self.lr_scale)

    def _log(self, **figures: th.Tensor) -> None:
        """Keep figures of the last update of a `train`; nothing is copied to the host yet."""
        if self._logs is not None:
            for name, value in figures.items():
                self._logs[name] = value.detach().float().mean()

    def _record(self, logs: dict[str, th.Tensor]) -> None:
        """Hand the last update's figures to SB3's logger, in one copy from the device."""
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        alpha = self._cql_alpha_now()
        if alpha is not None:
            logs["cql_alpha"] = alpha
        if logs:
            for name, value in zip(logs, th.stack(list(logs.values())).tolist(), strict=True):
                self.logger.record(f"train/{name}", value)


def _parameters(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@contextmanager
def _frozen(parameters: list[th.Tensor]) -> Iterator[None]:
    """Without gradients for them: the actor's loss needs the action's alone."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
