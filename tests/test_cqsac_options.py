"""CQSAC's options: each does what it says, in every policy that has it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from learning_fixtures import TINY, layout_of, random_box, random_states, shake
from markets import small_market
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from finflow_sb3.config import EnvSettings
from finflow_sb3.cqsac import compiling
from finflow_sb3.cqsac import cqsac as algorithm
from finflow_sb3.cqsac.compiling import PAYS_AFTER, Parts, pays
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.threads import threads_for
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.critics import FlatEncoder, SetEncoder
from finflow_sb3.nets.experts import FlatExperts, LayoutExperts
from finflow_sb3.nets.hidden import Hidden, StackedNorm, perceptron
from finflow_sb3.network_sizes import Regularisation

ARCH: dict[str, Any] = {"net_arch": [16, 16], "n_quantiles": 7}
FLAT = {name: size for name, size in TINY.items() if name != "token_hidden"}
KINDS = ["mlp", "flat", "market", "full"]


def model_of(kind: str, form: dict[str, Any] | None = None, **kwargs: Any) -> CQSAC:
    """A tiny model: `mlp`, `flat` experts, experts in a `market` (`full` mixture)."""
    sizes: dict[str, Any] = {"mlp": ARCH, "flat": FLAT}.get(kind, TINY)
    env: Any = gym.make("Pendulum-v1")
    if kind in ("market", "full"):
        env = PortfolioVecEnv(small_market(), 2, seed=0, episode_length=20)
    mixture = {"mixture": "full"} if kind == "full" else {}
    defaults = {"batch_size": 16, "buffer_size": 200, "seed": 0, "device": "cpu"}
    model = CQSAC(
        "MlpPolicy" if kind == "mlp" else "MultiExpertPolicy",
        env,
        policy_kwargs={**sizes, **mixture, **(form or {})},
        **{**defaults, **kwargs},
    )
    model.set_logger(configure(None, []))
    return model


def filled(model: CQSAC, steps: int = 40) -> CQSAC:
    """The model with random transitions in its buffer, not updated yet."""
    model.learning_starts = 10**9
    model.learn(steps, log_interval=10**9)
    model.set_logger(configure(None, []))
    return model


def train_from(model: CQSAC, seed: int, steps: int = 1) -> dict[str, float]:
    """What `train` logs from these random numbers on."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    model.train(steps, batch_size=16)
    return dict(model.logger.name_to_value)


# ------------------------------------------------------------------- dropout and layer norm


def networks(form: Regularisation) -> Iterator[tuple[nn.Module, tuple[Any, ...], int]]:
    """Network, its input, and how many hidden layers it has."""
    layout = layout_of(4)
    states, actions = random_states(layout, 6), random_box(layout, 6)[:, None]
    flat, act = torch.randn(6, 3), torch.rand(6, 1, 2)
    yield LayoutExperts(layout, 4, 6, form=form), (states,), 4
    yield FlatExperts(3, 2, expert_hidden=4, gate_hidden=4, form=form), (flat,), 3
    yield SetEncoder(2, layout, 4, (6, 6), form), (states, actions), 3
    yield FlatEncoder(2, 3, 2, (6, 6), form=form), (flat, act), 2
    yield perceptron(3, [6, 6], form, nn.Tanh), (flat,), 2


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_hidden_layer_has_both(which: int, layer_norm: bool) -> None:
    torch.manual_seed(0)
    net, inputs, count = list(networks(Regularisation(0.3, layer_norm)))[which]
    shake(net)
    hidden = [module for module in net.modules() if isinstance(module, Hidden)]
    assert len(hidden) == count and all(module.dropout == 0.3 for module in hidden)
    norms = [m for m in net.modules() if isinstance(m, StackedNorm | nn.LayerNorm)]
    assert len(norms) == (count if layer_norm else 0)

    def out() -> torch.Tensor:
        found = net(*inputs)
        return found[0] if isinstance(found, tuple) else found

    net.train()
    assert not torch.equal(out(), out()), "dropout has to be random"
    net.eval()
    assert torch.equal(out(), out())


def test_hidden_is_dropout_then_norm_then_activation() -> None:
    """DroQ's order; kept numbers are scaled by 1/(1 − p), the norm's mean is 0 and its σ 1."""
    x = torch.randn(3, 50, 8) * 4.0 + 2.0
    layer = Hidden(8, 3, Regularisation(0.0, True), nn.Identity)
    normed = layer(x)
    torch.testing.assert_close(normed.mean(dim=2), torch.zeros(3, 50), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        normed.std(dim=2, correction=0), torch.ones(3, 50), rtol=0, atol=1e-3
    )
    with torch.no_grad():
        layer.norm.weight[1] = 3.0
        layer.norm.bias[2] = -1.0
    moved = layer(x)
    for c, expected in enumerate((normed[0], 3.0 * normed[1], normed[2] - 1.0)):
        torch.testing.assert_close(moved[c], expected)
    dropped = Hidden(8, 3, Regularisation(0.25))(torch.full((3, 4000, 8), 3.0))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4.0])
    assert float((dropped == 0.0).float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_regularised_models_learn_predict_and_come_back(kind: str, tmp_path: Any) -> None:
    model = model_of(kind, {"dropout": 0.2, "layer_norm": True}, learning_starts=10)
    for part in (model.actor, model.critic, model.critic_target):
        hidden = [module for module in part.modules() if isinstance(module, Hidden)]
        assert hidden and all(m.dropout == 0.2 and m.layer_norm for m in hidden)
    model.learn(20, log_interval=10**9)
    assert model._n_updates > 0
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
    assert any(m.training for m in model.critic.modules()), "dropout is for the updates"
    obs = np.random.default_rng(0).normal(size=(6, *model.observation_space.shape))
    obs = obs.astype(np.float32)
    first, _ = model.predict(obs, deterministic=True)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], first)
    model.save(tmp_path / "model.zip")
    loaded = CQSAC.load(tmp_path / "model.zip", device="cpu")
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], first)
    assert loaded.policy.form == Regularisation(0.2, True)


def test_the_targets_and_the_reference_are_not_noisy() -> None:
    """What the critics are held against has no dropout: neither targets nor Cal-QL's floor."""
    model = filled(model_of("market", {"dropout": 0.3, "with_value": True}, cal_ql=True))
    shake(model.policy)
    model.train(1, batch_size=8)
    batch = model.replay_buffer.sample(8)
    obs, actions = batch.observations, batch.actions
    with torch.no_grad():
        assert not torch.equal(model.critic(obs, actions), model.critic(obs, actions))
        target = model.critic_target(obs, actions)
        assert torch.equal(model.critic_target(obs, actions), target)
        assert model.policy.reference_value is not None
        reference = model.policy.reference_value(obs)
        assert torch.equal(model.policy.reference_value(obs), reference)


@pytest.mark.parametrize("kind", ["mlp", "market"])
@pytest.mark.parametrize("dropout", [1.0, -0.1, math.nan])
def test_what_is_no_probability_is_refused(kind: str, dropout: float) -> None:
    with pytest.raises(
        ConfigError, match=r"policy_kwargs: dropout: .*(must lie in \[0, 1\)|number)"
    ) as caught:
        model_of(kind, {"dropout": dropout})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mlp", "market"])
def test_layer_norm_that_is_no_boolean_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="layer_norm: 'no' is not true or false"):
        model_of(kind, {"layer_norm": "no"})


# ------------------------------------------------------------------- noise on observations


def test_noise_has_its_standard_deviation() -> None:
    model = model_of("mlp", obs_noise_std=0.2)
    nothing, other = torch.zeros(20_000, 3), torch.zeros(20_000, 1)
    plain = ReplayBufferSamples(nothing, other, nothing, other, other)
    noisy = model._prepared(plain)
    here, there = noisy.observations, noisy.next_observations
    for part in (here, there):
        assert part.std(dim=0).tolist() == pytest.approx([0.2] * 3, rel=0.03)
        assert part.mean(dim=0).tolist() == pytest.approx([0.0] * 3, abs=0.01)
    assert abs(float((here * there).mean())) < 0.002, "two states, two draws"
    for name in ("actions", "dones", "rewards"):
        assert getattr(noisy, name) is getattr(plain, name)
    assert not nothing.any(), "the batch that came in stays as it was"


@pytest.mark.parametrize("lag", [0, 1])
def test_noise_is_on_market_features_alone(lag: int) -> None:
    env = PortfolioVecEnv(small_market(EnvSettings(execution_lag=lag)), 2)
    settings: dict[str, Any] = {"policy_kwargs": dict(TINY), "buffer_size": 50, "device": "cpu"}
    model = CQSAC("MultiExpertPolicy", env, obs_noise_std=0.5, **settings)
    layout = env.layout
    found = model._perturbed(torch.zeros(2_000, layout.size)).std(dim=0)
    exact = {"anchor_weights", "weights", "scalars"} | ({"pending"} if lag else set())
    assert exact < set(layout.slices)
    for name, piece in layout.slices.items():
        expected = 0.0 if name in exact else 0.5
        assert found[piece].tolist() == pytest.approx([expected] * len(found[piece]), rel=0.12), (
            name
        )


@pytest.mark.parametrize("kind", ["mlp", "market"])
def test_the_buffer_stays_clean(kind: str) -> None:
    model = filled(model_of(kind, obs_noise_std=1.0))
    torch.manual_seed(0)
    np.random.seed(3)
    before = model.replay_buffer.sample(16)
    plain = train_from(model, 3)
    np.random.seed(3)
    after = model.replay_buffer.sample(16)
    for one, other in zip(before, after, strict=True):
        assert one is other is None or torch.equal(one, other)
    quiet = filled(model_of(kind))
    assert train_from(quiet, 3)["train/critic_loss"] != pytest.approx(plain["train/critic_loss"])


@pytest.mark.parametrize(
    ("policy", "env"),
    [
        pytest.param("MultiInputPolicy", BitFlippingEnv(4, continuous=True), id="dict"),
        pytest.param("CnnPolicy", FakeImageEnv(2, 36, 36, 1, False), id="images"),
    ],
)
def test_noise_is_refused_where_it_has_no_meaning(policy: str, env: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"obs_noise_std is for flat Box .*; set it to 0"
    ) as caught:
        CQSAC(policy, env, buffer_size=10, obs_noise_std=0.1)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------- how often what moves


class Counted:
    """Counts optimiser steps of a model, target updates, and draws of a batch."""

    def __init__(self, model: CQSAC, patch: pytest.MonkeyPatch):
        self.counts = dict.fromkeys(("actor", "critic", "alpha", "targets", "batches"), 0)
        self.order: list[str] = []
        alpha = model.ent_coef_optimizer
        for name, optimizer in (
            ("actor", model.actor.optimizer),
            ("critic", model.critic.optimizer),
            ("alpha", alpha),
        ):
            patch.setattr(optimizer, "step", self.spy(name, optimizer.step))  # type: ignore[union-attr]
        patch.setattr(model, "_update_targets", self.spy("targets", model._update_targets))
        patch.setattr(model, "_prepared", self.spy("batches", model._prepared))

    def spy(self, name: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            self.order.append(name)
            return call(*args, **kwargs)

        return counted


@pytest.mark.parametrize("trains", [[1, 1, 1, 1], [4], [3, 1]])
@pytest.mark.parametrize(("utd", "delay"), [(1, 1), (3, 1), (1, 2), (3, 2), (2, 3)])
def test_updates_are_counted(
    utd: int, delay: int, trains: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four gradient steps, in one `train` or in several, are the same updates."""
    model = filled(model_of("mlp", utd_ratio=utd, policy_delay=delay))
    spies = Counted(model, monkeypatch)
    for steps in trains:
        model.train(steps, batch_size=8)
    policy = -(-4 // delay)
    assert spies.counts == {
        "actor": policy,
        "critic": 4 * utd,
        "alpha": policy,
        "targets": 4 * utd,
        "batches": 4 * utd,
    }
    assert model._n_updates == 4


def test_the_policy_moves_after_the_last_of_its_critic_updates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = filled(model_of("mlp", utd_ratio=3, policy_delay=2))
    spies = Counted(model, monkeypatch)
    model.train(2, batch_size=8)
    update = ["batches", "critic", "targets"]
    with_policy = ["batches", "critic", "actor", "alpha", "targets"]
    assert spies.order == [*update, *update, *with_policy, *update, *update, *update]


# ------------------------------------------------------------------- α_cql as a multiplier


def lagrange(**kwargs: Any) -> CQSAC:
    settings = {"cql_alpha": 2.0, "cql_target_action_gap": 1.0, "learning_rate": 1e-2, **kwargs}
    return model_of("mlp", **settings)


@pytest.mark.parametrize(("penalty", "sign"), [(3.0, 1.0), (0.5, -1.0)])
def test_multiplier_takes_one_adam_step(penalty: float, sign: float) -> None:
    """The first step of Adam is the learning rate times g/(|g| + ε), g = −α·(penalty − gap)."""
    model = lagrange()
    assert float(model._cql_alpha_now()) == pytest.approx(2.0)
    model._update_multiplier(torch.tensor(penalty))
    assert float(model.log_cql_alpha.detach()) == pytest.approx(
        math.log(2.0) + sign * 1e-2, abs=1e-6
    )
    # Twice the same gradient sign: it goes on in the same direction.
    model._update_multiplier(torch.tensor(penalty))
    assert float(model._cql_alpha_now()) == pytest.approx(2.0 * math.exp(sign * 2e-2), rel=1e-3)


@pytest.mark.parametrize(("gap", "sign"), [(-1e6, 1.0), (1e6, -1.0)])
def test_multiplier_follows_the_gap_in_training(gap: float, sign: float) -> None:
    model = filled(lagrange(cql_target_action_gap=gap))
    logged = train_from(model, 0)
    assert "train/cql_penalty" in logged
    found = float(model._cql_alpha_now())
    assert found == pytest.approx(2.0 * math.exp(sign * 1e-2), rel=1e-4)
    assert logged["train/cql_alpha"] == pytest.approx(found)
    assert model.cql_alpha == 2.0, "the start stays what was asked for"


def test_multiplier_is_kept(tmp_path: Any) -> None:
    model = filled(lagrange())
    train_from(model, 0, steps=3)
    model.save(tmp_path / "model.zip")
    loaded = CQSAC.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert torch.equal(loaded.log_cql_alpha, model.log_cql_alpha)
    assert float(loaded._cql_alpha_now()) != pytest.approx(2.0, rel=1e-4)
    loaded.replay_buffer = model.replay_buffer
    loaded.set_logger(configure(None, []))
    for one in (model, loaded):  # Adam's moments as well: the next steps are the same
        train_from(one, 5, steps=2)
    torch.testing.assert_close(loaded.log_cql_alpha, model.log_cql_alpha, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{"cql_alpha": 0.0}, {"cql_alpha_final": 0.5}])
def test_a_multiplier_without_a_start_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cql_target_action_gap: needs a cql_alpha over 0"):
        lagrange(**kwargs)


# ------------------------------------------------------------------- compiling and threads


@pytest.mark.parametrize(
    ("mode", "updates", "expected"),
    [
        ("off", 10**9, False),
        ("auto", PAYS_AFTER - 1, False),
        ("auto", PAYS_AFTER, True),
        ("on", 1, True),
    ],
)
def test_when_compiling_pays(
    mode: str, updates: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert pays(mode, updates) is expected


def test_without_a_compiler_only_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pays("auto", 10**9) is False
    assert pays("off", 10**9) is False
    with pytest.raises(ConfigError, match=r"compile: on needs a C\+\+ compiler .*; install one or"):
        pays("on", 1)
    with pytest.raises(ConfigError, match="compile: 'yes' is not one of off, auto, on"):
        pays("yes", 1)


@pytest.mark.parametrize(
    ("kwargs", "steps", "asked"),
    [
        ({"compile": "auto"}, 1_000, False),
        ({"compile": "auto"}, PAYS_AFTER - 1, False),
        ({"compile": "auto"}, PAYS_AFTER, True),
        ({"compile": "auto", "utd_ratio": 4}, PAYS_AFTER // 4, True),
        ({"compile": "auto", "train_freq": 4}, PAYS_AFTER, False),
        ({"compile": "auto", "train_freq": 4, "gradient_steps": -1}, PAYS_AFTER, True),
        ({"compile": "auto", "use_sde": True}, PAYS_AFTER, False),
        ({"compile": "off"}, 10**6, False),
        ({"compile": "on"}, 10, True),
    ],
)
def test_a_long_learn_is_compiled(
    kwargs: dict[str, Any], steps: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Parts] = []
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(algorithm, "compiled", lambda parts: calls.append(parts) or parts)
    model = model_of("mlp", **kwargs)
    model._setup_learn(steps)
    assert len(calls) == int(asked)


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="compiling takes a C++ compiler"
)
def test_compiled_updates_are_the_eager_ones() -> None:
    """Losses of two updates; the figures that come after the first depend on its gradients."""
    found = []
    for mode in ("off", "on"):
        torch.compiler.reset()
        model = filled(model_of("mlp", {"net_arch": [8]}, compile=mode, cql_alpha=1.0))
        assert isinstance(getattr(model._parts.critic, "__self__", None), CQSAC) is (mode == "off")
        found.append([train_from(model, seed) for seed in (0, 1)])
    for eager, fast in zip(*found, strict=True):
        assert set(eager) == set(fast)
        for name, value in eager.items():
            assert fast[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    assert found[0][0]["train/critic_loss"] != pytest.approx(found[0][1]["train/critic_loss"])


def test_threads_for_wide_networks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    assert threads_for(nn.Linear(256, 256), 256) == 6
    assert threads_for(nn.Linear(256, 256), 128) == 6, "2²³ multiplications are worth it"
    assert threads_for(nn.Linear(256, 255), 128) == 1
    assert threads_for(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), 256) == 1
    assert threads_for(nn.ReLU(), 10**9) == 1
    assert threads_for(model_of("market").policy, 256) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert threads_for(nn.Linear(4096, 4096), 4096) == 3, "processes share the machine"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert threads_for(nn.Linear(4096, 4096), 4096) == 1


# ------------------------------------------------------------------- logs

BARE = {"learning_rate", "n_updates", "ent_coef", "entropy", "actor_loss"}
BARE |= {"critic_loss", "q_mean", "q_spread"}


@pytest.mark.parametrize(
    ("kind", "kwargs", "more"),
    [
        ("mlp", {}, {"ent_coef_loss"}),
        ("mlp", {"ent_coef": 0.1}, set()),
        ("mlp", {"cql_alpha": 1.0}, {"ent_coef_loss", "cql_alpha", "cql_penalty"}),
        ("market", {"ent_coef": 0.1}, {f"gate_{k}" for k in range(5)}),
    ],
)
def test_what_train_logs(kind: str, kwargs: dict[str, Any], more: set[str]) -> None:
    logged = train_from(filled(model_of(kind, **kwargs)), 0, steps=2)
    assert {name.removeprefix("train/") for name in logged} == BARE | more
    assert all(math.isfinite(value) for value in logged.values())
    assert logged["train/n_updates"] == 2


def test_figures_are_the_last_updates() -> None:
    model = filled(model_of("mlp"))
    losses: list[Any] = []
    critic = model._parts.critic

    def kept(*args: Any) -> Any:
        losses.append(critic(*args))
        return losses[-1]

    model._parts = model._parts._replace(critic=kept)
    logged = train_from(model, 0, steps=3)
    last = losses[-1]
    assert len(losses) == 3
    assert logged["train/critic_loss"] == pytest.approx(float(last.td.detach()), abs=1e-7)
    quantiles = last.quantiles.detach()
    assert logged["train/q_mean"] == pytest.approx(float(quantiles.mean()), abs=1e-6)
    spread = quantiles.var(dim=2, correction=0).sqrt().mean()
    assert logged["train/q_spread"] == pytest.approx(float(spread), abs=1e-6)


@pytest.mark.parametrize(("steps", "delay", "utd"), [(2, 2, 1), (4, 2, 1), (3, 3, 2), (1, 2, 1)])
def test_figures_of_a_delayed_policy_are_those_of_its_last_update(
    steps: int, delay: int, utd: int
) -> None:
    """Where it is due in a `train`, though not at the end of it, they are logged all the same."""
    model = filled(model_of("mlp", policy_delay=delay, utd_ratio=utd))
    assert {f"train/{name}" for name in BARE} <= set(train_from(model, 0, steps=steps))
