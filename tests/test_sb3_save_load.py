"""What is saved comes back: models, parameters, buffers; and what can be changed on the way."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from algorithm_checkers import (
    EVERY,
    PERCEPTRONS,
    Subject,
    check_learns,
    check_predicts,
    check_round_trip,
    filled,
    goals,
    over,
    pendulum,
    quiet,
    refused,
    same_tensors,
    several,
    tensors,
    update_alike,
)
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file

# ------------------------------------------------------------------- models


@over(EVERY)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ent_coef": 0.2, "n_steps": 3},
        {"learning_rate": lambda left: 1e-3 * left, "train_freq": (1, "episode")},
        {"gamma": 0.9, "tau": 0.1, "target_update_interval": 2, "gradient_steps": 2},
    ],
    ids=["defaults", "fixed-entropy", "schedule", "numbers"],
)
def test_round_trip(subject: Subject, settings: dict[str, Any], tmp_path: Any) -> None:
    model = subject.build(pendulum(5), **settings).learn(20)
    loaded = check_round_trip(model, tmp_path / "model", pendulum(5))
    assert loaded.num_timesteps == 20
    check_learns(loaded, reset_num_timesteps=False)


@over(PERCEPTRONS)
def test_round_trip_of_nets(subject: Subject, tmp_path: Any) -> None:
    nets = {
        "net_arch": {"pi": [5], "qf": [6, 7]},
        "activation_fn": torch.nn.Tanh,
        "optimizer_class": torch.optim.SGD,
        "n_critics": 3,
        "share_features_extractor": True,
    }
    model = subject.build(pendulum(), nets=nets, use_sde=True).learn(20)
    check_round_trip(model, tmp_path / "model", pendulum())


@over(EVERY)
def test_saved_into_a_stream(subject: Subject) -> None:
    model, stream = subject.build(pendulum()).learn(15), io.BytesIO()
    model.save(stream)
    stream.seek(0)
    same_tensors(model, subject.algorithm.load(stream, device="cpu"))


@over(EVERY)
def test_without_an_environment_it_predicts(subject: Subject, tmp_path: Any) -> None:
    subject.build(pendulum()).learn(15).save(tmp_path / "model")
    loaded = subject.algorithm.load(tmp_path / "model", device="cpu")
    assert loaded.get_env() is None
    check_predicts(loaded)
    loaded.set_env(pendulum())
    check_learns(loaded)


@over(EVERY)
def test_exclude_and_include(subject: Subject, tmp_path: Any) -> None:
    model = subject.build(pendulum(), tau=0.125).learn(20)
    model.save(tmp_path / "default")
    model.save(tmp_path / "changed", exclude=["tau"], include=["replay_buffer"])
    default, changed = (
        load_from_zip_file(tmp_path / name, device="cpu")[0] for name in ("default", "changed")
    )
    assert default["tau"] == 0.125 and "tau" not in changed
    assert "replay_buffer" not in default
    assert changed["replay_buffer"].size() == 20
    for left_out in ("policy", "env", "logger", "_logger"):
        assert left_out not in default
    loaded = subject.algorithm.load(tmp_path / "changed", env=pendulum(), device="cpu")
    assert loaded.tau == 0.005 and loaded.replay_buffer.size() == 20
    same_tensors(model, loaded)
    check_learns(loaded, reset_num_timesteps=True)


@over(EVERY)
def test_nothing_heavy_is_saved(subject: Subject, tmp_path: Any) -> None:
    """The buffer, compiled parts and the like are made anew, so a file is small."""
    path = tmp_path / "model.zip"
    subject.build(pendulum(), buffer_size=200_000).learn(15).save(path)
    assert path.stat().st_size < 200_000


@over(EVERY)
def test_loaded_with_other_settings(subject: Subject, tmp_path: Any) -> None:
    subject.build(pendulum()).learn(15).save(tmp_path / "model")
    changes: dict[str, Any] = {
        "learning_rate": 1e-2,
        "gamma": 0.5,
        "train_freq": (2, "step"),
        "batch_size": 4,
    }
    loaded = subject.algorithm.load(tmp_path / "model", env=pendulum(), device="cpu", **changes)
    assert (loaded.gamma, loaded.train_freq.frequency, loaded.batch_size) == (0.5, 2, 4)
    check_learns(loaded)
    assert loaded.actor.optimizer.param_groups[0]["lr"] == 1e-2


@over(EVERY)
def test_loaded_with_more_environments(subject: Subject, tmp_path: Any) -> None:
    subject.build(pendulum()).learn(15).save(tmp_path / "model")
    loaded = subject.algorithm.load(tmp_path / "model", env=several(), device="cpu")
    assert loaded.n_envs == loaded.replay_buffer.n_envs == 3
    check_learns(loaded, 30)


@over(EVERY)
def test_policy_alone(subject: Subject, tmp_path: Any) -> None:
    model = subject.build(pendulum()).learn(15)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    states = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = (one.predict(states, deterministic=True)[0] for one in (model, policy))
    np.testing.assert_array_equal(*found)
    assert not policy.training


# ------------------------------------------------------------------- parameters


@over(EVERY)
def test_set_parameters_exactly(subject: Subject, tmp_path: Any) -> None:
    model = subject.build(pendulum()).learn(20)
    other = filled(subject.build(pendulum(), seed=1), 2)
    other.set_parameters(model.get_parameters(), exact_match=True)
    mine, theirs = (dict(tensors(one.get_parameters())) for one in (model, other))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    model.save(tmp_path / "model")
    third = subject.build(pendulum(), seed=2)
    third.set_parameters(str(tmp_path / "model"), device="cpu")
    assert all(torch.equal(mine[name], value) for name, value in tensors(third.get_parameters()))


@over(EVERY)
def test_set_parameters_in_part(subject: Subject) -> None:
    model = subject.build(pendulum()).learn(20)
    other = subject.build(pendulum(), seed=1).learn(20)
    given = {"policy": model.get_parameters()["policy"]}
    with refused(ValueError, "Names of parameters do not match"):
        other.set_parameters(given)
    optimiser = dict(tensors(other.get_parameters()["critic.optimizer"]))
    other.set_parameters(given, exact_match=False)
    for name, value in model.policy.state_dict().items():
        assert torch.equal(other.policy.state_dict()[name], value), name
    for name, value in tensors(other.get_parameters()["critic.optimizer"]):
        assert torch.equal(optimiser[name], value), name
    weights = dict(given["policy"])
    name = next(iter(weights))
    del weights[name]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.set_parameters({"policy": weights})
    other.set_parameters({"policy": weights}, exact_match=False)


@over(EVERY)
def test_set_parameters_of_nothing_there(subject: Subject) -> None:
    model = subject.build(pendulum())
    with refused(ValueError, "Key nonsense is an invalid object name"):
        model.set_parameters({"nonsense": {}}, exact_match=False)


@over(EVERY)
def test_parameters_are_all_that_learns(subject: Subject) -> None:
    """Set back to what they were, with the temperature, a model makes the same updates again."""
    model = filled(subject.build(pendulum()))
    twin = filled(subject.build(pendulum(), seed=5))
    twin.set_parameters(model.get_parameters())
    with torch.no_grad():
        twin.log_ent_coef.copy_(model.log_ent_coef)
    update_alike(model, twin)


# ------------------------------------------------------------------- buffers


@over(EVERY)
def test_buffer_round_trip(subject: Subject, tmp_path: Any) -> None:
    model = filled(subject.build(pendulum(5)), 25)
    model.save_replay_buffer(tmp_path / "buffer")
    other = filled(subject.build(pendulum(5), seed=1), 5)
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer.size() == 25
    drawn = []
    for one in (model, other):
        np.random.seed(0)
        drawn.append(one.replay_buffer.sample(50))
    for mine, theirs in zip(*(batch[:5] for batch in drawn), strict=True):
        assert torch.equal(mine, theirs)
    check_learns(other, reset_num_timesteps=False)


@over(PERCEPTRONS)
def test_buffer_round_trip_with_goals(subject: Subject, tmp_path: Any) -> None:
    def build() -> Any:
        return subject.build(goals(), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer)

    model = filled(build(), 25)
    model.save_replay_buffer(tmp_path / "buffer")
    other = build()
    other.load_replay_buffer(tmp_path / "buffer")
    assert other.replay_buffer.size() == 25
    check_learns(other, reset_num_timesteps=False)


# ------------------------------------------------------------------- environments


@over(EVERY)
def test_another_environment(subject: Subject) -> None:
    model = quiet(subject.build(pendulum()))
    first = model.get_env()
    model.learn(15, log_interval=10**9)
    model.set_env(pendulum(3))
    assert model.get_env() is not first
    model.learn(15, log_interval=10**9)
    assert model.num_timesteps == 15
    model.learn(12, reset_num_timesteps=False, log_interval=10**9)
    assert model.num_timesteps == 27
    assert int(np.asarray(model.replay_buffer.timeouts).sum()) >= 3


@over(EVERY)
def test_other_spaces_are_refused(subject: Subject, tmp_path: Any) -> None:
    model = subject.build(pendulum())
    model.save(tmp_path / "model")
    for env, words in ((narrower(), "Action spaces do not match"), (wider(), "Observation spaces")):
        with refused(ValueError, words):
            subject.algorithm.load(tmp_path / "model", env=env)
        with refused(ValueError, words):
            model.set_env(env)
    with refused(AssertionError, "number of environments"):
        model.set_env(several())


def narrower() -> Any:
    env = pendulum()
    env.action_space = type(env.action_space)(-1.0, 1.0, (1,))
    return env


def wider() -> Any:
    env = pendulum()
    env.observation_space = type(env.observation_space)(-9.0, 9.0, (3,))
    return env


@over(EVERY)
def test_other_nets_are_refused(subject: Subject, tmp_path: Any) -> None:
    subject.build(pendulum()).save(tmp_path / "model")
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        subject.algorithm.load(tmp_path / "model", policy_kwargs={"n_critics": 4})
