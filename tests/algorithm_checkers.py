"""Checks that every off-policy algorithm must pass, proven on SB3's SAC and sb3-contrib's TQC.

A `Subject` is an algorithm with a policy and tiny nets; a checker takes one, or a model it built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from sb3_contrib import TQC
from stable_baselines3 import SAC
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from finflow_sb3.cqsac.cqsac import CQSAC

__all__ = [
    "CONSERVATIVE",
    "CQSAC_BARE",
    "EVERY",
    "EXPERTS",
    "EXPERTS_CONSERVATIVE",
    "PERCEPTRONS",
    "QUANTILES",
    "Subject",
    "check_continues",
    "check_learns",
    "check_predicts",
    "check_repeats",
    "check_round_trip",
    "filled",
    "goals",
    "images",
    "mixed",
    "over",
    "pendulum",
    "quiet",
    "refused",
    "several",
    "tensors",
    "update_alike",
]

STEPS = 24
SMALL: dict[str, Any] = {
    "buffer_size": 300,
    "batch_size": 8,
    "learning_starts": 10,
    "seed": 0,
    "device": "cpu",
}


@dataclass(frozen=True)
class Subject:
    """An algorithm to check.

    Attributes
    ----------
    policy : for flat observations; the two others are named alike in all algorithms
    nets : `policy_kwargs` that make it tiny
    arguments : of the algorithm, beside those for a short run
    """

    name: str
    algorithm: Any
    policy: str = "MlpPolicy"
    nets: dict[str, Any] = field(default_factory=lambda: {"net_arch": [8]})
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(
        self,
        env: Any,
        policy: str | None = None,
        nets: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Any:
        """A model for `env` that logs nowhere; `nets` are added to the tiny ones."""
        arguments = {**SMALL, **self.arguments, **changes}
        policy_kwargs = {**self.nets, **(nets or {})}
        return self.algorithm(policy or self.policy, env, policy_kwargs=policy_kwargs, **arguments)


QUANTILE_NETS = {"net_arch": [8], "n_quantiles": 5}
CONSERVATIVE_ARGUMENTS = {"cql_alpha": 1.0, "cql_alpha_final": 0.1, "cql_n_actions": 2}
EXPERT_NETS = {"expert_hidden": 4, "gate_hidden": 4, "critic_hidden": [8], "n_quantiles": 5}
THEIR_SAC = Subject("sac", SAC)
THEIR_TQC = Subject("tqc", TQC, nets=QUANTILE_NETS)
CQSAC_BARE = Subject("cqsac", CQSAC, nets=QUANTILE_NETS)
CONSERVATIVE = Subject("cql", CQSAC, nets=QUANTILE_NETS, arguments=CONSERVATIVE_ARGUMENTS)
EXPERTS = Subject("experts", CQSAC, "MultiExpertPolicy", EXPERT_NETS)
EXPERTS_CONSERVATIVE = Subject(
    "experts-cql",
    CQSAC,
    "MultiExpertPolicy",
    EXPERT_NETS,
    {**CONSERVATIVE_ARGUMENTS, "balance_coef": 0.1, "prior_coef": 0.1},
)

# MultiExpertPolicy has an actor of its own: no net_arch, no gSDE, no Dict observations.
PERCEPTRONS = (THEIR_SAC, THEIR_TQC, CQSAC_BARE, CONSERVATIVE)
QUANTILES = (THEIR_TQC, CQSAC_BARE, CONSERVATIVE, EXPERTS)
EVERY = (*PERCEPTRONS, EXPERTS)


def over(subjects: tuple[Subject, ...]) -> pytest.MarkDecorator:
    """Run a test for each of `subjects`."""
    return pytest.mark.parametrize("subject", subjects, ids=lambda subject: subject.name)


# ------------------------------------------------------------------- environments


def pendulum(episode: int = 200) -> gym.Env[Any, Any]:
    return TimeLimit(gym.make("Pendulum-v1").unwrapped, episode)


def several(make: Callable[[], gym.Env[Any, Any]] = pendulum, count: int = 3) -> VecEnv:
    return DummyVecEnv([make] * count)


def images() -> gym.Env[Any, Any]:
    return FakeImageEnv(
        action_dim=2, screen_height=36, screen_width=36, n_channels=1, discrete=False
    )


def goals() -> gym.Env[Any, Any]:
    """Dict observations with goals, for HER."""
    return BitFlippingEnv(n_bits=4, continuous=True, max_steps=4)


def mixed() -> gym.Env[Any, Any]:
    """Dict observations of a vector and an image."""
    return SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False)


# ------------------------------------------------------------------- looking inside


def quiet(model: Any) -> Any:
    model.set_logger(configure(None, []))
    return model


def filled(model: Any, steps: int = 20) -> Any:
    """The model with transitions in its buffer, not updated yet."""
    starts, model.learning_starts = model.learning_starts, 10**9
    model.learn(steps, log_interval=10**9)
    model.learning_starts = starts
    return quiet(model)


def tensors(parameters: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of `get_parameters()`, optimisers' too, by its path."""
    if isinstance(parameters, torch.Tensor):
        yield prefix, parameters.detach().clone()
    elif isinstance(parameters, dict):
        for key, value in parameters.items():
            yield from tensors(value, f"{prefix}/{key}")
    elif isinstance(parameters, list | tuple):
        for key, value in enumerate(parameters):
            yield from tensors(value, f"{prefix}/{key}")


def same_tensors(one: Any, other: Any) -> None:
    """Two models have equal weights, optimisers and temperature, bit for bit."""
    mine, theirs = (dict(tensors(model.get_parameters())) for model in (one, other))
    assert mine.keys() == theirs.keys() and mine
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    if one.log_ent_coef is not None:
        assert torch.equal(one.log_ent_coef, other.log_ent_coef)


def observations(model: Any, count: int, seed: int = 0) -> Any:
    """`count` observations of the model's space, stacked as a vectorised environment does."""
    space = model.observation_space
    space.seed(seed)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, gym.spaces.Dict):
        return {key: np.stack([each[key] for each in drawn]) for key in space.spaces}
    return np.stack(drawn)


def row(batch: Any, index: int) -> Any:
    if isinstance(batch, dict):
        return {key: value[index] for key, value in batch.items()}
    return batch[index]


# ------------------------------------------------------------------- checkers


def check_learns(model: Any, steps: int = STEPS, **arguments: Any) -> Any:
    """After `learn` actor and critics have moved, are finite, and stored actions are scaled."""
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    assert model.learn(steps, **arguments) is model
    assert model.num_timesteps >= steps
    assert model._n_updates > 0
    after = model.policy.state_dict()
    assert all(torch.isfinite(value).all() for value in after.values())
    for part in ("actor.", "critic.", "critic_target."):
        names = [name for name in before if name.startswith(part)]
        assert any(not torch.equal(before[name], after[name]) for name in names), part
    stored = np.asarray(model.replay_buffer.actions[: model.replay_buffer.pos])
    assert np.abs(stored).max() <= 1.0
    assert stored.std() > 0.0
    return model


def check_predicts(model: Any) -> None:
    """Shapes, bounds, repeatability of `predict` on one, several and Dict observations."""
    batch, space = observations(model, 3), model.action_space
    actions, state = model.predict(batch, deterministic=True)
    assert state is None
    assert actions.shape == (3, *space.shape)
    np.testing.assert_array_equal(actions, model.predict(batch, deterministic=True)[0])
    for index in range(3):
        single, _ = model.predict(row(batch, index), deterministic=True)
        assert single.shape == space.shape
        np.testing.assert_allclose(single, actions[index], rtol=1e-4, atol=1e-5)
        assert space.contains(single.astype(space.dtype))
    drawn = [model.predict(batch)[0] for _ in range(2)]
    # gSDE keeps its noise until the next rollout.
    assert np.array_equal(*drawn) == model.use_sde
    assert all(space.contains(action.astype(space.dtype)) for each in drawn for action in each)


def check_repeats(make: Callable[[int], Any], steps: int = STEPS) -> None:
    """The same seed gives the same weights, bit for bit; another seed gives others."""
    first, second, other = (make(seed).learn(steps) for seed in (3, 3, 4))
    assert first._n_updates > 0
    same_tensors(first, second)
    values = [dict(model.policy.named_parameters()) for model in (first, other)]
    assert any(not torch.equal(value, values[1][name]) for name, value in values[0].items())
    stored = (np.asarray(model.replay_buffer.actions) for model in (first, second))
    np.testing.assert_array_equal(*stored)


def check_round_trip(model: Any, path: Path, env: Any) -> Any:
    """`save` and `load`: same weights, optimisers, settings, actions; it goes on alike."""
    model.save(path)
    loaded = type(model).load(path, env=env, device="cpu")
    same_tensors(model, loaded)
    assert loaded.policy_kwargs.keys() == model.policy_kwargs.keys()
    for name, value in vars(model).items():
        if isinstance(value, str | float | int) and not name.startswith("_"):
            assert getattr(loaded, name) == value, name
    batch = observations(model, 4)
    found = (one.predict(batch, deterministic=True)[0] for one in (model, loaded))
    np.testing.assert_array_equal(*found)
    update_alike(model, loaded)
    return loaded


def update_alike(model: Any, other: Any, updates: int = 3) -> None:
    """From the same buffer and random numbers, both models make the same updates."""
    other.replay_buffer = model.replay_buffer
    before = [value.clone() for value in model.policy.parameters()]
    for one in (model, quiet(other)):
        one._current_progress_remaining = 0.5
        np.random.seed(0)
        torch.manual_seed(0)
        one.train(updates, batch_size=8)
    same_tensors(model, other)
    after = model.policy.parameters()
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))


def check_continues(make: Callable[[], Any]) -> None:
    """`learn` in two halves is `learn` in one go."""
    whole, halves = make().learn(2 * STEPS), make().learn(STEPS)
    updates = halves._n_updates
    halves.learn(STEPS, reset_num_timesteps=False)
    assert halves.num_timesteps == whole.num_timesteps == 2 * STEPS
    assert halves._n_updates == whole._n_updates > updates > 0
    same_tensors(whole, halves)


@contextmanager
def refused(kinds: Any, words: str) -> Iterator[None]:
    """What is refused is refused on one line that says what is wrong."""
    with pytest.raises(kinds, match=words) as caught:
        yield
    assert "\n" not in str(caught.value)
