"""What users do to a CQSAC model beside learning with it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from learning_fixtures import TINY
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_cqsac import ARCH, SHORT, Marked, expert_model, filled, pendulum, quiet

from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.errors import ConfigError


def test_what_is_frozen_stays_frozen() -> None:
    model = filled(CQSAC("MlpPolicy", pendulum(), policy_kwargs=dict(ARCH), seed=0, **SHORT))
    first = model.critic.encoder.layers[0]
    first.requires_grad_(False)
    before = first.weight.clone()
    model.train(3, batch_size=8)
    assert torch.equal(first.weight, before)
    assert not first.weight.requires_grad and model.critic.head.weight.requires_grad


def test_a_copy_trains_its_own_networks() -> None:
    """Compiled functions are bound to the networks that they were made for."""
    model = filled(CQSAC("MlpPolicy", pendulum(), policy_kwargs=dict(ARCH), seed=0, **SHORT))
    original = model._equations()
    model._parts = type(original)(*(lambda *a, f=f: f(*a) for f in original))
    other = copy.deepcopy(model)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    quiet(other).train(2, batch_size=8)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    changed = other.policy.state_dict()
    assert not torch.equal(changed["critic.head.weight"], before["critic.head.weight"])


def test_an_optimiser_of_ones_own() -> None:
    class Plain(torch.optim.Adam):
        def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0):
            super().__init__(params, lr=lr, weight_decay=weight_decay)

    kwargs = {**ARCH, "optimizer_class": Plain}
    model = filled(CQSAC("MlpPolicy", pendulum(), policy_kwargs=kwargs, **SHORT))
    model.train(1, batch_size=8)
    assert type(model.critic.optimizer) is Plain


@pytest.mark.parametrize("kind", ["experts", "market", "layer-norm"])
def test_an_actor_alone_is_saved_and_loaded(kind: str, tmp_path: Any) -> None:
    if kind == "market":
        model = expert_model()
    elif kind == "experts":
        sizes = {k: v for k, v in TINY.items() if k != "token_hidden"}
        model = CQSAC("MultiExpertPolicy", pendulum(), policy_kwargs=sizes, **SHORT)
    else:
        kwargs = {**ARCH, "layer_norm": True}
        model = CQSAC("MlpPolicy", pendulum(), policy_kwargs=kwargs, **SHORT)
    model.actor.save(tmp_path / "actor.pt")
    loaded = type(model.actor).load(tmp_path / "actor.pt")
    obs = np.random.default_rng(0).normal(size=(3, *model.observation_space.shape))
    obs = obs.astype(np.float32)
    expected = model.actor.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)


def test_offline_data_are_not_mixed_with_normalised_ones() -> None:
    env = VecNormalize(DummyVecEnv([pendulum]))
    model = filled(CQSAC("MlpPolicy", env, policy_kwargs=dict(ARCH), **SHORT))
    model.offline_fraction = 0.5
    model.set_offline_data(Marked(20, 3, 1))
    with pytest.raises(ConfigError, match="VecNormalize"):
        model.train(1, batch_size=8)


@pytest.mark.parametrize(("asked", "states"), [(4, 4), (8, 8), (3, 3), (5, 4), (16, 16), (99, 16)])
def test_penalty_takes_no_more_states_than_asked(asked: int, states: int) -> None:
    model = filled(expert_model(cql_alpha=1.0, cql_batch_size=asked))
    batch = model.replay_buffer.sample(16)
    assert len(model._conservative_draws(batch).actions) == states


def test_a_resumed_part_plans_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile: auto` decides for the run, not for what is left of it."""
    asked: list[int] = []
    monkeypatch.setattr("finflow_sb3.cqsac.cqsac.pays", lambda mode, n: asked.append(n) or False)
    model = CQSAC("MlpPolicy", pendulum(), policy_kwargs=dict(ARCH), learning_starts=99, **SHORT)
    model.learn(30, log_interval=10**9)
    model.learn(20, log_interval=10**9, reset_num_timesteps=False)
    assert asked[-2:] == [30, 50]


def test_processes_have_portfolios_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for number in (0, 1, 2):
        monkeypatch.setattr("finflow_sb3.cqsac.cqsac.rank", lambda number=number: number)
        model = expert_model()
        model.env.reset()
        rows.append(tuple(model.env.batch.held[:, 0]))
    assert len({start for own in rows for start in own}) == 12
