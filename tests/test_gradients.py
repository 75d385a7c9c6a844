"""Every loss against finite differences of itself in parameter space, in double precision; and
what changes how losses and gradients are computed: checkpointing and mixed precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from learning_fixtures import TINY, market_states, shake
from markets import small_market
from stable_baselines3.common import policies as sb3_policies
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.precision import Precision
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.losses import conservative_penalty, log_uniform_density
from finflow_sb3.nets.stacked import StackedLinear

F64, CPU = torch.float64, torch.device("cpu")
ROWS = 8
STEP = 3e-8  # longer ones cross kinks, shorter ones round
DIRECTIONS = 4
POLICIES = ["mlp", "flat", "market", "flat-full", "market-full"]
FLAT = {name: size for name, size in TINY.items() if name != "token_hidden"}


@pytest.fixture(autouse=True)
def double_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 casts observations to single before the networks; double ones are let through."""
    cast = sb3_policies.preprocess_obs

    def keep(obs: Any, *args: Any, **kwargs: Any) -> Any:
        return obs if obs.dtype == F64 else cast(obs, *args, **kwargs)

    monkeypatch.setattr(sb3_policies, "preprocess_obs", keep)


def single_model(kind: str, **kwargs: Any) -> CQSAC:
    """A tiny model away from its start at zero."""
    name, _, full = kind.partition("-")
    env: Any = gym.make("Pendulum-v1")
    sizes: dict[str, Any] = dict(FLAT)
    if name == "market":
        env, sizes = PortfolioVecEnv(small_market(), 2, seed=0, episode_length=20), dict(TINY)
    elif name == "images":
        env = FakeImageEnv(2, 36, 36, n_channels=1, discrete=False)
        sizes = {"net_arch": [8], "n_quantiles": 5}
        sizes["features_extractor_kwargs"] = {"features_dim": 8}
    elif name == "mlp":
        sizes = {"net_arch": [8, 8], "n_quantiles": 5, "activation_fn": torch.nn.Tanh}
    if full:
        sizes["mixture"] = "full"
    if kwargs.get("cal_ql"):
        sizes["with_value"] = True
    policy = {"mlp": "MlpPolicy", "images": "CnnPolicy"}.get(name, "MultiExpertPolicy")
    model = CQSAC(policy, env, policy_kwargs=sizes, buffer_size=100, seed=0, device="cpu", **kwargs)
    shake(model.policy)
    model.set_logger(configure(None, []))
    return model


def model_of(kind: str, **kwargs: Any) -> CQSAC:
    """The same in double precision."""
    model = single_model(kind, **kwargs)
    model.policy.double()
    model.risk_weights = model.risk_weights.double()
    model.quantile_weights = model.quantile_weights.double()
    return model


def in_double(draws: Any) -> Any:
    """Random numbers of an update, cast."""
    if isinstance(draws, tuple):
        return type(draws)(*map(in_double, draws))
    return None if draws is None else draws.double()


def batch_for(model: CQSAC) -> ReplayBufferSamples:
    """Random transitions with targets near and far from what the critics say."""
    torch.manual_seed(1)
    shape = model.observation_space.shape
    states = torch.rand(2 * ROWS, *shape, dtype=F64)
    if getattr(model.policy, "layout", None) is not None:
        states = market_states(small_market(), 2 * ROWS).double()
    actions = torch.rand(ROWS, *model.action_space.shape, dtype=F64) * 2.0 - 1.0
    rewards = torch.randn(ROWS, 1, dtype=F64) * 2.0
    dones = (torch.arange(ROWS)[:, None] == 2).double()
    return ReplayBufferSamples(states[:ROWS], actions, states[ROWS:], dones, rewards)


def check_gradient(loss: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]) -> None:
    """The derivative along random directions in parameter space, against central differences.

    A step may cross a kink of ReLU, of a maximum: one direction of four may be off.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    value = loss()
    assert value.dtype == F64, "something in the loss is in single precision"
    value.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    close, sizes = 0, []
    for i in range(DIRECTIONS):
        generator = torch.Generator().manual_seed(i)
        along = [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]
        slope = sum(float((g * a).sum()) for g, a in zip(gradients, along, strict=True))
        sizes.append(abs(slope))
        found = (at(loss, parameters, along, STEP) - at(loss, parameters, along, -STEP)) / (
            2.0 * STEP
        )
        close += slope == pytest.approx(found, rel=1e-5, abs=1e-6)
    assert close >= DIRECTIONS - 1, f"{close} of {DIRECTIONS} directions agree"
    assert max(sizes) > 1e-3, "a loss that does not move proves nothing"


@torch.no_grad()
def at(
    loss: Callable[[], torch.Tensor],
    parameters: list[torch.Tensor],
    along: list[torch.Tensor],
    step: float,
) -> float:
    """The loss at `step` along a direction."""
    before = [p.clone() for p in parameters]
    for parameter, direction in zip(parameters, along, strict=True):
        parameter.add_(step * direction)
    value = float(loss())
    for parameter, saved in zip(parameters, before, strict=True):
        parameter.copy_(saved)
    return value


# ------------------------------------------------------------------- critics


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, id="td"),
        pytest.param({"cql_alpha": 3.0}, id="cql"),
        pytest.param({"cql_alpha": 3.0, "cql_temperature": 2.0}, id="cql-at-2"),
        pytest.param({"cql_alpha": 3.0, "cql_batch_size": 3}, id="cql-on-a-part"),
        pytest.param({"top_quantiles_to_drop_per_net": 0, "backup_entropy": False}, id="all-kept"),
    ],
)
def test_critic_loss(kind: str, kwargs: dict[str, Any]) -> None:
    model = model_of(kind, **kwargs)
    batch = batch_for(model)
    alpha = torch.tensor(0.3, dtype=F64)
    target = model._target_quantiles(batch, alpha, in_double(model._draws(ROWS, 1)))
    assert target.dtype == F64 and not target.requires_grad
    cql_alpha = model._cql_alpha_now()
    draws = None if cql_alpha is None else in_double(model._conservative_draws(batch))

    def loss() -> torch.Tensor:
        return model._critic_loss(batch, target, cql_alpha, draws).total

    check_gradient(loss, model.critic.parameters())
    for other in (model.actor, model.critic_target):
        assert all(p.grad is None for p in other.parameters())


def test_critic_loss_with_the_calibrated_floor() -> None:
    """Max(Q, V_ref) on policy samples: half of them over the floor, half of them under it."""
    model = model_of("market", cql_alpha=3.0, cal_ql=True)
    batch = batch_for(model)
    draws = in_double(model._conservative_draws(batch))
    target = model._target_quantiles(batch, torch.tensor(0.3), in_double(model._draws(ROWS, 1)))
    with torch.no_grad():
        q = model.critic(batch.observations, batch.actions).mean(dim=(1, 2))
        floor = model.policy.reference_value(batch.observations)[:, 0]
        model.policy.reference_value.head.bias += (q - floor).median()

    def loss() -> torch.Tensor:
        return model._critic_loss(batch, target, torch.tensor(3.0, dtype=F64), draws).total

    check_gradient(loss, model.critic.parameters())
    assert all(p.grad is None for p in model.policy.reference_value.parameters())


# ------------------------------------------------------------------- actor


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize(
    "kwargs",
    [
        pytest.param({}, id="plain"),
        pytest.param({"risk_measure": "cvar:0.3"}, id="cvar"),
        pytest.param({"risk_measure": "wang:0.75"}, id="wang"),
        pytest.param({"balance_coef": 2.0}, id="balance"),
        pytest.param({"prior_coef": 2.0}, id="prior"),
    ],
)
def test_actor_loss(kind: str, kwargs: dict[str, Any]) -> None:
    model = model_of(kind, **kwargs)
    states = batch_for(model).observations
    alpha = torch.tensor(0.3, dtype=F64)
    shape = ROWS, model.policy.n_components, model.action_space.shape[0]
    normal = torch.randn(*shape, dtype=F64)

    def loss() -> torch.Tensor:
        return model._actor_loss(states, model._act(states, normal), alpha).total

    check_gradient(loss, model.actor.parameters())


@pytest.mark.parametrize("kind", ["mlp", "market", "market-full"])
@pytest.mark.parametrize("part", [None, 3])
def test_observations_that_nets_share_give_the_same_losses(kind: str, part: int | None) -> None:
    """An update takes observations apart once for all networks that see them."""
    model = model_of(kind, cql_alpha=2.0, cql_batch_size=part)
    plain = batch_for(model)
    alpha = torch.tensor(0.3, dtype=F64)
    shape = ROWS, model.policy.n_components, model.action_space.shape[0]
    normal = torch.randn(*shape, dtype=F64)
    draws = in_double(model._conservative_draws(plain)), in_double(model._draws(ROWS, 1))
    found = []
    for batch in (plain, model._prepared(plain)):
        target = model._target_quantiles(batch, alpha, draws[1])
        critic = model._critic_loss(batch, target, alpha, draws[0]).total
        now = model._act(batch.observations, normal)
        found.append([critic, model._actor_loss(batch.observations, now, alpha).total])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------- numbers that are learned


@pytest.mark.parametrize("kind", ["mlp", "market", "market-full"])
def test_temperature_step(kind: str) -> None:
    """J(α) = log α·(H − H*), SB3's loss: the step is down its slope, the distance H − H*."""
    model = model_of(kind, learning_rate=1e-2)
    model.target_entropy, model._logs = -1.5, {}
    states = batch_for(model).observations
    shape = ROWS, model.policy.n_components, model.action_space.shape[0]
    now = model._act(states, torch.randn(*shape, dtype=F64))
    entropy = now.expected(-now.log_prob).detach()
    before = model.log_ent_coef.detach().clone()
    by_autograd = model.log_ent_coef.detach().clone().requires_grad_()
    loss = -(by_autograd * (-entropy + model.target_entropy)).mean()
    loss.backward()
    model._update_temperature(entropy.to(before.dtype))
    torch.testing.assert_close(model.log_ent_coef.grad, by_autograd.grad.float())
    moved = model.log_ent_coef.detach() - before
    assert float(moved) == pytest.approx(-1e-2 * float(by_autograd.grad.sign()), rel=1e-4)
    expected = float(before) * (float(entropy.mean()) + 1.5)
    assert float(model._logs["ent_coef_loss"]) == pytest.approx(expected, abs=1e-5)
    assert all(p.grad is None for p in model.actor.parameters())


@pytest.mark.parametrize("penalty", [0.2, 4.0])
def test_multiplier_loss(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minus α·(penalty − gap) in log α: up where the penalty is over the gap, else down."""
    model = model_of("mlp", cql_alpha=2.0, cql_target_action_gap=1.0)
    assert model.log_cql_alpha is not None
    model.log_cql_alpha = model.log_cql_alpha.detach().double().requires_grad_()
    taken: list[torch.Tensor] = []
    monkeypatch.setattr(model, "_descend", lambda loss, _: taken.append(loss))

    def loss() -> torch.Tensor:
        model._update_multiplier(torch.tensor(penalty, dtype=F64))
        return taken[-1]

    check_gradient(loss, [model.log_cql_alpha])
    assert float(model.log_cql_alpha.grad) == pytest.approx(-2.0 * (penalty - 1.0), rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 4, 50])
@pytest.mark.parametrize("size", [1, 3])
def test_penalty_of_a_constant_q(count: int, size: int, temperature: float) -> None:
    """Uniform samples of a constant Q: T·log ∫ da = T·A·log 2, however many; −log M is in it."""
    q, density = torch.full((2, 5, count), 7.0), torch.full((5, count), log_uniform_density(size))
    found = conservative_penalty(q, density, torch.full((2, 5), 7.0), temperature)
    assert float(found) == pytest.approx(temperature * size * math.log(2.0), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 6])
def test_the_models_penalty_of_a_constant_q(
    temperature: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a critic that says 3 everywhere and a policy as wide as the box: T·A·log 2."""
    model = single_model("market", cql_n_actions=count, cql_temperature=temperature)
    with torch.no_grad():
        model.critic.head.weight.zero_()
        model.critic.head.bias.fill_(3.0)
    size = model.action_space.shape[0]

    def uniform(observations: Any, wanted: int, _: Any) -> tuple[torch.Tensor, torch.Tensor]:
        actions = torch.rand(len(observations), wanted, size) * 2.0 - 1.0
        return actions, torch.full(actions.shape[:2], -size * math.log(2.0))

    monkeypatch.setattr(model, "_candidates", uniform)
    batch = batch_for(model)
    batch = type(batch)(*(None if x is None else x.float() for x in batch))
    data_q = model.critic(batch.observations, batch.actions).mean(dim=2).T
    found = model._conservative_penalty(batch, data_q, model._conservative_draws(batch))
    assert float(found.detach()) == pytest.approx(temperature * size * math.log(2.0), abs=1e-4)


# ------------------------------------------------------------------- checkpointing


class Outcome(NamedTuple):
    """Losses and gradients of an update, and bytes that were kept for the backward pass."""

    losses: list[float]
    gradients: list[torch.Tensor]
    kept: int


def outcome(model: CQSAC) -> Outcome:
    """Of critic and actor on one batch, without a step."""
    batch = batch_for(model)
    shape = ROWS, model.policy.n_components, model.action_space.shape[0]
    normal, alpha = torch.randn(*shape, dtype=F64), torch.tensor(0.3, dtype=F64)
    target = model._target_quantiles(batch, alpha, in_double(model._draws(ROWS, 1)))
    draws = in_double(model._conservative_draws(batch))
    owned = {p.data_ptr() for p in model.policy.parameters()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in owned:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        critic = model._critic_loss(batch, target, torch.tensor(2.0, dtype=F64), draws).total
        now = model._act(batch.observations, normal)
        actor = model._actor_loss(batch.observations, now, alpha).total
    size = sum(kept.values())
    critic.backward()
    gradients = [p.grad.clone() for p in model.critic.parameters() if p.grad is not None]
    actor.backward()
    gradients += [p.grad.clone() for p in model.actor.parameters() if p.grad is not None]
    return Outcome([critic.item(), actor.item()], gradients, size)


@pytest.mark.parametrize("kind", ["mlp", "images", "flat", "market", "market-full"])
def test_checkpointing_keeps_less_for_the_same_gradients(kind: str) -> None:
    plain, again = (
        outcome(model_of(kind, gradient_checkpointing=on, cql_alpha=2.0)) for on in (False, True)
    )
    assert again.losses == pytest.approx(plain.losses, rel=1e-12)
    assert len(plain.gradients) == len(again.gradients) > 4
    for one, other in zip(plain.gradients, again.gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    assert again.kept < 0.7 * plain.kept


@pytest.mark.parametrize("mode", ["off", "bf16"])
@pytest.mark.parametrize("kind", ["mlp", "images", "flat", "market", "market-full"])
def test_checkpointed_updates_are_the_plain_ones(kind: str, mode: str) -> None:
    """Through `train`: the critics' weights are frozen in the actor's loss alone."""
    weights = []
    buffer: Any = None
    for on in (False, True):
        model = single_model(kind, gradient_checkpointing=on, cql_alpha=1.0, mixed_precision=mode)
        if buffer is None:
            model.learning_starts = 10**9
            model.learn(20, log_interval=10**9)
            buffer = model.replay_buffer
        model.replay_buffer = buffer
        model.set_logger(configure(None, []))
        torch.manual_seed(0)
        np.random.seed(0)
        model.train(2, batch_size=16)
        weights.append(list(model.policy.parameters()))
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


def test_checkpointing_repeats_the_dropout_of_the_forward_pass() -> None:
    """Two passes with different masks would give a gradient of neither."""
    gradients = []
    for on in (False, True):
        model = model_of("mlp", gradient_checkpointing=on)
        for module in (*model.critic.encoder.after,):
            module.dropout = 0.5
        model.policy.set_training_mode(True)
        batch = batch_for(model)
        torch.manual_seed(3)
        model.critic(batch.observations, batch.actions).square().sum().backward()
        gradients.append([p.grad for p in model.critic.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)


# ------------------------------------------------------------------- mixed precision


def trained(kind: str, mode: str) -> tuple[CQSAC, list[torch.dtype], dict[str, float]]:
    """A model after one update, types of what its hidden layers gave out, and its logs."""
    model = single_model(kind, mixed_precision=mode, cql_alpha=1.0, learning_starts=10**9)
    model.learn(40, log_interval=10**9)
    model.set_logger(configure(None, []))
    seen: list[torch.dtype] = []
    for module in model.policy.modules():
        if isinstance(module, StackedLinear | nn.Linear):
            module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    torch.manual_seed(0)
    np.random.seed(0)
    model.train(1, batch_size=64)
    return model, seen, dict(model.logger.name_to_value)


def gradient_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", ["mlp", "market", "market-full"])
def test_bf16_is_inside_and_single_outside(kind: str) -> None:
    exact, plain, expected = trained(kind, "off")
    model, seen, found = trained(kind, "bf16")
    assert set(plain) == {torch.float32} and set(seen) == {torch.bfloat16}
    for parameter in model.policy.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    assert set(found) == set(expected)
    for name in ("critic_loss", "actor_loss", "cql_penalty", "q_mean"):
        key = f"train/{name}"
        assert found[key] == pytest.approx(expected[key], rel=0.03, abs=0.03), name
    assert found["train/critic_loss"] != expected["train/critic_loss"], "16 bits round"
    for part in ("actor", "critic"):
        one, other = (gradient_of(getattr(m.policy, part)) for m in (exact, model))
        assert (one - other).norm() < 0.2 * one.norm(), f"{part}: another gradient"
    assert exact.precision.dtype is torch.bfloat16 and not exact.precision.enabled


def test_auto_on_a_cpu_is_bf16() -> None:
    auto = Precision("auto", CPU)
    assert auto.enabled and auto.dtype is torch.bfloat16 and auto.scalers is None
    assert not Precision("off", CPU).enabled


@pytest.mark.parametrize(
    ("mode", "message"),
    [("fp16", "fp16 needs CUDA; use bf16"), ("half", "'half' is not one of off, auto, bf16, fp16")],
)
def test_precision_that_cannot_be_is_refused(mode: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"mixed_precision: {message}") as caught:
        single_model("mlp", mixed_precision=mode)
    assert "\n" not in str(caught.value)


def scaled() -> Precision:
    """Precision as with fp16, its scalers on the CPU."""
    precision = Precision("off", CPU)
    precision.scalers = {}
    return precision


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_steps_are_the_plain_ones_and_overflow_is_skipped(fused: bool) -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    other = nn.Parameter(torch.tensor([1.0]))
    first, second = (torch.optim.Adam([p], lr=0.1, fused=fused) for p in (weight, other))
    precision = scaled()
    precision.backward((weight * torch.tensor([3.0, -5.0])).sum(), first)
    assert weight.grad is not None and weight.grad.tolist() == [3.0 * 2**16, -5.0 * 2**16]
    precision.step(first)
    assert weight.tolist() == pytest.approx([0.9, -1.9], abs=1e-6), "Adam's first step is lr"
    weight.grad = None
    precision.backward((weight * torch.tensor([math.inf, 1.0])).sum(), first)
    precision.step(first)
    assert weight.tolist() == pytest.approx([0.9, -1.9], abs=1e-6), "the step was not skipped"
    precision.backward(other.sum(), second)
    precision.step(second)
    scales = [state["scale"] for state in precision.state((first, second))]
    assert scales == [2.0**15, 2.0**16], "the scale halves, and only of the loss that overflowed"


def test_scales_come_back() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([weight], lr=0.1)]
    precision, fresh = scaled(), scaled()
    precision.backward((weight * math.inf).sum(), optimizers[1])
    precision.step(optimizers[1])
    states = precision.state(optimizers)
    fresh.restore(optimizers, states)
    assert fresh.state(optimizers) == states
    assert [state["scale"] for state in states] == [2.0**16, 2.0**15]
    plain = Precision("bf16", CPU)
    assert plain.state(optimizers) == []
    plain.restore(optimizers, [])
