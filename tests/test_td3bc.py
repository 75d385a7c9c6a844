"""TD3+BC's losses by hand, and its updates beside d3rlpy's own."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from d3rlpy.algos.qlearning.torch.td3_plus_bc_impl import TD3PlusBCImpl
from d3rlpy.optimizers import AdamFactory
from d3rlpy.torch_utility import TorchMiniBatch
from learning_fixtures import TINY, mini_batch, random_box, shake, small_dataset, trained
from markets import small_market

from finflow_sb3 import parallel
from finflow_sb3.config import TD3BCSettings
from finflow_sb3.pretrain import td3bc
from finflow_sb3.pretrain.td3bc import ExpertTD3BC, make_td3bc

GAMMA, SIGMA, CLIP = 0.9, 0.4, 0.3
N = TINY["n_quantiles"]


OWN = {
    "balance_coef": 0.25,
    "prior_coef": 0.5,
    "alpha": 2.0,
    "gamma": GAMMA,
    "target_smoothing_sigma": SIGMA,
    "target_smoothing_clip": CLIP,
}


@pytest.fixture(scope="module")
def algo() -> ExpertTD3BC:
    learner: ExpertTD3BC = trained("td3bc", **OWN)
    return learner


def impl_of(algo: ExpertTD3BC) -> Any:
    assert algo.impl is not None
    return algo.impl


@torch.no_grad()
def quantiles(critics: Any, batch: TorchMiniBatch, actions: torch.Tensor) -> list[Any]:
    """[critic][state][quantile], of the batch's next states."""
    return [f(batch.next_observations, actions).quantiles.tolist() for f in critics]


@torch.no_grad()
def smoothed(algo: ExpertTD3BC, batch: TorchMiniBatch) -> torch.Tensor:
    """clip(tanh μ̂(s') + clip(σ·ε, ±c), ±1), with the noise that torch draws next."""
    wide = algo.modules.targ_policy(batch.next_observations).mu.tolist()
    noise = torch.randn(len(wide), len(wide[0])).tolist()
    out = []
    for means, draws in zip(wide, noise, strict=True):
        clipped = [min(max(SIGMA * e, -CLIP), CLIP) for e in draws]
        out.append(
            [min(max(np.tanh(m) + e, -1.0), 1.0) for m, e in zip(means, clipped, strict=True)]
        )
    return torch.tensor(out, dtype=torch.float32)


def test_target_by_hand() -> None:
    """All quantiles of the target critic whose mean is the smaller, state by state."""
    algo = trained("td3bc", updates=0, **OWN)
    batch, impl, critics = mini_batch(40), impl_of(algo), algo.modules.targ_q_funcs
    shake(algo.modules.targ_policy, 0.1)  # an untrained policy is zero everywhere
    with torch.no_grad():  # each critic the smaller one in about half of the states
        first, second = (f(batch.next_observations, batch.actions).q_value for f in critics)
        critics[0]._fc.bias += (second - first).median()
    torch.manual_seed(4)
    found = impl.compute_target(batch)
    torch.manual_seed(4)
    actions = smoothed(algo, batch)
    each = quantiles(critics, batch, actions)
    chosen = [min((critic[i] for critic in each), key=np.mean) for i in range(len(actions))]
    np.testing.assert_allclose(found.numpy(), chosen, rtol=0, atol=1e-5)
    picks = {int(np.argmin([np.mean(critic[i]) for critic in each])) for i in range(len(actions))}
    assert picks == {0, 1}, "both critics must be the smaller one somewhere"
    assert not found.requires_grad


def test_critic_loss_by_hand(algo: ExpertTD3BC) -> None:
    """Quantile Huber loss to r + γ·(1 − d)·Z, a mean over Z's quantiles, summed over critics."""
    batch, impl = mini_batch(), impl_of(algo)
    torch.manual_seed(4)
    target = impl.compute_target(batch)
    found = float(impl.compute_critic_loss(batch, target).critic_loss.detach())
    with torch.no_grad():
        critics = [
            f(batch.observations, batch.actions).quantiles.tolist() for f in algo.modules.q_funcs
        ]
    total = 0.0
    for critic in critics:
        for i, own in enumerate(critic):
            live = GAMMA * (1 - float(batch.terminals[i]))
            goals = [float(batch.rewards[i]) + live * z for z in target[i].tolist()]
            for j, quantile in enumerate(own):
                tau = (2 * j + 1) / (2 * N)
                for goal in goals:
                    gap = goal - quantile
                    huber = 0.5 * gap**2 if abs(gap) < 1 else abs(gap) - 0.5
                    total += abs(tau - (gap < 0)) * huber / (N * len(critic))
    assert found == pytest.approx(total, rel=1e-5)


def test_policy_loss_by_hand(algo: ExpertTD3BC) -> None:
    """−α·mean(Q)/mean|Q| + mean((π − a)²) + c_balance·balance + c_prior·prior, Q the first's."""
    batch, impl = mini_batch(), impl_of(algo)
    action = algo.modules.policy(batch.observations)
    loss = impl.compute_actor_loss(batch, action)
    mean = torch.tanh(action.mu.detach())
    with torch.no_grad():
        q = algo.modules.q_funcs[0](batch.observations, mean).quantiles.mean(dim=1).tolist()
    weight = 2.0 / np.mean(np.abs(q))
    cloning = float(np.mean((mean.numpy() - batch.actions.numpy()) ** 2))
    gate = action.gates.mean(dim=0).tolist()
    total = -weight * np.mean(q) + cloning
    total += 0.25 * (len(gate) * sum(g * g for g in gate) - 1.0)
    total += 0.5 * float(np.mean(np.sum(mean.numpy() ** 2, axis=1)))
    assert float(loss.actor_loss.detach()) == pytest.approx(total, rel=1e-5)
    assert float(loss.bc_loss.detach()) == pytest.approx(cloning, rel=1e-5)


def d3rlpys_own(algo: ExpertTD3BC) -> ExpertTD3BC:
    """The same networks under d3rlpy's implementation as it is."""
    impl = impl_of(algo)
    impl.__class__ = TD3PlusBCImpl
    impl._compute_actor_grad = impl.compute_actor_grad
    return algo


def test_updates_are_d3rlpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared, left out or fused here changes no weight of any network."""
    settings = {"balance_coef": 0.0, "prior_coef": 0.0, "updates": 0}
    mine = trained("td3bc", **settings)
    monkeypatch.setattr(td3bc, "FusedAdamFactory", AdamFactory)
    theirs = d3rlpys_own(trained("td3bc", **settings))
    data = small_dataset()
    for step in range(6):
        batch = data.gather(torch.arange(step * 32, step * 32 + 32))
        losses = []
        for learner in (mine, theirs):
            torch.manual_seed(step)
            losses.append(learner.update_on(batch))
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert set(losses[0]) == ({"q_loss"} if step % 2 else {"q_loss", "policy_loss", "bc_loss"})
    for name, module in mine.torch_modules().items():
        other = theirs.torch_modules()[name].state_dict()
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, other[key], rtol=0.0, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.parametrize("interval", [1, 3])
def test_policy_and_targets_wait_for_their_turn(interval: int) -> None:
    algo = trained("td3bc", updates=0, update_actor_interval=interval)
    modules = algo.torch_modules()
    late = ("policy", "targ_policy", "targ_q_funcs")
    data = small_dataset()
    for step in range(4):
        before = {name: copy.deepcopy(modules[name].state_dict()) for name in (*late, "q_funcs")}
        algo.update_on(data.gather(torch.arange(step * 32, step * 32 + 32)))
        moved = {
            name
            for name, state in before.items()
            if any((modules[name].state_dict()[k] != v).any() for k, v in state.items())
        }
        assert moved == ({"q_funcs", *late} if step % interval == 0 else {"q_funcs"})


def test_sigma_stays_as_it_was_made(algo: ExpertTD3BC) -> None:
    """Not one bit of the last layers' rows for log σ moves: nothing is learned of it."""
    fresh = trained("td3bc", updates=0).experts
    experts: Any = algo.experts
    assert torch.equal(experts.score.weight[..., 1:], fresh.score.weight[..., 1:])
    assert torch.equal(experts.score.bias[..., 1:], fresh.score.bias[..., 1:])
    k = experts.n_experts
    assert torch.equal(experts.gate_head.weight[k:], fresh.gate_head.weight[k:])
    assert (experts.gate_head.weight[:k] != fresh.gate_head.weight[:k]).any()
    assert (experts.score.weight[..., :1] != fresh.score.weight[..., :1]).any()


def test_weights_have_neither_sigma_nor_value(algo: ExpertTD3BC) -> None:
    weights, experts = algo.weights(), algo.experts
    k, hidden = experts.n_experts, TINY["expert_hidden"]
    assert {name.partition(".")[0] for name in weights} == {
        "policy_mean",
        "critics",
        "target_critics",
    }
    assert weights["policy_mean.experts.score.weight"].shape == (k, hidden, 1)
    assert weights["policy_mean.experts.gate_head.weight"].shape == (k, TINY["gate_hidden"])
    assert torch.equal(
        weights["policy_mean.experts.gate_head.bias"], experts.gate_head.bias.detach()[:k]
    )


def test_td3bc_clones_a_policy() -> None:
    """With α = 0 on data with one action for all states, its action comes near to it."""
    layout, data = small_market().layout, small_dataset()
    goal = random_box(layout, 1)[0] * 0.5
    tilts = slice(layout.n_anchors, layout.action_size - 1)
    # Experts share weights over assets: all assets are given one tilt.
    goal[tilts] = goal[tilts].mean()
    torch.manual_seed(0)
    settings = TD3BCSettings(actor_lr=1e-2, alpha=0.0, update_actor_interval=1, policy_kwargs=TINY)
    algo = make_td3bc(settings, layout)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = data.gather(torch.randint(len(data), (64,), generator=generator))
        noise = 0.05 * torch.randn(64, layout.action_size, generator=generator)
        algo.update_on(batch._replace(actions=(goal + noise).clamp(-0.95, 0.95)))
    with torch.no_grad():
        found = torch.tanh(algo.experts(data.gather(torch.arange(64)).observations).mean)
    assert float((found - goal).abs().mean()) < 0.05


def test_alpha_moves_it_towards_larger_q() -> None:
    """With the critics held still, a larger α ends at actions that they think more of."""
    found = []
    for alpha in (0.0, 50.0):
        algo = trained("td3bc", updates=40, alpha=alpha, critic_lr=0.0, balance_coef=0.0)
        states = small_dataset().gather(torch.arange(256)).observations
        with torch.no_grad():
            action = torch.tanh(algo.experts(states).mean)
            found.append(float(algo.modules.q_funcs[0](states, action).q_value.mean()))
    assert found[0] < found[1]


def test_smoothing_of_several_processes_is_one_draw(
    algo: ExpertTD3BC, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps its rows of what one process draws for the joined batch."""
    impl, batch = impl_of(algo), mini_batch(8)
    halves = [
        dataclasses.replace(batch, next_observations=part)
        for part in batch.next_observations.split(4)
    ]
    torch.manual_seed(3)
    whole = impl.compute_target(batch)
    for module in (td3bc, parallel):
        monkeypatch.setattr(module, "world_size", lambda: 2)
    for part, half in enumerate(halves):
        monkeypatch.setattr(parallel, "rank", lambda part=part: part)
        torch.manual_seed(3)
        found = impl.compute_target(half)
        torch.testing.assert_close(found, whole[4 * part : 4 * part + 4])
