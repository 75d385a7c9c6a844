"""CQSAC's equations, one method each: what is minimised, and the targets.

Random numbers come in as arguments, so that every method is a function of its tensors and of
the networks, and can be compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs, ReplayBufferSamples

from finflow_sb3.nets.losses import (
    balance_loss,
    conservative_penalty,
    log_uniform_density,
    prior_loss,
)
from finflow_sb3.nets.noise import Draws
from finflow_sb3.nets.policy import PolicyStep, act, sample_policy
from finflow_sb3.nets.quantile_huber import quantile_huber_loss, sort_rows
from finflow_sb3.nets.tokens import Tokens
from finflow_sb3.parallel import Workers

if TYPE_CHECKING:
    from finflow_sb3.cqsac.policies import CQSACPolicy

__all__ = ["ActorLoss", "ConservativeDraws", "CriticLoss", "Objectives"]


class ConservativeDraws(NamedTuple):
    """Random numbers of the penalty: uniform actions [b, M, A], and draws for π(·|s), π(·|s')."""

    actions: th.Tensor
    here: Draws
    there: Draws


class CriticLoss(NamedTuple):
    """total : what is minimised; td : the quantile loss in it; penalty : CQL's, None without;
    quantiles : [B, C, N] of the batch's own actions.
    """

    total: th.Tensor
    td: th.Tensor
    penalty: th.Tensor | None
    quantiles: th.Tensor


class ActorLoss(NamedTuple):
    """total : what is minimised; entropy : −E log π of each state, [B], without gradient;
    gates : mean gate [K], None without experts.
    """

    total: th.Tensor
    entropy: th.Tensor
    gates: th.Tensor | None


class Objectives:
    """The equations of `CQSAC`, which has these attributes as its arguments."""

    policy: CQSACPolicy
    use_sde: bool
    gamma: float
    top_quantiles_to_drop_per_net: int
    backup_entropy: bool
    cql_batch_size: int | None
    cql_temperature: float
    cal_ql: bool
    balance_coef: float
    prior_coef: float
    quantile_weights: th.Tensor
    risk_weights: th.Tensor
    workers: Workers

    def _act(self, observations: PyTorchObs, normal: th.Tensor | None) -> PolicyStep:
        """Reparametrised actions of the present policy.

        Parameters
        ----------
        normal : as in `nets.policy.act`; None with gSDE, which has noise of its own
        """
        if normal is not None:
            return act(self.policy.distribution(observations), normal)
        actions, log_prob = self.policy.actor.action_log_prob(observations)
        mean = None
        if self.prior_coef > 0.0:
            mean = self.policy.distribution(observations).mean
        return PolicyStep(actions[:, None], log_prob.reshape(-1, 1), None, mean, None)

    def _target_quantiles(
        self, batch: ReplayBufferSamples, ent_coef: th.Tensor, draws: Draws | None
    ) -> th.Tensor:
        """r + γ·(pooled quantiles of the targets without the top ones − α·log π'), [B, n]."""
        discounts = batch.discounts if batch.discounts is not None else self.gamma
        with th.no_grad():
            actions, log_prob = self._sample(batch.next_observations, draws)
            pooled = single(self.policy.critic_target(batch.next_observations, actions))
            dropped = self.top_quantiles_to_drop_per_net * self.policy.critic.n_critics
            keep = self.policy.critic.quantiles_total - dropped
            kept = smallest(pooled.flatten(1), keep)
            if self.backup_entropy:
                kept = kept - ent_coef * log_prob
            return batch.rewards + (1 - batch.dones) * discounts * kept

    def _sample(self, observations: PyTorchObs, draws: Draws | None) -> tuple[th.Tensor, th.Tensor]:
        """One action for each state, [B, A], and its log π, [B, 1]."""
        if draws is None:
            actions, log_prob = self.policy.actor.action_log_prob(observations)
            return actions, log_prob.reshape(-1, 1)
        actions, log_prob = sample_policy(self.policy.distribution(observations), 1, draws)
        return actions[:, 0], log_prob

    def _critic_loss(
        self,
        batch: ReplayBufferSamples,
        target: th.Tensor,
        cql_alpha: th.Tensor | None,
        draws: ConservativeDraws | None,
    ) -> CriticLoss:
        """Quantile Huber loss, with α_cql/N times the conservative penalty.

        The quantile loss is a mean over N quantiles of bounded slope: weighed against it
        unscaled, any α over a half wins for good and Q runs away. Against their sum, as the
        papers have it, α keeps its meaning up to N/2.
        """
        quantiles = single(self.policy.critic(batch.observations, batch.actions))
        td = quantile_huber_loss(quantiles, target, targets_sorted=True)
        if cql_alpha is None or draws is None:
            return CriticLoss(td, td, None, quantiles)
        penalty = self._conservative_penalty(batch, quantiles.mean(dim=2).T, draws)
        return CriticLoss(td + cql_alpha / quantiles.shape[2] * penalty, td, penalty, quantiles)

    def _conservative_penalty(
        self, batch: ReplayBufferSamples, data_q: th.Tensor, draws: ConservativeDraws
    ) -> th.Tensor:
        """CQL(H) over actions from uniform, π(·|s) and π(·|s'), each with its density.

        Parameters
        ----------
        data_q : [C, B], Q of the batch's own actions
        """
        stride = self._cql_stride(len(batch.actions))
        here = every(stride, batch.observations)
        there = every(stride, batch.next_observations)
        with th.no_grad():
            count = draws.actions.shape[1]
            from_here, here_density = self._candidates(here, count, draws.here)
            from_there, there_density = self._candidates(there, count, draws.there)
            flat = th.full_like(here_density, log_uniform_density(draws.actions.shape[2]))
            density = th.cat([flat, here_density, there_density], dim=1)
            actions = th.cat([draws.actions, from_here, from_there], dim=1)
        q = single(self.policy.critic.value(here, actions, self.quantile_weights))
        if self.cal_ql:
            q = self._calibrated(q, here, count)
        return conservative_penalty(q, density, data_q[:, ::stride], self.cql_temperature)

    def _candidates(
        self, observations: PyTorchObs, count: int, draws: Draws
    ) -> tuple[th.Tensor, th.Tensor]:
        """`count` actions of π in each state and their log π; with gSDE of the marginal."""
        return sample_policy(self.policy.distribution(observations), count, draws)

    def _cql_stride(self, batch_size: int) -> int:
        """Every k-th state: online and offline transitions stand one after the other."""
        return -(-batch_size // (self.cql_batch_size or batch_size))

    def _calibrated(self, q: th.Tensor, observations: PyTorchObs, uniform: int) -> th.Tensor:
        """Q [C, B, M] with the floor V_ref(s) under policy samples (those after `uniform`)."""
        assert self.policy.reference_value is not None
        with th.no_grad():
            floor = single(self.policy.reference_value(observations))
        return th.cat([q[:, :, :uniform], th.maximum(q[:, :, uniform:], floor)], dim=2)

    def _actor_loss(
        self, observations: PyTorchObs, now: PolicyStep, ent_coef: th.Tensor
    ) -> ActorLoss:
        """E[α·log π − ρ(Z)], ρ the risk measure of the quantiles, mean over critics; in a full
        mixture summed over its components. Load balancing and the pull to zero join it.
        """
        q = single(self.policy.critic.value(observations, now.actions, self.risk_weights))
        loss = now.expected(ent_coef * now.log_prob - q.mean(dim=0)).mean()
        gates = None
        if now.gates is not None:
            gates = self.workers.mean(now.gates.mean(dim=0))
            if self.balance_coef > 0.0:
                loss = loss + self.balance_coef * balance_loss(gates)
        if self.prior_coef > 0.0 and now.mean is not None:
            loss = loss + self.prior_coef * prior_loss(now.mean)
        return ActorLoss(loss, now.expected(-now.log_prob).detach(), gates)

    # ---------------------------------------------------------------- halves of an update

    def _critic_half(
        self,
        batch: ReplayBufferSamples,
        ent_coef: th.Tensor,
        after: Draws | None,
        cql_alpha: th.Tensor | None,
        draws: ConservativeDraws | None,
    ) -> CriticLoss:
        """Targets, and the critics' loss towards them."""
        target = self._target_quantiles(batch, ent_coef, after)
        return self._critic_loss(batch, target, cql_alpha, draws)

    def _actor_half(
        self, observations: PyTorchObs, normal: th.Tensor | None, ent_coef: th.Tensor
    ) -> ActorLoss:
        """Actions of the policy, and its loss for them."""
        return self._actor_loss(observations, self._act(observations, normal), ent_coef)


def single(x: th.Tensor) -> th.Tensor:
    """16-bit numbers of mixed precision in 32: what is summed up needs the digits."""
    return x.float() if x.dtype in (th.bfloat16, th.float16) else x


def smallest(pooled: th.Tensor, count: int) -> th.Tensor:
    """The `count` smallest of each row; in rising order unless compiled, where the loss that
    follows has no use for an order.
    """
    if th.compiler.is_compiling():
        return th.topk(pooled, count, dim=1, largest=False, sorted=False).values
    return sort_rows(pooled)[:, :count]


def every(stride: int, observations: PyTorchObs | Tokens) -> Any:
    """Every `stride`-th of a batch of observations: a tensor, a dictionary of them, or tokens."""
    if isinstance(observations, Tokens):
        return observations.every(stride)
    if isinstance(observations, dict):
        return {name: part[::stride] for name, part in observations.items()}
    return observations[::stride]
