"""IQL's losses by hand, over the modules that d3rlpy trains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from d3rlpy.algos.qlearning.torch.iql_impl import IQLImpl
from d3rlpy.optimizers import AdamFactory
from d3rlpy.torch_utility import TorchMiniBatch
from learning_fixtures import TINY, mini_batch, random_box, small_dataset, trained_iql
from markets import small_market

from finflow_sb3.config import IQLSettings
from finflow_sb3.pretrain import iql as iql_module
from finflow_sb3.pretrain.iql import ExpertIQL, ExpertIQLImpl, make_iql

CAP = 0.92


@pytest.fixture(scope="module")
def algo() -> ExpertIQL:
    return trained_iql(balance_coef=0.25, prior_coef=0.5, expectile=0.8, gamma=0.9, max_weight=CAP)


def impl_of(algo: ExpertIQL) -> Any:
    assert algo.impl is not None
    return algo.impl


@torch.no_grad()
def advantages(algo: ExpertIQL, batch: TorchMiniBatch) -> list[float]:
    """min over the target critics of the mean quantile, less V, state by state."""
    q = [f(batch.observations, batch.actions).quantiles for f in algo.modules.targ_q_funcs]
    v = algo.modules.value_func(batch.observations)[:, 0].tolist()
    means = [[float(np.mean(row)) for row in critic.tolist()] for critic in q]
    return [min(m[i] for m in means) - v[i] for i in range(len(v))]


def test_value_loss_is_the_expectile_by_hand(algo: ExpertIQL) -> None:
    batch = mini_batch()
    found = float(impl_of(algo).compute_value_loss(batch).detach())
    gaps = advantages(algo, batch)
    assert min(gaps) < 0 < max(gaps), "both sides of the expectile must occur"
    expected = [(0.8 if gap > 0 else 0.2) * gap**2 for gap in gaps]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_value_loss_minimiser_is_the_expectile() -> None:
    """Σ w·(q − v) = 0 at the τ-expectile: for q = 0, 1 it is v = τ."""
    q, tau = torch.tensor([0.0, 1.0]), 0.8
    v = torch.tensor(tau, requires_grad=True)
    gap = q - v
    ((tau - (gap < 0).float()).abs() * gap**2).mean().backward()
    assert float(v.grad) == pytest.approx(0.0, abs=1e-6)


class Peer(ExpertIQLImpl):
    """What d3rlpy computes by itself, of the same networks."""

    compute_critic_loss = IQLImpl.compute_critic_loss
    compute_value_loss = IQLImpl.compute_value_loss
    _compute_weight = IQLImpl._compute_weight

    def compute_target(self, batch: TorchMiniBatch) -> torch.Tensor:
        return super().compute_target(batch).expand(-1, TINY["n_quantiles"])


class PeerIQL(ExpertIQL):
    implementation = Peer


@pytest.mark.parametrize("n_critics", [1, 3])
def test_losses_are_d3rlpys(monkeypatch: pytest.MonkeyPatch, n_critics: int) -> None:
    """On equal batches from equal weights, over updates of each with optimisers of its own."""
    changes: dict[str, Any] = {"n_critics": n_critics, "balance_coef": 0.1, "prior_coef": 0.2}
    ours = trained_iql(updates=10, **changes)
    monkeypatch.setattr(iql_module, "ExpertIQL", PeerIQL)
    monkeypatch.setattr(iql_module, "FusedAdamFactory", AdamFactory)
    peer = trained_iql(updates=10, **changes)
    assert isinstance(impl_of(peer), Peer)
    for step in range(10, 20):
        batch = mini_batch(seed=step)
        mine, theirs = (impl_of(algo).update(batch, step) for algo in (ours, peer))
        assert mine.keys() >= {"q_loss", "v_loss", "actor_loss"}
        for name, loss in theirs.items():
            assert mine[name] == pytest.approx(loss, rel=1e-5, abs=1e-5), name


def test_taking_observations_apart_changes_nothing(algo: ExpertIQL) -> None:
    """Networks give the same for an observation and for what it was taken apart into."""
    whole, modules = mini_batch(), algo.modules
    parts = algo.experts.view(whole.observations)
    assert torch.equal(modules.policy(parts).mu, modules.policy(whole.observations).mu)
    assert torch.equal(modules.value_func(parts), modules.value_func(whole.observations))
    for critic in modules.q_funcs:
        mine = critic(parts, whole.actions).quantiles
        assert torch.equal(mine, critic(whole.observations, whole.actions).quantiles)


def test_target_is_v_of_what_follows(algo: ExpertIQL) -> None:
    batch = mini_batch()
    target = impl_of(algo).compute_target(batch)
    torch.testing.assert_close(target, algo.modules.value_func(batch.next_observations))
    assert not target.requires_grad


def test_critic_loss_by_hand(algo: ExpertIQL) -> None:
    """Quantile Huber loss to r + γ·(1 − d)·V(s'), summed over quantiles and critics."""
    batch, impl = mini_batch(), impl_of(algo)
    found = float(impl.compute_critic_loss(batch, impl.compute_target(batch)).q_loss.detach())
    with torch.no_grad():
        value = algo.modules.value_func(batch.next_observations)[:, 0].tolist()
        critics = [
            f(batch.observations, batch.actions).quantiles.tolist() for f in algo.modules.q_funcs
        ]
    n, total = TINY["n_quantiles"], 0.0
    for critic in critics:
        for i, quantiles in enumerate(critic):
            goal = float(batch.rewards[i]) + 0.9 * value[i] * (1 - float(batch.terminals[i]))
            for j, quantile in enumerate(quantiles):
                gap = goal - quantile
                huber = 0.5 * gap**2 if abs(gap) < 1 else abs(gap) - 0.5
                tau = (2 * j + 1) / (2 * n)
                total += abs(tau - (gap < 0)) * huber / len(critic)
    assert found == pytest.approx(total, rel=1e-4)


def test_policy_loss_by_hand(algo: ExpertIQL) -> None:
    """−mean(min(exp(β·A), w_max)·log π(a)) + c_balance·balance + c_prior·prior."""
    batch, impl = mini_batch(), impl_of(algo)
    impl.compute_value_loss(batch)
    action = algo.modules.policy(batch.observations)
    found = float(impl.compute_actor_loss(batch, action).actor_loss.detach())
    total, weights = 0.0, []
    for i, gap in enumerate(advantages(algo, batch)):
        weights.append(min(math.exp(3.0 * gap), CAP))
        log_pi = 0.0
        for a, m, s in zip(
            batch.actions[i].tolist(), action.mu[i].tolist(), action.logstd[i].tolist(), strict=True
        ):
            u = math.atanh(a)
            log_pi += -0.5 * ((u - m) / math.exp(s)) ** 2 - s - 0.5 * math.log(2 * math.pi)
            log_pi -= math.log(1 - a * a + 1e-6)
        total -= weights[-1] * log_pi / len(batch.actions)
    assert CAP in weights and min(weights) < CAP, "the cap must bind somewhere, not everywhere"
    gate = action.gates.mean(dim=0).tolist()
    total += 0.25 * (len(gate) * sum(g * g for g in gate) - 1.0)
    total += 0.5 * float(torch.tanh(action.mu.detach()).square().sum(dim=1).mean())
    assert found == pytest.approx(total, rel=1e-4)


def test_weight_temp_is_the_inverse_temperature() -> None:
    algo = trained_iql(updates=5, weight_temp=2.0, max_weight=1e6)
    batch, impl = mini_batch(), impl_of(algo)
    impl.compute_value_loss(batch)
    with torch.no_grad():
        weight = impl._compute_weight(batch)[:, 0].tolist()
    assert weight == pytest.approx([math.exp(2.0 * a) for a in advantages(algo, batch)], rel=1e-5)


def test_the_weights_of_one_update_are_of_its_own_batch(algo: ExpertIQL) -> None:
    """Q̂ is kept between the critics' and the policy's part: of this batch, not of the last."""
    impl = impl_of(algo)
    for seed in (5, 6):
        batch = mini_batch(seed=seed)
        impl.compute_critic_loss(batch, impl.compute_target(batch))
        with torch.no_grad():
            weight = impl._compute_weight(batch)[:, 0].tolist()
        expected = [min(math.exp(3.0 * a), CAP) for a in advantages(algo, batch)]
        assert weight == pytest.approx(expected, rel=1e-4)


def test_iql_clones_a_policy() -> None:
    """On data with one action for all states the deterministic action comes near to it."""
    market = small_market()
    layout, data = market.layout, small_dataset()
    goal = random_box(layout, 1)[0] * 0.5
    torch.manual_seed(0)
    algo = make_iql(IQLSettings(actor_lr=1e-2, policy_kwargs=TINY, weight_temp=0.0), layout)
    generator = torch.Generator().manual_seed(0)
    tilts = slice(layout.n_anchors, layout.action_size - 1)
    # Experts share weights over assets: all assets are given one tilt.
    goal[tilts] = goal[tilts].mean()
    for _ in range(300):
        batch = data.gather(torch.randint(len(data), (64,), generator=generator))
        noise = 0.05 * torch.randn(64, layout.action_size, generator=generator)
        algo.update_on(batch._replace(actions=(goal + noise).clamp(-0.95, 0.95)))
    policy: Any = algo.modules.policy
    with torch.no_grad():
        action = torch.tanh(policy(data.gather(torch.arange(64)).observations).mu)
    assert float((action - goal).abs().mean()) < 0.05
