"""CQSAC: bare it is TQC, and every addition does what it says and nothing else."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from learning_fixtures import TINY, artefact_of, market_states, trained_iql
from markets import small_market
from sb3_contrib import TQC
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.cqsac.seeding import policy_kwargs_for, seed
from finflow_sb3.envs.vec import PortfolioVecEnv
from finflow_sb3.errors import ConfigError
from finflow_sb3.nets.losses import conservative_penalty
from finflow_sb3.offline.transitions import TransitionBatch

ARCH: dict[str, Any] = {"net_arch": [16, 16], "n_quantiles": 7}
SHORT: dict[str, Any] = {"batch_size": 16, "buffer_size": 2_000, "device": "cpu"}


def pendulum() -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1")


def quiet(model: Any) -> Any:
    model.set_logger(configure(None, []))
    return model


def filled(model: Any, steps: int = 60) -> Any:
    """The model with `steps` random transitions in its buffer, not updated yet."""
    model.learning_starts = 10**9
    model.learn(steps, log_interval=10**9)
    return quiet(model)


def copy_tqc(tqc: TQC, model: CQSAC) -> None:
    """TQC's weights into ours: qf0, qf1, ... become slices of the stacked layers."""
    model.actor.load_state_dict(tqc.actor.state_dict())
    pairs = ((tqc.critic, model.critic), (tqc.critic_target, model.critic_target))
    with torch.no_grad():
        for theirs, mine in pairs:
            layers = [*mine.encoder.layers, mine.head]
            for c in range(theirs.n_critics):
                net = getattr(theirs, f"qf{c}")
                linear = [m for m in net if isinstance(m, torch.nn.Linear)]
                for layer, source in zip(layers, linear, strict=True):
                    layer.weight[c] = source.weight.T
                    layer.bias[c, 0] = source.bias


def tqc_parameters(tqc: TQC) -> dict[str, torch.Tensor]:
    """TQC's parameters, laid out as ours."""
    out = {f"actor.{k}": v for k, v in tqc.actor.state_dict().items()}
    for prefix, critic in (("critic", tqc.critic), ("critic_target", tqc.critic_target)):
        nets = [
            [m for m in getattr(critic, f"qf{c}") if isinstance(m, torch.nn.Linear)]
            for c in range(critic.n_critics)
        ]
        for i in range(len(nets[0])):
            name = "head" if i == len(nets[0]) - 1 else f"encoder.layers.{i}"
            out[f"{prefix}.{name}.weight"] = torch.stack([net[i].weight.T for net in nets])
            out[f"{prefix}.{name}.bias"] = torch.stack([net[i].bias[None] for net in nets])
    return out


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="default"),
        pytest.param({"ent_coef": 0.2}, id="fixed-entropy"),
        pytest.param({"top_quantiles_to_drop_per_net": 0, "gamma": 0.9}, id="nothing-dropped"),
        pytest.param({"policy_kwargs": {**ARCH, "n_critics": 3}}, id="three-critics"),
        pytest.param({"use_sde": True}, id="gsde"),
        pytest.param({"n_steps": 3}, id="three-steps"),
        pytest.param({"target_update_interval": 2, "tau": 0.3}, id="rare-targets"),
        pytest.param({"policy_kwargs": {**ARCH, "activation_fn": torch.nn.Tanh}}, id="tanh"),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_bare_it_is_tqc(changes: dict[str, Any], steps: int) -> None:
    kwargs = {"policy_kwargs": dict(ARCH), "seed": 0, **SHORT, **changes}
    tqc = filled(TQC("MlpPolicy", pendulum(), **kwargs))
    model = filled(CQSAC("MlpPolicy", pendulum(), **kwargs))
    copy_tqc(tqc, model)
    model.replay_buffer = tqc.replay_buffer
    for one in (tqc, model):
        one._current_progress_remaining = 0.7
        torch.manual_seed(1)
        np.random.seed(1)
        one.train(steps, batch_size=16)
    theirs, mine = tqc.logger.name_to_value, model.logger.name_to_value
    if steps == 1:  # TQC logs means over steps, CQSAC the last
        names = ["critic_loss", "actor_loss", "ent_coef"]
        names += ["ent_coef_loss"] if "ent_coef" not in changes else []
        for name in names:
            assert mine[f"train/{name}"] == pytest.approx(
                float(theirs[f"train/{name}"]), abs=1e-5
            ), name
    ours = model.policy.state_dict()
    expected = tqc_parameters(tqc)
    assert set(expected) == set(ours)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5, msg=name)
    if tqc.log_ent_coef is not None:
        torch.testing.assert_close(model.log_ent_coef, tqc.log_ent_coef, rtol=0, atol=1e-6)


def test_defaults_are_tqcs() -> None:
    import inspect

    theirs = inspect.signature(TQC.__init__).parameters
    mine = inspect.signature(CQSAC.__init__).parameters
    for name, parameter in theirs.items():
        assert name in mine, name
        assert mine[name].default == parameter.default, name


def test_forward_is_score_of_one_action() -> None:
    model = CQSAC("MlpPolicy", pendulum(), policy_kwargs=dict(ARCH), **SHORT)
    obs, actions = torch.randn(4, 3), torch.rand(4, 6, 1) * 2 - 1
    scores = model.critic.score(obs, actions)
    assert scores.shape == (2, 4, 6, 7)
    for m in range(6):
        torch.testing.assert_close(
            model.critic(obs, actions[:, m]), scores[:, :, m].transpose(0, 1)
        )


# ------------------------------------------------------------------- targets


def test_target_by_hand() -> None:
    """Pool 2 × 3 quantiles, drop the top one per net, r + γ·(1 − d)·(rest − α·log π')."""
    model = filled(
        CQSAC(
            "MlpPolicy",
            pendulum(),
            policy_kwargs={"net_arch": [8], "n_quantiles": 3},
            top_quantiles_to_drop_per_net=1,
            gamma=0.5,
            seed=0,
            **SHORT,
        )
    )
    batch = model.replay_buffer.sample(4)
    batch = batch._replace(dones=torch.tensor([[0.0], [1.0], [0.0], [0.0]]))
    alpha = torch.tensor([0.3])
    draws = model._draws(4, 1)
    found = model._target_quantiles(batch, alpha, draws)
    after = model._act(batch.next_observations, draws.normal)
    pooled = model.critic_target(batch.next_observations, after.actions[:, 0]).detach()
    for b in range(4):
        kept = sorted(pooled[b].flatten().tolist())[:4]
        bonus = 0.3 * float(after.log_prob[b].detach())
        alive = 0.0 if b == 1 else 1.0
        reward = float(batch.rewards[b])
        expected = [reward + 0.5 * alive * (q - bonus) for q in kept]
        assert found[b].tolist() == pytest.approx(expected, abs=1e-5)


def test_without_backup_entropy_the_target_has_no_bonus() -> None:
    def target(alpha: float, **kwargs: Any) -> torch.Tensor:
        model = filled(
            CQSAC("MlpPolicy", pendulum(), policy_kwargs=dict(ARCH), seed=0, **SHORT, **kwargs)
        )
        np.random.seed(0)
        torch.manual_seed(0)
        batch = model.replay_buffer.sample(8)
        return model._target_quantiles(batch, torch.tensor([alpha]), model._draws(8, 1))

    plain = target(0.0)
    torch.testing.assert_close(target(0.8, backup_entropy=False), plain)
    assert not torch.allclose(target(0.8), plain, atol=1e-3)


# ------------------------------------------------------------------- conservative penalty


def expert_model(**kwargs: Any) -> CQSAC:
    return quiet(
        CQSAC(
            "MultiExpertPolicy",
            PortfolioVecEnv(small_market(), 4, seed=0, episode_length=20),
            policy_kwargs=kwargs.pop("policy_kwargs", dict(TINY)),
            seed=0,
            **{**SHORT, **kwargs},
        )
    )


def test_penalty_is_of_the_mean_quantile_with_each_samples_density() -> None:
    model = filled(expert_model(cql_n_actions=3, cql_temperature=2.0))
    batch = model.replay_buffer.sample(6)
    quantiles = model.critic(batch.observations, batch.actions)
    draws = model._conservative_draws(batch)
    found = model._conservative_penalty(batch, quantiles.mean(dim=2).T, draws)
    size = batch.actions.shape[1]
    assert draws.actions.min() < -0.5 and draws.actions.max() > 0.5
    parts, densities = [draws.actions], [torch.full((6, 3), size * math.log(0.5))]
    for states, own in (
        (batch.observations, draws.here),
        (batch.next_observations, draws.there),
    ):
        out = model.actor.evaluate(states)
        dist = torch.distributions.Normal(out.mean[:, None], out.log_std.exp()[:, None])
        u = out.mean[:, None] + out.log_std.exp()[:, None] * own.normal
        log_pi = dist.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2 + 1e-6)
        parts.append(torch.tanh(u))
        densities.append(log_pi.sum(dim=2))
    actions = torch.cat(parts, dim=1)
    q = torch.stack(
        [model.critic(batch.observations, actions[:, m]).mean(dim=2).T for m in range(9)], dim=2
    )
    expected = conservative_penalty(q, torch.cat(densities, dim=1), quantiles.mean(dim=2).T, 2.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_penalty_on_a_part_of_the_batch_sees_every_kth_state() -> None:
    model = filled(expert_model(cql_alpha=1.0, cql_batch_size=4))
    batch = model.replay_buffer.sample(16)
    whole = model.critic(batch.observations, batch.actions).mean(dim=2).T
    draws = model._conservative_draws(batch)
    assert draws.actions.shape[0] == 4
    found = model._conservative_penalty(batch, whole, draws)
    model.cql_batch_size = None
    part = type(batch)(*(None if x is None else x[::4] for x in batch))
    torch.testing.assert_close(found, model._conservative_penalty(part, whole[:, ::4], draws))


def test_penalty_does_not_move_the_policy() -> None:
    model = filled(expert_model())
    batch = model.replay_buffer.sample(8)
    data_q = model.critic(batch.observations, batch.actions).mean(dim=2).T
    model._conservative_penalty(batch, data_q, model._conservative_draws(batch)).backward()
    assert all(p.grad is None for p in model.actor.parameters())
    assert any(p.grad is not None for p in model.critic.parameters())


def preference(cql_alpha: float) -> float:
    """How far Q of the data's one action, 0.5, lies over that of others, after training."""
    model = CQSAC(
        "MlpPolicy",
        pendulum(),
        policy_kwargs=dict(ARCH),
        learning_rate=3e-3,
        cql_alpha=cql_alpha,
        seed=0,
        **SHORT,
    )
    filled(model, steps=100).replay_buffer.actions[:] = 0.5
    model.train(100, batch_size=32)
    batch = model.replay_buffer.sample(100)
    with torch.no_grad():
        mine = model.critic(batch.observations, batch.actions).mean()
        grid = torch.linspace(-1, 1, 21)[None, :, None].expand(100, -1, -1)
        return float(mine - model.critic.score(batch.observations, grid).mean())


def test_the_penalty_prefers_the_datas_actions() -> None:
    assert preference(5.0) > preference(0.0) + 0.5


def test_alpha_falls_linearly() -> None:
    model = expert_model(cql_alpha=4.0, cql_alpha_final=1.0)
    for progress, expected in ((1.0, 4.0), (0.75, 3.25), (0.5, 2.5), (0.0, 1.0)):
        model._current_progress_remaining = progress
        assert float(model._cql_alpha_now()) == pytest.approx(expected)
    model.cql_alpha_final = None
    assert float(model._cql_alpha_now()) == 4.0


def test_no_penalty_is_computed_without_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model = filled(expert_model(cql_alpha=0.0))
    monkeypatch.setattr(model, "_conservative_penalty", lambda *_: pytest.fail("computed"))
    model.train(1, batch_size=8)
    assert "train/cql_alpha" not in model.logger.name_to_value


# ------------------------------------------------------------------- Cal-QL


@pytest.fixture(scope="module")
def artefact() -> Any:
    return artefact_of(trained_iql(10), small_market())


def seeded_model(artefact: Any, **kwargs: Any) -> CQSAC:
    model = expert_model(policy_kwargs=policy_kwargs_for(artefact), **kwargs)
    seed(model, artefact)
    return model


def test_floor_is_v_on_policy_samples_only(artefact: Any) -> None:
    model = seeded_model(artefact, cal_ql=True)
    states = market_states(small_market(), 5)
    value = model.policy.reference_value(states)[:, 0]
    q = torch.stack([value - 1.0, value + 1.0], dim=1)[None].repeat(2, 1, 3)  # [C, B, 6]
    floored = model._calibrated(q, states, 2)
    torch.testing.assert_close(floored[:, :, :2], q[:, :, :2])
    torch.testing.assert_close(floored[:, :, 2], value.expand(2, -1))
    torch.testing.assert_close(floored[:, :, 3], q[:, :, 3])


def test_floor_lifts_the_penalty_and_stops_its_gradient(artefact: Any) -> None:
    """Where every policy sample lies below V, only uniform samples are still pushed down."""
    model = filled(seeded_model(artefact, cal_ql=True))
    with torch.no_grad():
        model.policy.reference_value.head.bias += 1e3
    batch = model.replay_buffer.sample(8)
    data_q = model.critic(batch.observations, batch.actions).mean(dim=2).T.detach()
    penalty = model._conservative_penalty(batch, data_q, model._conservative_draws(batch))
    penalty.backward()
    largest = max(float(p.grad.abs().max()) for p in model.critic.parameters())
    assert largest < 1e-6
    assert float(penalty.detach()) > 900


# ------------------------------------------------------------------- offline data


class Marked:
    """Offline transitions whose reward says that they are offline."""

    def __init__(self, size: int, width: int, actions: int):
        self.size, self.width, self.actions = size, width, actions
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.size

    def gather(self, index: torch.Tensor) -> TransitionBatch:
        self.asked += index.tolist()
        n = len(index)
        return TransitionBatch(
            torch.full((n, self.width), 7.0),
            torch.full((n, self.actions), 0.5),
            torch.full((n, 1), 777.0),
            torch.full((n, self.width), 8.0),
            torch.ones(n, 1),
        )


@pytest.mark.parametrize(
    ("fraction", "offline"), [(0.0, 0), (0.25, 4), (0.5, 8), (0.99, 16), (1.0, 16)]
)
def test_share_of_offline_data(fraction: float, offline: int) -> None:
    layout = small_market().layout
    model = filled(expert_model(offline_fraction=fraction))
    data = Marked(50, layout.size, layout.action_size)
    model.set_offline_data(data)
    batch = next(model._batches(16).stream(1))
    marked = batch.rewards[:, 0] == 777.0
    assert len(batch.rewards) == 16 and int(marked.sum()) == offline
    assert (batch.observations[marked] == 7.0).all()
    assert (batch.next_observations[marked] == 8.0).all()
    assert (batch.actions[marked] == 0.5).all()
    assert (batch.dones[marked] == 1.0).all()
    assert all(0 <= i < 50 for i in data.asked)
    model.train(1, batch_size=16)


def test_offline_transitions_are_one_step_among_three() -> None:
    """With n-step returns, online targets are discounted by γ³ and offline ones by γ."""
    layout = small_market().layout
    model = filled(expert_model(offline_fraction=0.5, n_steps=3, gamma=0.5))
    model.set_offline_data(Marked(50, layout.size, layout.action_size))
    batch = next(model._batches(16).stream(1))
    assert batch.discounts is not None
    marked = batch.rewards[:, 0] == 777.0
    assert (batch.discounts[marked] == 0.5).all()
    assert (batch.discounts[~marked] <= 0.5).all()
    assert (batch.discounts[~marked] == 0.125).any()


def test_offline_fraction_without_data_is_refused() -> None:
    model = filled(expert_model(offline_fraction=0.5))
    with pytest.raises(ConfigError, match="offline_fraction"):
        model.train(1, batch_size=8)


# ------------------------------------------------------------------- rates and warm-up


def rates(model: CQSAC) -> tuple[float, float, float]:
    optimizers = (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer)
    return tuple(o.param_groups[0]["lr"] for o in optimizers)  # type: ignore[return-value, union-attr]


def test_actor_and_critic_rates() -> None:
    model = filled(expert_model(learning_rate=1e-3, actor_lr=1e-4, critic_lr=1e-2))
    model.train(1, batch_size=8)
    assert rates(model) == (1e-4, 1e-2, 1e-3)


def test_rates_follow_the_schedule_where_not_set() -> None:
    model = filled(expert_model(learning_rate=lambda left: left * 1e-3, critic_lr=1e-2))
    model._current_progress_remaining = 0.25
    model.train(1, batch_size=8)
    assert rates(model) == pytest.approx((2.5e-4, 1e-2, 2.5e-4))


def test_in_warm_up_the_policy_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = expert_model(warmup_steps=40)
    assert model.learning_starts == 100, "the later of the two starts the updates"
    model = expert_model(warmup_steps=40, learning_starts=0)
    monkeypatch.setattr(model.action_space, "sample", lambda *_: pytest.fail("uniform action"))
    updates = []
    monkeypatch.setattr(model, "train", lambda *_, **__: updates.append(model.num_timesteps))
    model.learn(60, log_interval=10**9)
    assert updates and min(updates) > 40
    # The seeded policy's actions are narrower than uniform ones: σ is 0.58 there, 0.33 here.
    stored = model.replay_buffer.actions[: model.replay_buffer.pos]
    assert 0.1 < stored.std() < 0.5


def test_without_warm_up_actions_are_uniform() -> None:
    model = filled(expert_model(), steps=400)
    stored = model.replay_buffer.actions[: model.replay_buffer.pos]
    assert stored.std() == pytest.approx(math.sqrt(1 / 3), abs=0.03)


# ------------------------------------------------------------------- actor's extras


def actor_loss(balance: float, prior: float) -> float:
    model = filled(expert_model(balance_coef=balance, prior_coef=prior, ent_coef=0.1))
    with torch.no_grad():
        for parameter in model.actor.parameters():
            parameter.add_(0.1)
    np.random.seed(0)
    torch.manual_seed(0)
    model.train(1, batch_size=16)
    return float(model.logger.name_to_value["train/actor_loss"])


def test_balance_and_prior_join_the_actor_loss() -> None:
    plain, balanced, pulled = actor_loss(0, 0), actor_loss(2.0, 0), actor_loss(0, 3.0)
    assert actor_loss(4.0, 0) - plain == pytest.approx(2 * (balanced - plain), abs=1e-4)
    assert actor_loss(2.0, 3.0) - plain == pytest.approx(balanced + pulled - 2 * plain, abs=1e-4)
    assert pulled > plain + 1e-3


# ------------------------------------------------------------------- an SB3 algorithm


def her_env() -> Any:
    return BitFlippingEnv(n_bits=4, continuous=True, max_steps=4)


@pytest.mark.parametrize("cql_batch_size", [None, 4])
def test_penalty_on_dict_observations(cql_batch_size: int | None) -> None:
    model = CQSAC(
        "MultiInputPolicy",
        her_env(),
        policy_kwargs={"net_arch": [8], "n_quantiles": 4},
        learning_starts=20,
        cql_alpha=1.0,
        cql_batch_size=cql_batch_size,
        **SHORT,
    )
    model.learn(30)
    assert model._n_updates > 0


@pytest.mark.parametrize("kind", ["flat", "portfolio", "seeded", "mlp"])
def test_save_and_load(kind: str, tmp_path: Any, artefact: Any) -> None:
    env: Any = None
    if kind == "flat":
        sizes = {k: v for k, v in TINY.items() if k != "token_hidden"}
        model = CQSAC("MultiExpertPolicy", pendulum(), policy_kwargs=sizes, seed=0, **SHORT)
    elif kind == "mlp":
        model = CQSAC("MlpPolicy", pendulum(), policy_kwargs=dict(ARCH), seed=0, **SHORT)
    elif kind == "portfolio":
        model = expert_model(cql_alpha=2.0, cql_alpha_final=1.0)
    else:
        model = seeded_model(artefact, cal_ql=True)
    filled(model, steps=20).train(3, batch_size=8)
    model.save(tmp_path / "model.zip")
    env = model.get_env()
    loaded = CQSAC.load(tmp_path / "model.zip", env=env, device="cpu")
    obs = env.observation_space.sample()[None].repeat(6, axis=0)
    obs = np.random.default_rng(0).normal(size=obs.shape).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )
    for name, value in model.policy.state_dict().items():
        assert torch.equal(loaded.policy.state_dict()[name], value), name
    for name in ("cql_alpha", "cql_alpha_final", "cal_ql", "top_quantiles_to_drop_per_net"):
        assert getattr(loaded, name) == getattr(model, name)
    assert torch.equal(loaded.log_ent_coef, model.log_ent_coef)
    # It goes on learning as the original does.
    loaded.replay_buffer = model.replay_buffer
    for one in (model, quiet(loaded)):
        np.random.seed(0)
        torch.manual_seed(0)
        one.train(2, batch_size=8)
    for name, value in model.policy.state_dict().items():
        torch.testing.assert_close(loaded.policy.state_dict()[name], value, rtol=0, atol=1e-7)


def test_the_callers_policy_kwargs_stay_as_they_are() -> None:
    """One dictionary may serve two environments: no layout of the first is left in it."""
    kwargs = dict(TINY)
    expert_model(policy_kwargs=kwargs)
    assert "layout" not in kwargs


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cal_ql": True}, "cal_ql needs a reference value"),
        ({"top_quantiles_to_drop_per_net": 5}, r"top_quantiles_to_drop_per_net: 5 .* \(4\)"),
        ({"top_quantiles_to_drop_per_net": -1}, "top_quantiles_to_drop_per_net: -1"),
        ({"use_sde": True}, "use_sde"),
        ({"policy_kwargs": {"n_quantiles": 0}}, "n_quantiles"),
    ],
)
def test_contradictions_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        expert_model(**kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"cql_n_actions": 0},
        {"cql_temperature": 0.0},
        {"cql_batch_size": 0},
        {"obs_noise_std": -0.1},
        {"obs_noise_std": math.nan},
        {"cql_alpha": -1.0},
        {"cql_alpha": 1.0, "cql_target_action_gap": math.nan},
        {"offline_fraction": 1.1},
        {"utd_ratio": 0},
        {"utd_ratio": 1.5},
        {"policy_delay": 0},
        {"actor_lr": -1e-3},
        {"compile": "yes"},
    ],
)
def test_arguments_out_of_range_are_refused_by_name(kwargs: dict[str, Any]) -> None:
    name = list(kwargs)[-1]
    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        expert_model(**kwargs)
    assert "\n" not in str(caught.value)
