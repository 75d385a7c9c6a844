"""CQSAC learns wherever SB3's SAC and sb3-contrib's TQC do: settings, timing, seeds, callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from algorithm_checkers import (
    EVERY,
    EXPERTS_CONSERVATIVE,
    PERCEPTRONS,
    STEPS,
    Subject,
    check_continues,
    check_learns,
    check_predicts,
    check_repeats,
    filled,
    over,
    pendulum,
    quiet,
    several,
)
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecNormalize

# ------------------------------------------------------------------- what it learns with

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "three-step": {"n_steps": 3},
    "half-memory": {
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
    "fixed-entropy": {"ent_coef": 0.2},
    "entropy-from": {"ent_coef": "auto_0.1", "target_entropy": -0.5},
    "many-gradient-steps": {"train_freq": 4, "gradient_steps": -1},
    "rare-targets": {"gradient_steps": 2, "target_update_interval": 2, "tau": 0.5},
    "falling-rate": {"learning_rate": lambda left: 1e-2 * left},
    "at-once": {"learning_starts": 0},
}


@over((*EVERY, EXPERTS_CONSERVATIVE))
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_learns_and_predicts(subject: Subject, settings: dict[str, Any]) -> None:
    check_predicts(check_learns(subject.build(pendulum(5), **settings)))


@over(PERCEPTRONS)
@pytest.mark.parametrize("settings", [{}, {"sde_sample_freq": 4}, {"use_sde_at_warmup": True}])
def test_state_dependent_exploration(subject: Subject, settings: dict[str, Any]) -> None:
    env = VecNormalize(several(count=2))
    check_predicts(check_learns(subject.build(env, use_sde=True, **settings)))


# ------------------------------------------------------------------- when it learns


@over(EVERY)
@pytest.mark.parametrize(
    ("frequency", "gradient_steps", "updates"),
    [
        (1, 1, 20),  # every step after the tenth
        ((2, "step"), 3, 30),
        ((3, "step"), -1, 18),  # rollouts end at 12, 15, ..., 27
        ((1, "episode"), 1, 4),  # episodes end at 15, 20, 25, 30
        ((2, "episode"), -1, 20),
    ],
)
def test_train_frequency(
    subject: Subject, frequency: Any, gradient_steps: int, updates: int
) -> None:
    model = subject.build(pendulum(5), train_freq=frequency, gradient_steps=gradient_steps)
    steps = 27 if frequency == (3, "step") else 30
    assert check_learns(model, steps)._n_updates == updates


@over(EVERY)
@pytest.mark.parametrize(("gradient_steps", "updates"), [(1, 7), (-1, 21)])
def test_several_environments(subject: Subject, gradient_steps: int, updates: int) -> None:
    model = subject.build(several(), gradient_steps=gradient_steps)
    assert check_learns(model, 30)._n_updates == updates  # 12, 15, ..., 30
    assert model.replay_buffer.n_envs == model.n_envs == 3
    check_predicts(model)


@over(EVERY)
@pytest.mark.parametrize(("interval", "equal"), [(1, True), (2, False), (3, True)])
def test_target_update_interval(subject: Subject, interval: int, equal: bool) -> None:
    """With τ = 1 targets are copies, unless the critic's last step, the fourth, came after."""
    model = subject.build(pendulum(), tau=1.0, target_update_interval=interval)
    filled(model).train(4, batch_size=8)
    pairs = zip(model.critic.parameters(), model.critic_target.parameters(), strict=True)
    assert all(torch.equal(mine, target) for mine, target in pairs) == equal


@over(EVERY)
def test_targets_move_by_tau(subject: Subject) -> None:
    model = filled(subject.build(pendulum(), tau=0.25))
    expected = [value.detach().clone() for value in model.critic_target.parameters()]
    model.train(1, batch_size=8)
    polyak_update(model.critic.parameters(), expected, 0.25)
    for value, target in zip(expected, model.critic_target.parameters(), strict=True):
        torch.testing.assert_close(target, value)


@over(EVERY)
@pytest.mark.parametrize("environments", [1, 3])
def test_action_noise(subject: Subject, environments: int) -> None:
    """Noise of ten times the range puts every action on the edge."""
    noise = NormalActionNoise(np.full(1, 10.0), np.zeros(1))
    model = subject.build(several(count=environments), action_noise=noise).learn(30)
    assert isinstance(model.action_noise, VectorizedActionNoise) == (environments > 1)
    stored = np.asarray(model.replay_buffer.actions[: model.replay_buffer.pos])
    np.testing.assert_array_equal(stored, 1.0)
    assert model._n_updates > 0


# ------------------------------------------------------------------- temperature and rates


@over(EVERY)
def test_temperature(subject: Subject) -> None:
    def learnt(**settings: Any) -> tuple[Any, dict[str, Any]]:
        model = filled(subject.build(pendulum(), **settings))
        model.train(1, batch_size=8)
        return model, model.logger.name_to_value

    fixed, figures = learnt(ent_coef=0.2)
    assert fixed.log_ent_coef is None
    assert figures["train/ent_coef"] == pytest.approx(0.2)
    assert "train/ent_coef_loss" not in figures
    for setting, start in (("auto", 1.0), ("auto_0.1", 0.1)):
        model, figures = learnt(ent_coef=setting)
        assert model.target_entropy == -1.0
        assert figures["train/ent_coef"] == pytest.approx(start)
        assert "train/ent_coef_loss" in figures
        # Its first Adam step is of the learning rate's length.
        moved = model.log_ent_coef.item() - np.log(start)
        assert abs(moved) == pytest.approx(3e-4, rel=1e-2)
    low, high = (learnt(target_entropy=value)[0].log_ent_coef.item() for value in (-50.0, 50.0))
    assert low < 0.0 < high


@over(EVERY)
def test_learning_rate_schedule(subject: Subject) -> None:
    model = subject.build(pendulum(), learning_rate=lambda left: 1e-2 * left)
    model.learn(40)
    quiet(model)
    model._current_progress_remaining = 0.25
    model.train(1, batch_size=8)
    for optimiser in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer):
        assert optimiser.param_groups[0]["lr"] == pytest.approx(2.5e-3)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(2.5e-3)


@over(EVERY)
def test_what_is_logged(subject: Subject, tmp_path: Path) -> None:
    model = quiet(subject.build(pendulum()))
    model.learn(STEPS, log_interval=10**9)
    names = ("actor_loss", "critic_loss", "ent_coef", "ent_coef_loss", "learning_rate", "n_updates")
    figures = model.logger.name_to_value
    for name in names:
        assert np.isfinite(figures[f"train/{name}"]), name
    assert figures["train/n_updates"] == model._n_updates
    model = subject.build(pendulum(5), tensorboard_log=str(tmp_path))
    model.learn(STEPS, tb_log_name="run", log_interval=1)
    assert list((tmp_path / "run_1").glob("events.out.tfevents.*"))


# ------------------------------------------------------------------- seeds, halves, callbacks


@over(EVERY)
@pytest.mark.parametrize(
    "settings",
    [{}, {"n_steps": 3}, {"ent_coef": 0.1, "gradient_steps": 2}],
    ids=["defaults", "three-step", "two-gradient-steps"],
)
def test_same_seed_same_weights(subject: Subject, settings: dict[str, Any]) -> None:
    check_repeats(lambda seed: subject.build(pendulum(5), **{**settings, "seed": seed}))


@over(PERCEPTRONS)
def test_same_seed_same_weights_with_state_dependent_exploration(subject: Subject) -> None:
    check_repeats(lambda seed: subject.build(several(), use_sde=True, seed=seed), 30)


@over(tuple(subject for subject in EVERY if subject.name != "cql"))
def test_learning_goes_on(subject: Subject) -> None:
    """Not of a falling `cql_alpha`: its schedule knows the whole length only in one go."""
    check_continues(lambda: subject.build(pendulum(5)))


class Count(BaseCallback):
    calls = 0

    def _on_step(self) -> bool:
        self.calls += 1
        return True


@over(EVERY)
def test_callbacks(subject: Subject, tmp_path: Path) -> None:
    count = Count()
    judge = EvalCallback(
        Monitor(pendulum(5)),
        eval_freq=10,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    keeper = CheckpointCallback(15, str(tmp_path), save_replay_buffer=True)
    callbacks = [judge, keeper, EveryNTimesteps(8, count)]
    model = subject.build(pendulum(5)).learn(32, callback=CallbackList(callbacks))
    assert count.calls == 4
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [10, 20, 30]
    for name in ("best_model.zip", "rl_model_15_steps.zip", "rl_model_30_steps.zip"):
        loaded = subject.algorithm.load(tmp_path / name, env=pendulum(), device="cpu")
        check_predicts(loaded)
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_30_steps.pkl")
    assert loaded.replay_buffer.size() == 29  # callbacks see a step before it is stored
    assert model.num_timesteps == 32


@over(EVERY)
def test_callbacks_that_stop(subject: Subject) -> None:
    model = subject.build(pendulum(5)).learn(50, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps == 15
    stop = EvalCallback(
        Monitor(pendulum(5)),
        callback_on_new_best=StopTrainingOnRewardThreshold(-1e9),
        eval_freq=12,
        n_eval_episodes=1,
        verbose=0,
    )
    assert subject.build(pendulum(5)).learn(50, callback=stop).num_timesteps == 12


# ------------------------------------------------------------------- actions


class Slanted(gym.Env[Any, Any]):
    """Bounds that are neither symmetric nor alike; remembers what it was given."""

    def __init__(self, dtype: Any = np.float32) -> None:
        low, high = np.array([-1.0, 2.0, -7.0]), np.array([3.0, 2.5, 0.0])
        self.action_space = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))
        self.given: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.given.append(action)
        return np.ones(2, dtype=np.float32), float(action.sum()), False, False, {}


@over(EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_scaled_to_the_environments_bounds(subject: Subject, dtype: Any) -> None:
    env = Slanted(dtype)
    model = check_learns(subject.build(env))
    given, space = np.array(env.given), env.action_space
    assert (given >= space.low).all() and (given <= space.high).all()
    assert (given.std(axis=0) > 0.01).all()
    stored = np.asarray(model.replay_buffer.actions[:STEPS])[:, 0]
    back = space.low + 0.5 * (stored + 1.0) * (space.high - space.low)
    np.testing.assert_allclose(back, given, atol=1e-5)
    check_predicts(model)
