"""What SB3 refuses is refused in its words, on one line, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from algorithm_checkers import (
    CQSAC_BARE,
    EVERY,
    EXPERTS,
    PERCEPTRONS,
    Subject,
    goals,
    over,
    pendulum,
    refused,
    several,
)
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv

from finflow_sb3.errors import ConfigError


class Endless(gym.Env[Any, Any]):
    """An action space without bounds."""

    action_space = spaces.Box(-np.inf, np.inf, (1,))
    observation_space = spaces.Box(-1.0, 1.0, (1,))


REFUSALS: dict[str, tuple[Callable[[Subject], Any], Any, str]] = {
    "discrete actions": (
        lambda subject: subject.build("CartPole-v1"),
        AssertionError,
        "The algorithm only supports .* as action spaces",
    ),
    "actions without bounds": (
        lambda subject: subject.build(Endless()),
        AssertionError,
        "must have a finite lower and upper bound",
    ),
    "unknown policy": (
        lambda subject: subject.build(pendulum(), "NoPolicy"),
        ValueError,
        "Policy NoPolicy unknown",
    ),
    "flat policy for Dict observations": (
        lambda subject: subject.build(goals(), "MlpPolicy"),
        ValueError,
        "You must use `MultiInputPolicy`",
    ),
    "half memory with timeouts": (
        lambda subject: subject.build(pendulum(), optimize_memory_usage=True),
        ValueError,
        "optimize_memory_usage = True and handle_timeout_termination = True",
    ),
    "half memory of three-step returns": (
        lambda subject: subject.build(
            pendulum(),
            n_steps=3,
            optimize_memory_usage=True,
            replay_buffer_kwargs={"handle_timeout_termination": False},
        ),
        NotImplementedError,
        "optimize_memory_usage",
    ),
    "unit of train_freq": (
        lambda subject: subject.build(pendulum(), train_freq=(1, "day")),
        ValueError,
        "must be either 'step' or 'episode' not 'day'",
    ),
    "fraction as train_freq": (
        lambda subject: subject.build(pendulum(), train_freq=(0.5, "step")),
        ValueError,
        "must be an integer and not 0.5",
    ),
    "episodes of several environments": (
        lambda subject: subject.build(several(), train_freq=(1, "episode")).learn(5),
        AssertionError,
        "You must use only one env when doing episodic training",
    ),
    "no frequency": (
        lambda subject: subject.build(pendulum(), train_freq=0).learn(5),
        AssertionError,
        "at least collect one step",
    ),
    "temperature of nothing": (
        lambda subject: subject.build(pendulum(), ent_coef="auto_0"),
        AssertionError,
        "initial value of ent_coef must be greater than 0",
    ),
    "temperature that is no number": (
        lambda subject: subject.build(pendulum(), ent_coef="warm"),
        ValueError,
        "could not convert string to float: 'warm'",
    ),
    "unknown policy argument": (
        lambda subject: subject.build(pendulum(), nets={"nonsense": 1}),
        TypeError,
        "unexpected keyword argument 'nonsense'",
    ),
    "observations of another shape": (
        lambda subject: subject.build(pendulum()).predict(np.zeros(4, dtype=np.float32)),
        ValueError,
        "Unexpected observation shape",
    ),
    "learning without an environment": (
        lambda subject: subject.build(None, _init_setup_model=False).learn(5),
        AssertionError,
        "must set the environment before calling",
    ),
}


@over(EVERY)
@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_refused_as_sb3_does(subject: Subject, case: tuple[Any, Any, str]) -> None:
    attempt, kinds, words = case
    with refused(kinds, words):
        attempt(subject)


DICT_REFUSALS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "half memory": ({"optimize_memory_usage": True}, AssertionError, "optimize_memory_usage"),
    "three-step returns": ({"n_steps": 3}, (AssertionError, ConfigError), "Dict observation space"),
}


@over(PERCEPTRONS)
@pytest.mark.parametrize("case", DICT_REFUSALS.values(), ids=DICT_REFUSALS)
def test_refused_with_dict_observations(subject: Subject, case: tuple[Any, Any, str]) -> None:
    settings, kinds, words = case
    with refused(kinds, words):
        subject.build(goals(), "MultiInputPolicy", **settings)


@over(PERCEPTRONS)
def test_images_are_asked_of_cnn_policy(subject: Subject) -> None:
    with pytest.raises(AssertionError, match="You should use NatureCNN only with images"):
        subject.build(pendulum(), "CnnPolicy")


@over(PERCEPTRONS)
@pytest.mark.parametrize("kind", [DictReplayBuffer, HerReplayBuffer])
def test_n_steps_beside_a_buffer_of_the_callers_is_said_to_be_ignored(
    subject: Subject, kind: Any
) -> None:
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
        subject.build(goals(), "MultiInputPolicy", n_steps=3, replay_buffer_class=kind)


@over(PERCEPTRONS)
def test_goals_before_an_episode_has_ended_are_refused(subject: Subject) -> None:
    settings: dict[str, Any] = {"replay_buffer_class": HerReplayBuffer, "learning_starts": 1}
    env = BitFlippingEnv(n_bits=20, continuous=True)
    model = subject.build(env, "MultiInputPolicy", **settings)
    with pytest.raises(RuntimeError, match="Unable to sample before the end of the first episode"):
        model.learn(3)


# ------------------------------------------------------------------- our own


def test_experts_refuse_dict_observations_in_one_sentence() -> None:
    with refused(ConfigError, "MultiExpertPolicy needs flat observations"):
        EXPERTS.build(goals())


def test_n_steps_with_dict_observations_is_a_setting_to_mend() -> None:
    with refused(ConfigError, "n_steps: 3 is not supported with Dict"):
        CQSAC_BARE.build(goals(), "MultiInputPolicy", n_steps=3)
