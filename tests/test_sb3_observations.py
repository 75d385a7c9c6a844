"""Images, Dict observations, goals, normalisation: what a buffer keeps and what nets are given."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithm_checkers import (
    EVERY,
    EXPERTS,
    PERCEPTRONS,
    Subject,
    check_learns,
    check_predicts,
    check_repeats,
    check_round_trip,
    filled,
    goals,
    images,
    mixed,
    over,
    pendulum,
    several,
    update_alike,
)
from gymnasium import spaces
from learning_fixtures import TINY
from markets import small_market
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from finflow_sb3.envs.vec import PortfolioVecEnv

SMALL_IMAGES: dict[str, Any] = {"features_extractor_kwargs": {"features_dim": 4}}
SMALL_MIXED: dict[str, Any] = {"features_extractor_kwargs": {"cnn_output_dim": 4}}
PICTURES: dict[str, Any] = {"buffer_size": 40, "batch_size": 4}


class Watching(FlattenExtractor):
    """Keeps the largest number that it was given."""

    def __init__(self, observation_space: gym.Space[Any]):
        super().__init__(observation_space)
        self.largest = 0.0

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        self.largest = max(self.largest, float(observations.max()))
        return super().forward(observations)


# ------------------------------------------------------------------- images


@over(PERCEPTRONS)
@pytest.mark.parametrize("shared", [False, True])
def test_images(subject: Subject, shared: bool) -> None:
    nets = {**SMALL_IMAGES, "share_features_extractor": shared}
    model = subject.build(images(), "CnnPolicy", nets=nets, **PICTURES)
    check_predicts(check_learns(model, 14))


@over(EVERY)
@pytest.mark.parametrize("normalised", [True, False])
def test_images_stay_bytes_and_reach_the_nets_scaled(subject: Subject, normalised: bool) -> None:
    nets = {"normalize_images": normalised, "features_extractor_class": Watching}
    model = check_learns(subject.build(images(), nets=nets, **PICTURES), 14)
    assert model.replay_buffer.observations.dtype in (np.uint8, torch.uint8)
    assert np.asarray(model.replay_buffer.observations[:14]).max() > 1
    for part in (model.actor, model.critic, model.critic_target):
        largest = part.features_extractor.largest
        assert (0.0 < largest <= 1.0) if normalised else (1.0 < largest <= 255.0)


@over(PERCEPTRONS)
def test_half_the_memory_of_images(subject: Subject) -> None:
    model = subject.build(
        images(),
        "CnnPolicy",
        nets=SMALL_IMAGES,
        optimize_memory_usage=True,
        replay_buffer_kwargs={"handle_timeout_termination": False},
        **PICTURES,
    )
    check_learns(model, 14)


# ------------------------------------------------------------------- Dict observations


@over(PERCEPTRONS)
def test_vector_and_image_together(subject: Subject) -> None:
    model = subject.build(mixed(), "MultiInputPolicy", nets=SMALL_MIXED, **PICTURES)
    check_predicts(check_learns(model, 14))
    kept = model.replay_buffer.observations
    assert kept["img"].dtype in (np.uint8, torch.uint8)
    assert kept["vec"].dtype in (np.float32, np.float64, torch.float32)


@over(PERCEPTRONS)
@pytest.mark.parametrize("environments", [1, 3])
def test_goals_with_hindsight(subject: Subject, environments: int) -> None:
    """Relabelled transitions carry the reward of the goal that they were given."""
    model = subject.build(
        several(goals, environments),
        "MultiInputPolicy",
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 4, "goal_selection_strategy": "final"},
        learning_starts=15,
    )
    check_predicts(check_learns(model, 45))
    batch = model.replay_buffer.sample(64)
    achieved, desired = (
        np.asarray(batch.next_observations[key]) for key in ("achieved_goal", "desired_goal")
    )
    reached = (achieved == desired).all(axis=1)
    np.testing.assert_array_equal(np.asarray(batch.rewards)[:, 0], np.where(reached, 0.0, -1.0))
    assert reached.any()


@over(PERCEPTRONS)
def test_same_seed_same_weights_with_goals(subject: Subject) -> None:
    check_repeats(
        lambda seed: subject.build(
            goals(), "MultiInputPolicy", replay_buffer_class=HerReplayBuffer, seed=seed
        )
    )


@over(PERCEPTRONS)
def test_dict_round_trip(subject: Subject, tmp_path: Any) -> None:
    model = subject.build(goals(), "MultiInputPolicy").learn(16)
    check_round_trip(model, tmp_path / "model.zip", goals())


@over(PERCEPTRONS)
def test_stacked_frames(subject: Subject) -> None:
    env = VecFrameStack(several(mixed, 2), n_stack=2)
    model = subject.build(env, "MultiInputPolicy", nets=SMALL_MIXED, **PICTURES)
    check_predicts(check_learns(model, 16))


# ------------------------------------------------------------------- other spaces


class Drawn(gym.Env[Any, Any]):
    """Observations by chance out of any space; the reward is the action's sum."""

    def __init__(self, space: spaces.Space[Any]):
        self.observation_space, self.action_space = space, spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        return self.observation_space.sample(), float(action.sum()), False, False, {}


SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(5),
    "two-dimensions": spaces.Box(-8.0, 8.0, (2, 3)),
    "doubles": spaces.Box(-8.0, 8.0, (3,), np.float64),
}


@over(EVERY)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_observations_of_any_kind(subject: Subject, space: Any) -> None:
    check_predicts(check_learns(subject.build(Drawn(space))))


# ------------------------------------------------------------------- what the buffer is told


class Marked(ReplayBuffer):
    """A buffer of one's own, with an argument of its own."""

    def __init__(self, *args: Any, mark: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mark, self.asked = mark, 0

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return super().sample(*args, **kwargs)


@over(EVERY)
def test_replay_buffer_of_ones_own(subject: Subject) -> None:
    model = subject.build(
        pendulum(), replay_buffer_class=Marked, replay_buffer_kwargs={"mark": "mine"}
    )
    check_learns(model)
    assert type(model.replay_buffer) is Marked and model.replay_buffer.mark == "mine"
    assert model.replay_buffer.asked == model._n_updates


@over(EVERY)
@pytest.mark.parametrize("handled", [True, False])
def test_a_time_limit_is_no_end(subject: Subject, handled: bool) -> None:
    """Pendulum never ends; a truncated episode is bootstrapped unless the caller says not to."""
    model = subject.build(pendulum(5), replay_buffer_kwargs={"handle_timeout_termination": handled})
    batch = filled(model, 40).replay_buffer.sample(200)
    assert float(batch.dones.max()) == (0.0 if handled else 1.0)
    # The observation stored after the last step is that step's, not the next episode's first.
    cos, sin, speed = np.asarray(batch.next_observations).T
    angle, after = (
        np.arctan2(np.asarray(seen)[:, 1], np.asarray(seen)[:, 0])
        for seen in (batch.observations, batch.next_observations)
    )
    turned = (after - angle + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(turned, speed * 0.05, atol=1e-4)
    np.testing.assert_allclose(cos**2 + sin**2, 1.0, atol=1e-5)


def normalised(count: int = 2) -> VecNormalize:
    return VecNormalize(several(lambda: pendulum(5), count))


@over(EVERY)
@pytest.mark.parametrize("settings", [{}, {"n_steps": 3}], ids=["one-step", "three-step"])
def test_normalised_batches_of_raw_data(subject: Subject, settings: dict[str, Any]) -> None:
    env = normalised()
    model = check_learns(subject.build(env, learning_starts=20, **settings), 40)
    assert model.get_vec_normalize_env() is env
    stored = np.asarray(model.replay_buffer.observations[:20])
    np.testing.assert_allclose(stored[..., 0] ** 2 + stored[..., 1] ** 2, 1.0, atol=1e-5)
    rewards = np.asarray(model.replay_buffer.rewards[19])
    np.testing.assert_allclose(rewards, env.get_original_reward(), rtol=1e-6)
    raw, scaled = (
        np.asarray(model.replay_buffer.sample(100, env=each).observations) for each in (None, env)
    )
    np.testing.assert_allclose((raw[:, :2] ** 2).sum(axis=1), 1.0, atol=1e-5)
    assert np.abs((scaled[:, :2] ** 2).sum(axis=1) - 1.0).max() > 0.1
    check_predicts(model)


@over(EVERY)
@pytest.mark.parametrize("buffer", [None, ReplayBuffer], ids=["own-buffer", "sb3-buffer"])
def test_normalised_data_is_what_trains(subject: Subject, buffer: Any) -> None:
    """Statistics that make every observation and reward alike leave two buffers alike."""
    models = []
    for offset in (0.0, 0.5):
        env = normalised(1)
        env.training = False
        env.clip_obs = env.clip_reward = 0.0
        model = filled(subject.build(env, ent_coef=0.1, replay_buffer_class=buffer))
        model.replay_buffer.observations[:] += offset
        model.replay_buffer.rewards[:] += offset
        models.append(model)
    mine, other = models
    buffers = [model.replay_buffer for model in models]
    assert not np.array_equal(*(np.asarray(buffer.rewards) for buffer in buffers))
    for model in models:
        model._current_progress_remaining = 0.5
        np.random.seed(0)
        torch.manual_seed(0)
        model.train(3, batch_size=8)
    values = zip(mine.policy.parameters(), other.policy.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in values)


@over(EVERY)
def test_round_trip_with_normalisation(subject: Subject, tmp_path: Any) -> None:
    env = normalised()
    model = subject.build(env).learn(30)
    env.save(str(tmp_path / "normalise.pkl"))
    again = VecNormalize.load(str(tmp_path / "normalise.pkl"), several(pendulum, 2))
    again.training = False
    model.save(tmp_path / "model.zip")
    loaded = subject.algorithm.load(tmp_path / "model.zip", env=again, device="cpu")
    assert loaded.get_vec_normalize_env() is again
    update_alike(model, filled(loaded, 2))


# ------------------------------------------------------------------- portfolios


def portfolios(seed: int = 0) -> PortfolioVecEnv:
    return PortfolioVecEnv(small_market(), 2, seed=seed, episode_length=10)


PORTFOLIO = Subject("portfolio", EXPERTS.algorithm, EXPERTS.policy, TINY)


def test_portfolios_pass_the_same_checks(tmp_path: Any) -> None:
    check_predicts(check_learns(PORTFOLIO.build(portfolios())))
    check_repeats(lambda seed: PORTFOLIO.build(portfolios(seed), seed=seed))
    model = PORTFOLIO.build(portfolios()).learn(20)
    check_round_trip(model, tmp_path / "model.zip", portfolios())
