"""Networks: what they may depend on, and what they must not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_fixtures import layout_of, random_box, random_states, shake
from torch import nn

from finflow_sb3.errors import ConfigError
from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.nets.critics import FlatEncoder, SetEncoder, ValueEncoder
from finflow_sb3.nets.distributions import log_prob, sample
from finflow_sb3.nets.experts import FlatExperts, LayoutExperts
from finflow_sb3.nets.stacked import StackedLinear
from finflow_sb3.network_sizes import NetworkSizes

LAYOUTS = [
    pytest.param(layout_of(6, base, lagged), id=f"{base}{'-lagged' if lagged else ''}")
    for base in ("anchors", "drift", "none")
    for lagged in (False, True)
]


def make_policy(layout: ObservationLayout) -> LayoutExperts:
    torch.manual_seed(0)
    policy = LayoutExperts(layout, expert_hidden=8, gate_hidden=8)
    shake(policy)
    return policy


def permuted_states(layout: ObservationLayout, obs: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The same states with the assets in another order; cash stays last."""
    out, n, cut = obs.clone(), layout.n_assets, layout.slices
    for name, features in layout.groups:
        block = obs[:, cut[name]].reshape(len(obs), n, len(features))
        out[:, cut[name]] = block[:, order].reshape(len(obs), -1)
    anchors = obs[:, cut["anchor_weights"]].reshape(len(obs), -1, n)
    out[:, cut["anchor_weights"]] = anchors[:, :, order].reshape(len(obs), -1)
    for name in ("weights", "pending"):
        if name in cut:
            out[:, cut[name]] = obs[:, cut[name]][:, [*order, n]]
    return out


def permuted_actions(
    layout: ObservationLayout, actions: torch.Tensor, order: list[int]
) -> torch.Tensor:
    """The same actions for the assets in another order; gates and cash stay where they are."""
    n = layout.n_assets
    gates = layout.action_size - n - 1
    index = [*range(gates), *(gates + i for i in order), gates + n]
    return actions[..., index]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=10)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
def test_policy_follows_any_order_of_assets(
    layout: ObservationLayout, order: list[int], seed: int
) -> None:
    policy, obs = make_policy(layout), random_states(layout, 8, seed)
    plain, moved = policy(obs), policy(permuted_states(layout, obs, order))
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(moved.mean, permuted_actions(layout, plain.mean, order), **close)
    torch.testing.assert_close(
        moved.log_std, permuted_actions(layout, plain.log_std, order), **close
    )
    torch.testing.assert_close(moved.gates, plain.gates, **close)
    # The test can only fail if assets are told apart at all.
    assert plain.mean.std(dim=1).min() > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=10)
@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
def test_critics_and_value_do_not_see_the_order_of_assets(
    layout: ObservationLayout, order: list[int], seed: int
) -> None:
    torch.manual_seed(0)
    critic = SetEncoder(2, layout, token_hidden=6, hidden=(8, 8))
    value = ValueEncoder(SetEncoder(1, layout, token_hidden=6, hidden=(8,)), layout.action_size)
    obs, actions = random_states(layout, 8, seed), random_box(layout, 16, seed).view(8, 2, -1)
    other = permuted_states(layout, obs, order)
    torch.testing.assert_close(
        critic(obs, actions),
        critic(other, permuted_actions(layout, actions, order)),
        rtol=1e-5,
        atol=1e-6,
    )
    torch.testing.assert_close(value(obs), value(other), rtol=1e-5, atol=1e-6)


def test_critics_see_which_asset_is_tilted() -> None:
    layout = layout_of(6)
    torch.manual_seed(0)
    critic = SetEncoder(1, layout, token_hidden=6, hidden=(8, 8))
    obs, actions = random_states(layout, 4), random_box(layout, 4)[:, None]
    swapped = permuted_actions(layout, actions, [1, 0, 2, 3, 4, 5])
    assert not torch.allclose(critic(obs, actions), critic(obs, swapped), atol=1e-4)


@pytest.mark.parametrize("make", [LayoutExperts, lambda layout: SetEncoder(2, layout)])
def test_parameters_do_not_depend_on_the_number_of_assets(make) -> None:
    small, large = make(layout_of(20)), make(layout_of(500))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (small, large)]
    assert shapes[0] == shapes[1]
    large.load_state_dict(small.state_dict(), strict=True)
    obs = random_states(layout_of(500), 2)
    out = (
        large(obs)
        if isinstance(large, LayoutExperts)
        else large(obs, random_box(layout_of(500), 2)[:, None])
    )
    assert torch.isfinite(out[0]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_expert_scores_read_their_own_group_only(layout: ObservationLayout) -> None:
    policy = make_policy(layout)
    obs = random_states(layout, 16).requires_grad_()
    scores = policy._scores(*policy.tokens.view(obs)[:2])
    for k, (own, _) in enumerate(layout.groups):
        (gradient,) = torch.autograd.grad(scores[k].sum(), obs, retain_graph=True)
        for name, _ in layout.groups:
            part = gradient[:, layout.slices[name]]
            if name == own:
                assert part.abs().max() > 1e-6, name
            else:
                assert torch.equal(part, torch.zeros_like(part)), (own, name)
        for name in ("market", "weights", "anchor_weights"):
            assert gradient[:, layout.slices[name]].abs().max() > 1e-7, name


def test_an_asset_is_scored_by_its_own_features() -> None:
    """The tilt score of one asset does not move with the features of another."""
    layout = layout_of(6)
    policy = make_policy(layout)
    obs = random_states(layout, 4).requires_grad_()
    scores = policy._scores(*policy.tokens.view(obs)[:2])
    (gradient,) = torch.autograd.grad(scores[2, :, 1].sum(), obs)
    name, features = layout.groups[2]
    by_asset = gradient[:, layout.slices[name]].reshape(4, 6, len(features)).abs().sum(dim=(0, 2))
    assert by_asset[1] > 0
    assert by_asset[[0, 2, 3, 4, 5]].sum() == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_untrained_policy_is_the_zero_action(layout: ObservationLayout) -> None:
    out = LayoutExperts(layout)(random_states(layout, 50))
    assert out.mean.shape == (50, layout.action_size)
    assert torch.equal(out.mean[:, -layout.n_assets - 1 :], torch.zeros(50, layout.n_assets + 1))
    assert torch.equal(out.mean, torch.zeros_like(out.mean))
    torch.testing.assert_close(out.gates, torch.full((50, 5), 0.2))
    # σ starts near e⁻¹, not at one of its bounds.
    assert (out.log_std + 1.0).abs().max() < 0.2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mean_is_the_gated_sum_of_scores(layout: ObservationLayout) -> None:
    """Tilts are Σ_k g_k·μ_k, gates softmax(κ_g·tanh(logits)), as the environment weighs anchors."""
    policy, obs = make_policy(layout), random_states(layout, 8)
    out = policy(obs)
    scores = policy._scores(*policy.tokens.view(obs)[:2])
    tilts = sum(out.gates[:, k, None] * scores[k, :, :, 0] for k in range(5))
    n_gates = layout.action_size - layout.n_assets - 1
    torch.testing.assert_close(out.mean[:, n_gates:], tilts)
    torch.testing.assert_close(out.gates.sum(dim=1), torch.ones(8))
    if n_gates:
        deterministic = torch.tanh(out.mean[:, :n_gates])
        torch.testing.assert_close(out.gates, torch.softmax(5.0 * deterministic, dim=1))


def test_flat_experts_mix_by_their_gate() -> None:
    torch.manual_seed(0)
    net = FlatExperts(3, 2, expert_hidden=4)
    out = net(torch.randn(7, 3))
    assert out.mean.shape == out.log_std.shape == (7, 2)
    torch.testing.assert_close(out.gates.sum(dim=1), torch.ones(7))


# ------------------------------------------------------------------- batched layers


def test_stacked_linear_is_several_linears() -> None:
    torch.manual_seed(0)
    stacked = StackedLinear(3, 4, 2)
    x = torch.randn(3, 5, 4)
    for i in range(3):
        linear = nn.Linear(4, 2)
        linear.weight.data = stacked.weight.data[i].T.clone()
        linear.bias.data = stacked.bias.data[i, 0].clone()
        torch.testing.assert_close(stacked(x)[i], linear(x[i]))


def test_stacked_linear_starts_as_torch_does() -> None:
    """Bounds of `nn.Linear`: ±1/√n_in for weights and bias."""
    torch.manual_seed(0)
    stacked, linear = StackedLinear(4, 16, 400), nn.Linear(16, 400)
    for mine, theirs in ((stacked.weight, linear.weight), (stacked.bias, linear.bias)):
        assert mine.abs().max() <= 0.25
        assert float(mine.detach().std()) == pytest.approx(float(theirs.detach().std()), rel=0.1)


@pytest.mark.parametrize("hidden", [(8, 8), (8,), ()])
def test_flat_encoder_equals_concatenation(hidden: tuple[int, ...]) -> None:
    """The first layer is split between observation and action: same as on [obs, action]."""
    torch.manual_seed(0)
    encoder = FlatEncoder(2, 4, 3, hidden)
    obs, actions = torch.randn(5, 4), torch.randn(5, 6, 3)
    both = torch.cat([obs[:, None].expand(-1, 6, -1), actions], dim=2).reshape(30, 7)
    expected = both.expand(2, -1, -1)
    for layer in encoder.layers:
        expected = torch.relu(layer(expected))
    torch.testing.assert_close(encoder(obs, actions), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_set_encoder_scores_actions_one_by_one(layout: ObservationLayout) -> None:
    """M actions at once are M calls with one action each, and C critics are C encoders."""
    torch.manual_seed(0)
    encoder = SetEncoder(2, layout, token_hidden=4, hidden=(6,))
    obs, actions = random_states(layout, 5), random_box(layout, 15).view(5, 3, -1)
    together = encoder(obs, actions).view(2, 5, 3, -1)
    for m in range(3):
        alone = encoder(obs, actions[:, m : m + 1]).view(2, 5, -1)
        torch.testing.assert_close(together[:, :, m], alone)
    for c in range(2):
        single = SetEncoder(1, layout, token_hidden=4, hidden=(6,))
        single.load_state_dict({k: v[c : c + 1] for k, v in encoder.state_dict().items()})
        torch.testing.assert_close(single(obs, actions)[0], together[c].reshape(15, -1))


# ------------------------------------------------------------------- the distribution


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -1.0), (0.7, -0.5), (-1.5, 0.0)])
def test_density_integrates_to_one(mean: float, log_std: float) -> None:
    # In u = artanh(a): da = (1 − a²) du keeps the corners of the box in sight.
    u = torch.linspace(-8.0, 8.0, 20_001, dtype=torch.float64)
    actions = torch.tanh(u)[:, None]
    shape = (len(u), 1)
    density = log_prob(
        torch.full(shape, mean, dtype=torch.float64),
        torch.full(shape, log_std, dtype=torch.float64),
        actions,
    ).exp()
    inside = u.abs() < 6.0  # beyond, SB3's ε of 1e-6 in the logarithm counts
    integral = torch.trapezoid((density * (1.0 - actions[:, 0] ** 2))[inside], u[inside])
    assert float(integral) == pytest.approx(1.0, abs=2e-3)


def test_log_prob_by_hand() -> None:
    """log N(0.5; 0.2, 1) − log(1 − tanh²(0.5) + 1e-6), twice."""
    u, mean = 0.5, 0.2
    one = -0.5 * (u - mean) ** 2 - 0.5 * math.log(2 * math.pi)
    one -= math.log(1.0 - math.tanh(u) ** 2 + 1e-6)
    action = torch.full((1, 2), math.tanh(u), dtype=torch.float64)
    zeros = torch.zeros(1, 2, dtype=torch.float64)
    assert float(log_prob(zeros + mean, zeros, action)) == pytest.approx(2 * one, abs=1e-9)


def test_samples_come_with_their_density() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(6, 3) * 0.5, torch.randn(6, 3) * 0.2 - 1.0
    actions, density = sample(mean[:, None], log_std[:, None], torch.randn(6, 50, 3))
    assert actions.shape == (6, 50, 3) and density.shape == (6, 50)
    for m in range(50):
        torch.testing.assert_close(
            density[:, m], log_prob(mean, log_std, actions[:, m]), rtol=1e-3, atol=1e-3
        )
    # They are samples of the Gaussian that was asked for.
    u = torch.atanh(actions)
    torch.testing.assert_close(u.mean(dim=1), mean, rtol=0, atol=0.35)


# ------------------------------------------------------------------- sizes


def test_sizes_refuse_unknown_keys() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown key 'expert_hiden'; did you mean 'expert_hidden'"
    ):
        NetworkSizes.from_kwargs({"expert_hiden": 4})


@pytest.mark.parametrize("bad", [{"n_quantiles": 0}, {"critic_hidden": (8, 0)}])
def test_sizes_refuse_nothing(bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        NetworkSizes(**bad)
