"""Mixtures: densities against integrals, samples against densities, and learning with them."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_fixtures import (
    TINY,
    artefact_of,
    market_states,
    random_box,
    random_states,
    shake,
    small_dataset,
)
from markets import small_market
from stable_baselines3.common.logger import configure
from test_nets import LAYOUTS, permuted_actions, permuted_states

from finflow_sb3.config import IQLSettings
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.seeding import policy_kwargs_for, seed
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.manifests import MANIFEST, write_manifest
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.distributions import (
    log_prob,
    mixture_log_prob,
    pick_components,
    sample_components,
    sample_mixture,
)
from finflow_sb3.nets.experts import FlatExperts, LayoutExperts
from finflow_sb3.nets.noise import Draws
from finflow_sb3.nets.policy import PolicyStep, act, policy_log_prob, sample_policy
from finflow_sb3.network_sizes import NetworkSizes
from finflow_sb3.pretrain.artefact import SEALED, read_artefact, write_artefact
from finflow_sb3.pretrain.iql import ExpertIQL, make_iql

F64 = torch.float64
FLAT = {name: size for name, size in TINY.items() if name != "token_hidden"}
MEANS = torch.tensor([[-1.0], [0.2], [0.8]], dtype=F64)
LOG_STDS = torch.tensor([[-0.7], [0.1], [-1.2]], dtype=F64)
LOGITS = torch.tensor([0.3, -0.5, 0.9], dtype=F64)


def repeated(rows: int, logits: torch.Tensor = LOGITS) -> tuple[torch.Tensor, ...]:
    """The mixture of three above for `rows` states: means, log σ [B, 3, 1], log w [B, 3]."""
    log_weights = torch.log_softmax(logits, dim=0)
    return (
        MEANS.expand(rows, -1, -1),
        LOG_STDS.expand(rows, -1, -1),
        log_weights.expand(rows, -1),
    )


def grid() -> torch.Tensor:
    """u = artanh(a), as far as SB3's ε of 1e-6 in the logarithm does not count."""
    return torch.linspace(-6.0, 6.0, 20_001, dtype=F64)


def integral(each: Any, logits: torch.Tensor = LOGITS) -> float:
    """∫ each(a)·π(a) da over the mixture, in u."""
    u = grid()
    actions = torch.tanh(u)[:, None]
    density = mixture_log_prob(*repeated(len(u), logits), actions).exp()
    slope = 1.0 - actions[:, 0] ** 2
    return float(torch.trapezoid(each(actions, logits) * density * slope, u))


# ------------------------------------------------------------------- densities


def test_full_density_integrates_to_one() -> None:
    assert integral(lambda a, _: torch.ones(len(a), dtype=F64)) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("mixture", ["soft", "full"])
@pytest.mark.parametrize("state", [0, 1, 2])
def test_density_of_the_experts_integrates_to_one(mixture: str, state: int) -> None:
    """Soft: one Gaussian of the gated mean and log σ. Full: the experts' own."""
    torch.manual_seed(0)
    net = FlatExperts(3, 1, expert_hidden=4, gate_hidden=4, mixture=mixture).double()
    shake(net)
    u = grid()
    obs = torch.randn(3, 3, dtype=F64)[state].expand(len(u), -1)
    actions = torch.tanh(u)[:, None]
    density = policy_log_prob(net(obs), actions).exp()
    found = torch.trapezoid(density * (1.0 - actions[:, 0] ** 2), u)
    assert float(found.detach()) == pytest.approx(1.0, abs=2e-3)


def test_density_by_hand() -> None:
    """¼·N(½; 0, 1) + ¾·N(½; 1, 2²) in u, over 1 − tanh²(½) + 1e-6."""
    means = torch.tensor([[[0.0], [1.0]]], dtype=F64)
    log_stds = torch.tensor([[[0.0], [math.log(2.0)]]], dtype=F64)
    log_weights = torch.tensor([[0.25, 0.75]], dtype=F64).log()
    found = mixture_log_prob(
        means, log_stds, log_weights, torch.tensor([[math.tanh(0.5)]]).double()
    )
    first = math.exp(-0.125) / math.sqrt(2 * math.pi)
    second = math.exp(-0.5 * 0.0625) / (2.0 * math.sqrt(2 * math.pi))
    slope = 1.0 - math.tanh(0.5) ** 2 + 1e-6
    assert float(found) == pytest.approx(math.log((0.25 * first + 0.75 * second) / slope), abs=1e-6)


@given(seed=st.integers(0, 1000), k=st.integers(1, 4), size=st.integers(1, 3))
def test_density_is_the_weighted_sum_of_densities(seed: int, k: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(5, k, size, generator=generator, dtype=F64)
    log_stds = torch.randn(5, k, size, generator=generator, dtype=F64) * 0.3
    weights = torch.softmax(torch.randn(5, k, generator=generator, dtype=F64), dim=1)
    actions = torch.rand(5, size, generator=generator, dtype=F64) * 1.8 - 0.9
    each = [log_prob(means[:, i], log_stds[:, i], actions).exp() for i in range(k)]
    expected = (torch.stack(each, dim=1) * weights).sum(dim=1).log()
    torch.testing.assert_close(mixture_log_prob(means, log_stds, weights.log(), actions), expected)


# ------------------------------------------------------------------- samples


def random_mixture(rows: int, k: int, size: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    means, log_stds = torch.randn(rows, k, size).double(), torch.randn(rows, k, size).double() * 0.3
    return means, log_stds - 0.5, torch.log_softmax(torch.randn(rows, k).double(), dim=1)


def test_samples_come_with_their_density() -> None:
    mixture = random_mixture(6, 3, 2)
    noise, uniform = torch.randn(6, 20, 2).double(), torch.rand(6, 20).double()
    actions, density = sample_mixture(*mixture, noise, uniform)
    assert actions.shape == (6, 20, 2) and density.shape == (6, 20)
    together, of_each = sample_components(*mixture, noise[:, :3])
    for m in range(20):
        torch.testing.assert_close(density[:, m], mixture_log_prob(*mixture, actions[:, m]))
    for k in range(3):
        torch.testing.assert_close(of_each[:, k], mixture_log_prob(*mixture, together[:, k]))
        expected = torch.tanh(mixture[0][:, k] + mixture[1][:, k].exp() * noise[:, k])
        torch.testing.assert_close(together[:, k], expected)


def test_a_sample_is_of_the_component_that_was_picked() -> None:
    """Without noise an action is tanh of a component's mean."""
    means, log_stds, log_weights = random_mixture(4, 3, 2)
    uniform = torch.rand(4, 30).double()
    actions, _ = sample_mixture(
        means, log_stds, log_weights, torch.zeros(4, 30, 2).double(), uniform
    )
    picked = pick_components(log_weights, uniform)
    assert set(picked.flatten().tolist()) == {0, 1, 2}
    for b in range(4):
        torch.testing.assert_close(actions[b], torch.tanh(means[b, picked[b]]))


def test_components_are_picked_as_often_as_they_weigh() -> None:
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.5, 0.5]], dtype=F64)
    uniform = (torch.arange(1000, dtype=F64) + 0.5).expand(2, -1) / 1000
    picked = pick_components(weights.log(), uniform)
    for b in range(2):
        share = torch.bincount(picked[b], minlength=3) / 1000
        assert share.tolist() == pytest.approx(weights[b].tolist(), abs=1.5e-3)


def test_edges_of_the_unit_interval_pick_a_component() -> None:
    below_one = 1.0 - torch.finfo(torch.float32).eps / 2
    uniform = torch.tensor([[0.0, below_one]])
    for weights in ([0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], [0.1] * 10):
        log_weights = torch.log(torch.tensor([weights]))
        assert pick_components(log_weights, uniform).tolist() == [[0, len(weights) - 1]]
    # A component without weight is never picked, at either end.
    nothing = torch.log(torch.tensor([[0.0, 1.0]]))
    assert pick_components(nothing, uniform).tolist() == [[1, 1]]
    # A sum that falls short of one by rounding leaves no gap behind the last component.
    short = torch.log(torch.tensor([[0.5, 0.4999]]))
    assert pick_components(short, uniform).tolist() == [[0, 1]]


# ------------------------------------------------------------------- expectations


def squared(actions: torch.Tensor, _: Any) -> torch.Tensor:
    return (actions[..., 0] - 0.3) ** 2


def log_pi(actions: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return mixture_log_prob(*repeated(len(actions), logits), actions)


def test_weighted_sum_and_sampling_estimate_one_expectation() -> None:
    rows = 40_000
    torch.manual_seed(0)
    mixture = repeated(rows)
    actions, density = sample_components(*mixture, torch.randn(rows, 3, 1, dtype=F64))
    step = PolicyStep(actions, density, mixture[2].exp(), None, None)
    drawn, drawn_density = sample_mixture(
        *mixture, torch.randn(rows, 1, 1, dtype=F64), torch.rand(rows, 1, dtype=F64)
    )
    for each, weighted, sampled in (
        (squared, squared(actions, None), squared(drawn, None)),
        (log_pi, density, drawn_density),
    ):
        exact = integral(each)
        spread = {}
        for name, found in (("weighted", step.expected(weighted)), ("sampled", sampled[:, 0])):
            error = float(found.std()) / math.sqrt(rows)
            assert float(found.mean()) == pytest.approx(exact, abs=4.0 * error + 1e-5), name
            spread[name] = float(found.std())
        assert spread["weighted"] < spread["sampled"], "strata have less variance than draws"


def midpoint_noise(rows: int) -> torch.Tensor:
    """Midpoints of the normal distribution as noise: means over rows are integrals."""
    u = (torch.arange(rows, dtype=F64) + 0.5) / rows
    return torch.special.ndtri(u)[:, None, None].expand(-1, 3, 1)


@pytest.mark.parametrize("each", [squared, log_pi], ids=["action", "entropy"])
def test_gradient_for_the_gate(each: Any) -> None:
    """Of E[h] for the gate's logits, against differences of the integral."""
    rows, step = 20_000, 1e-4
    logits = LOGITS.clone().requires_grad_()
    mixture = repeated(rows, logits)
    actions, density = sample_components(*mixture, midpoint_noise(rows))
    values = squared(actions, None) if each is squared else density
    policy = PolicyStep(actions, density, mixture[2].exp(), None, None)
    (found,) = torch.autograd.grad(policy.expected(values).mean(), logits)
    for k in range(3):
        move = step * torch.eye(3, dtype=F64)[k]
        rise = integral(each, LOGITS + move) - integral(each, LOGITS - move)
        assert float(found[k]) == pytest.approx(rise / (2 * step), abs=2e-4)
    assert found.abs().max() > 0.02


def test_expected_by_hand() -> None:
    actions = torch.zeros(2, 2, 1)
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    values = torch.tensor([[4.0, 8.0], [3.0, 100.0]])
    full = PolicyStep(actions, torch.zeros(2, 2), weights, None, None)
    assert full.expected(values).tolist() == [7.0, 3.0]
    single = PolicyStep(actions[:, :1], torch.zeros(2, 1), None, None, None)
    assert single.expected(values[:, :1]).tolist() == [4.0, 3.0]


# ------------------------------------------------------------------- networks


def both(layout: ObservationLayout | None) -> tuple[Any, Any]:
    """Soft and full experts from one seed."""
    nets = []
    for mixture in ("soft", "full"):
        torch.manual_seed(0)
        net: Any = FlatExperts(3, 2, expert_hidden=4, mixture=mixture)
        if layout is not None:
            net = LayoutExperts(layout, 4, 6, mixture=mixture)
        shake(net)
        nets.append(net)
    return nets[0], nets[1]


@pytest.mark.parametrize("layout", [pytest.param(None, id="flat"), *LAYOUTS])
def test_full_has_the_parameters_and_the_mean_of_soft(layout: ObservationLayout | None) -> None:
    soft, full = both(layout)
    states = torch.randn(8, 3) if layout is None else random_states(layout, 8)
    assert list(soft.state_dict()) == list(full.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(soft.parameters(), full.parameters(), strict=True))
    plain, out = soft(states), full(states)
    assert plain.components is None
    for name in ("mean", "log_std", "gates"):
        assert torch.equal(getattr(plain, name), getattr(out, name)), name
    means, log_stds, log_weights = out.components
    assert means.shape == log_stds.shape == (8, 5, plain.mean.shape[1])
    weights = log_weights.exp()
    torch.testing.assert_close(weights, out.gates)
    torch.testing.assert_close((weights[:, :, None] * means).sum(dim=1), out.mean)
    assert means[:, :, -1].std(dim=1).min() > 1e-3, "components would be one Gaussian"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_components_share_the_gates_part_of_the_action(layout: ObservationLayout) -> None:
    _, full = both(layout)
    out = full(random_states(layout, 4))
    gates = layout.action_size - layout.n_assets - 1
    assert gates == (5 if layout.action_base == "anchors" else 0)
    for part, whole in ((out.components.means, out.mean), (out.components.log_stds, out.log_std)):
        for k in range(5):
            assert torch.equal(part[:, k, :gates], whole[:, :gates])


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=5)
@given(order=st.permutations(range(6)))
def test_components_follow_any_order_of_assets(layout: ObservationLayout, order: list[int]) -> None:
    _, full = both(layout)
    states = random_states(layout, 4)
    plain, moved = full(states).components, full(permuted_states(layout, states, order)).components
    for name in ("means", "log_stds"):
        expected = permuted_actions(layout, getattr(plain, name), order)
        torch.testing.assert_close(getattr(moved, name), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved.log_weights, plain.log_weights, rtol=1e-5, atol=1e-6)


def test_act_takes_one_action_of_every_component() -> None:
    _, full = both(None)
    out = full(torch.randn(6, 3))
    normal = torch.randn(6, 5, 2)
    step = act(out, normal)
    assert step.actions.shape == (6, 5, 2) and step.weights is not None
    torch.testing.assert_close(step.weights, out.gates)
    torch.testing.assert_close(
        step.actions, torch.tanh(out.components.means + out.components.log_stds.exp() * normal)
    )
    assert torch.equal(step.mean, out.mean)


# ------------------------------------------------------------------- learning


def model_of(env: str, sizes: dict[str, Any], **kwargs: Any) -> CQSAC:
    made: Any = PortfolioVecEnv(small_market(), 2, seed=0, episode_length=20)
    model = CQSAC(
        "MultiExpertPolicy",
        gym.make("Pendulum-v1") if env == "pendulum" else made,
        policy_kwargs=sizes,
        batch_size=16,
        buffer_size=500,
        learning_starts=20,
        seed=0,
        device="cpu",
        **kwargs,
    )
    model.set_logger(configure(None, []))
    return model


@pytest.mark.parametrize("env", ["pendulum", "market"])
@pytest.mark.parametrize("kwargs", [{}, {"cql_alpha": 1.0, "balance_coef": 0.1, "prior_coef": 0.1}])
def test_full_mixture_learns(env: str, kwargs: dict[str, Any]) -> None:
    sizes = {**(FLAT if env == "pendulum" else TINY), "mixture": "full"}
    model = model_of(env, sizes, learning_rate=1e-2, **kwargs)
    assert model.policy.n_components == 5
    before = {name: p.clone() for name, p in model.actor.named_parameters()}
    model.learn(40, log_interval=10**9)
    assert model._n_updates > 5
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
    for name, parameter in model.actor.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} was not moved"
    found = model.logger.name_to_value
    assert all(math.isfinite(found[f"train/{n}"]) for n in ("actor_loss", "critic_loss", "entropy"))


def test_deterministic_action_is_tanh_of_the_mean() -> None:
    model = model_of("market", {**TINY, "mixture": "full"})
    shake(model.actor)
    states = market_states(small_market(), 20)
    found, _ = model.predict(states.numpy(), deterministic=True)
    with torch.no_grad():
        expected = torch.tanh(model.policy.distribution(states).mean)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-6)
    again, _ = model.predict(states.numpy(), deterministic=False)
    assert np.abs(again - found).max() > 0.05, "exploration draws from the mixture"


def test_full_is_kept_by_save_and_load(tmp_path: Any) -> None:
    model = model_of("market", {**TINY, "mixture": "full"})
    shake(model.actor)
    model.save(tmp_path / "model.zip")
    loaded = CQSAC.load(tmp_path / "model.zip", device="cpu")
    assert loaded.policy.n_components == 5
    states, actions = market_states(small_market(), 9), random_box(small_market().layout, 9)
    with torch.no_grad():
        pair = [policy_log_prob(m.policy.distribution(states), actions) for m in (model, loaded)]
    assert torch.equal(*pair)


def test_an_unknown_mixture_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixture: 'hard' is not known; known: soft, full"):
        model_of("pendulum", {**FLAT, "mixture": "hard"})


# ------------------------------------------------------------------- pretraining


def pretrained(**form: Any) -> ExpertIQL:
    """IQL with networks of another form, after some updates on the small dataset."""
    kwargs = {**TINY, **form}
    torch.manual_seed(0)
    rates = {"actor_lr": 3e-3, "critic_lr": 3e-3, "tau": 0.1}
    algo = make_iql(
        IQLSettings(batch_size=64, policy_kwargs=kwargs, **rates), small_market().layout
    )
    data = small_dataset()
    for start in range(15):
        algo.update_on(data.gather(torch.arange(64 * start, 64 * (start + 1)) % len(data)))
    return algo


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({"mixture": "full"}, id="full"),
        pytest.param({"layer_norm": True}, id="layer-norm"),
        pytest.param({"mixture": "full", "layer_norm": True, "dropout": 0.2}, id="all"),
    ],
)
def test_pretrained_networks_of_any_form_seed_exactly(form: dict[str, Any], tmp_path: Any) -> None:
    algo = pretrained(**form)
    write_artefact(artefact_of(algo, small_market()), tmp_path)
    artefact = read_artefact(tmp_path)
    for name, value in form.items():
        assert getattr(artefact.sizes, name) == value
    model = model_of("market", policy_kwargs_for(artefact))
    seed(model, artefact)
    states = market_states(small_market(), 200, seed=7)
    actions = random_box(small_market().layout, 200, seed=7)
    modules: Any = algo.modules
    for module in (modules.policy, modules.q_funcs, modules.value_func):
        module.eval()
    model.policy.set_training_mode(False)
    model.policy.reference_value.eval()
    exact = {"rtol": 0.0, "atol": 1e-5}
    with torch.no_grad():
        theirs, mine = modules.policy.experts(states), model.policy.distribution(states)
        densities = [policy_log_prob(out, actions) for out in (mine, theirs)]
        torch.testing.assert_close(densities[0], densities[1], rtol=1e-6, atol=1e-5)
        draws = Draws(torch.randn(200, 1, actions.shape[1]), torch.rand(200, 1))
        found, expected = (sample_policy(out, 1, draws) for out in (mine, theirs))
        torch.testing.assert_close(found[0], expected[0], **exact)
        quantiles = model.critic(states, actions)
        for c, q_function in enumerate(modules.q_funcs):
            torch.testing.assert_close(
                quantiles[:, c], q_function(states, actions).quantiles, **exact
            )
        torch.testing.assert_close(
            model.policy.reference_value(states), modules.value_func(states), **exact
        )
    assert theirs.mean.abs().max() > 1e-2, "an untrained policy would prove nothing"
    model.learn(30, log_interval=10**9)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_full_pretraining_climbs_the_mixtures_own_density() -> None:
    """IQL's actor loss has log π of the mixture, not of the soft Gaussian."""
    algo = pretrained(mixture="full")
    impl, policy = algo._impl, algo.modules.policy
    impl.balance_coef = impl.prior_coef = 0.0
    batch = small_dataset().gather(torch.arange(64))
    ready: Any = type("Batch", (), {"observations": batch.observations, "actions": batch.actions})
    impl.compute_value_loss(ready)
    out = policy.experts(batch.observations)
    with torch.no_grad():
        weight = impl._compute_weight(ready)[:, 0]
        expected = -(weight * mixture_log_prob(*out.components, batch.actions)).mean()
        soft = -(weight * log_prob(out.mean, out.log_std, batch.actions)).mean()
        found = impl.compute_actor_loss(ready, policy(batch.observations)).actor_loss
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(expected, soft, atol=1e-4)


def test_artefacts_from_before_these_sizes_are_read(tmp_path: Any) -> None:
    write_artefact(artefact_of(pretrained(), small_market()), tmp_path)
    path = tmp_path / "artefact.json"
    head = json.loads(path.read_text())
    for name in ("mixture", "dropout", "layer_norm"):
        head["sizes"].pop(name)
    path.write_text(json.dumps(head))
    (tmp_path / MANIFEST).unlink()
    write_manifest(tmp_path, SEALED)
    artefact = read_artefact(tmp_path)
    assert artefact.sizes == NetworkSizes(**TINY)
    assert (artefact.sizes.mixture, artefact.sizes.dropout) == ("soft", 0.0)
    assert artefact.sizes.layer_norm is False
    seed(model_of("market", policy_kwargs_for(artefact)), artefact)
