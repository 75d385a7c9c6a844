"""Arguments of SB3's own algorithms, and the zoo's files for them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
import sb3_contrib
from config_helpers import one_line, settled, writer

from finflow_sb3.config_arguments import algorithm_arguments, plain_arguments
from finflow_sb3.config_files import resolve
from finflow_sb3.config_plain import PLAIN
from finflow_sb3.config_policies import CQSAC_POLICIES, policy_fields
from finflow_sb3.config_validate import validate
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.errors import ConfigError
from finflow_sb3.training.plain_model import CLASSES


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


# SB3's own algorithms


def test_algorithm_arguments(write: Any) -> None:
    text = """
    default: {batch_size: 8, gamma: 0.5, env_kwargs: {fee: 0.002}}
    finflow/US20-v0: {batch_size: 16, train_freq: [1, episode]}
    """
    path = write(text, "tqc.yml")
    sources: dict[str, Any] = {
        "files": [path],
        "params": ["learning_starts:1e2", "tqc.tau:0.5", "seed:3"],
        "environ": {"FINFLOW_GAMMA": "0.25", "FINFLOW_CQL_ALPHA": "1", "FINFLOW_LOG_DIR": "x"},
    }
    found = algorithm_arguments("tqc", **sources)
    assert (found["batch_size"], found["gamma"], found["tau"]) == (16, 0.25, 0.5)
    assert found["learning_starts"] == 100
    assert isinstance(found["learning_starts"], int)
    assert found["train_freq"] == [1, "episode"]
    assert found["policy_kwargs"] == {"n_critics": 2, "n_quantiles": 25}
    assert not {"env_kwargs", "seed", "log_dir", "cql_alpha"} & set(found)
    settings = resolve(algo="tqc", **sources)
    assert (settings.run.seed, settings.run.log_dir, settings.env_kwargs.fee) == (3, "x", 0.002)
    assert settings.cqsac == settled().cqsac


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"params": ["learning_start:1"]}, "'learning_starts'"),
        ({"params": ["cql_alpha:1"]}, "unknown setting of tqc 'cql_alpha'"),
        ({"params": ["batch_size:1.5"]}, "not a whole number"),
        ({"environ": {"FINFLOW_GAMMMA": "1"}}, "'gamma'"),
    ],
)
def test_refused_algorithm_arguments(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as error:
        algorithm_arguments("tqc", **{"environ": {}, **changes})
    assert part in one_line(error)


@pytest.mark.parametrize("algo", CLASSES)
def test_what_a_file_may_hold_is_what_the_class_takes(algo: str) -> None:
    taken = inspect.signature(CLASSES[algo]).parameters
    fields = {item.name: item for item in dataclasses.fields(PLAIN[algo])}
    besides = {"n_timesteps", "n_envs", "normalize", "env_kwargs", "noise_type", "noise_std"}
    assert set(fields) - besides <= set(taken)
    off_policy = {"action_noise", "replay_buffer_class", "replay_buffer_kwargs"}
    on_policy = {"rollout_buffer_class", "rollout_buffer_kwargs"}
    ours = {"env", "seed", "device", "tensorboard_log", "_init_setup_model"}
    assert set(taken) - set(fields) - ours in (off_policy, on_policy)
    for name in set(fields) - besides - {"policy", "policy_kwargs"}:
        assert fields[name].default == taken[name].default, name
    assert set(algorithm_arguments(algo, environ={})) <= set(fields)


def test_policies_of_files_are_those_of_the_class() -> None:
    assert set(CQSAC.policy_aliases) == set(CQSAC_POLICIES)
    for algo, cls in CLASSES.items():
        named = typing.get_args(typing.get_type_hints(PLAIN[algo])["policy"])
        assert set(cls.policy_aliases) == set(named), algo


@pytest.mark.parametrize("algo", CLASSES)
def test_what_policy_kwargs_may_hold_is_what_the_policy_takes(algo: str) -> None:
    """Classes stand in no file, and `use_sde` is an argument of the algorithm."""
    taken = inspect.signature(CLASSES[algo].policy_aliases["MlpPolicy"]).parameters
    fields = {item.name: item.default for item in dataclasses.fields(policy_fields(algo))}
    spaces = {"observation_space", "action_space", "lr_schedule", "use_sde"}
    classes = {"features_extractor_class", "optimizer_class"}
    assert set(taken) - set(fields) == (spaces | classes) & set(taken)
    assert set(fields) <= set(taken)
    for name in set(fields) - {"activation_fn"}:
        assert fields[name] == taken[name].default, name
    assert fields["activation_fn"] == taken["activation_fn"].default.__name__


def test_the_packaged_tqc_makes_a_model() -> None:
    """Every argument goes into the constructor as it stands."""
    arguments = algorithm_arguments("tqc", environ={}, params=["train_freq:2"])
    assert (arguments.pop("n_timesteps"), arguments.pop("n_envs")) == (252_000, 16)
    model = sb3_contrib.TQC(env="Pendulum-v1", device="cpu", **arguments)
    assert model.policy.critic.n_quantiles == 25  # type: ignore[union-attr]


# Forms of the zoo's own files

ZOO = """
default:
  n_timesteps: !!float 1e6
  policy: 'MlpPolicy'

SwingBulletEnv-v0: &swing-defaults
  env_wrapper:
    - sb3_contrib.common.wrappers.TimeFeatureWrapper
    - some.wrappers.Delayed:
        delay: 10
  n_timesteps: !!float 2e6
  policy: 'MlpPolicy'
  learning_rate: lin_7.3e-4
  buffer_size: 300000
  ent_coef: 'auto'
  train_freq: [1, "episode"]
  gradient_steps: -1
  use_sde: True
  sde_sample_freq: 64
  policy_kwargs: "dict(log_std_init=-3, net_arch=[400, 300])"

HopBulletEnv-v0:
  <<: *swing-defaults
  learning_rate: !!float 3e-4
  frame_stack: 4
  vec_env_wrapper: some.vec.Wrapper
  monitor_kwargs: "dict(info_keywords=('is_success',))"
  normalize: "{'norm_obs': True, 'norm_reward': False}"
  ent_coef: auto_0.5

Reach-v1:
  n_timesteps: 2e4
  policy: 'MultiInputPolicy'
  n_envs: 4
  normalize: True
  replay_buffer_class: HerReplayBuffer
  replay_buffer_kwargs: "dict(
    goal_selection_strategy='future',
    n_sampled_goal=4,
  )"
  policy_kwargs: "dict(net_arch=dict(pi=[64], qf=[64, 64]), activation_fn=nn.ReLU, n_critics=1)"
  noise_type: 'normal'
  noise_std: 0.1
  eval_freq: 5000
  callback: some.callbacks.Theirs
  env_kwargs:
    reward: dense
"""

SWING = {
    "n_timesteps": 2_000_000,
    "policy": "MlpPolicy",
    "learning_rate": "lin_7.3e-4",
    "buffer_size": 300_000,
    "ent_coef": "auto",
    "train_freq": [1, "episode"],
    "gradient_steps": -1,
    "use_sde": True,
    "sde_sample_freq": 64,
    "policy_kwargs": {"log_std_init": -3, "net_arch": [400, 300]},
}
HOP = {
    **SWING,
    "learning_rate": 3e-4,
    "normalize": {"norm_obs": True, "norm_reward": False},
    "ent_coef": "auto_0.5",
}
REACH = {
    "n_timesteps": 20_000,
    "policy": "MultiInputPolicy",
    "n_envs": 4,
    "normalize": True,
    "policy_kwargs": {
        "net_arch": {"pi": [64], "qf": [64, 64]},
        "activation_fn": "ReLU",
        "n_critics": 1,
    },
    "env_kwargs": {"reward": "dense"},
    "noise_type": "normal",
    "noise_std": 0.1,
}


@pytest.mark.parametrize("algo", ["sac", "tqc"])
@pytest.mark.parametrize(
    ("env", "expected"),
    [("SwingBulletEnv-v0", SWING), ("HopBulletEnv-v0", HOP), ("Reach-v1", REACH)],
)
def test_entries_of_the_zoo_give_its_arguments(
    write: Any, algo: str, env: str, expected: dict[str, Any]
) -> None:
    """Nothing that is packaged for portfolios lies beneath them."""
    path = write(ZOO, f"{algo}.yml")
    assert algorithm_arguments(algo, env, files=[path], environ={}) == expected
    assert resolve(env, algo=algo, files=[path], environ={}).env == env


def test_other_keys_of_the_zoo_are_kept_and_noted(write: Any) -> None:
    path = write(ZOO, "sac.yml")
    kept = plain_arguments("sac", "Reach-v1", files=[path], environ={}).unused
    assert kept == {
        "replay_buffer_class": "HerReplayBuffer",
        "replay_buffer_kwargs": {"goal_selection_strategy": "future", "n_sampled_goal": 4},
        "eval_freq": 5000,
        "callback": "some.callbacks.Theirs",
    }
    validated = validate(path)
    assert validated.environments == ("SwingBulletEnv-v0", "HopBulletEnv-v0", "Reach-v1")
    noted = {note.split(":")[0]: note for note in validated.notes}
    for name in ("env_wrapper", "frame_stack", "vec_env_wrapper", "monitor_kwargs"):
        assert name in noted["HopBulletEnv-v0"]
    assert set(noted) == set(validated.environments)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tau: 3", ["tqc.tau", "out of range"]),
        ("policy: MlpPolcy", ["'MlpPolicy'?"]),
        ("train_freq: [1, day]", ["train_freq", "step|episode"]),
        ("train_freq: 0", ["train_freq"]),
        ("policy_kwargs: {n_quantile: 3}", ["policy_kwargs", "'n_quantiles'?"]),
        ("policy_kwargs: {net_arch: [0]}", ["net_arch", "width"]),
        ("policy_kwargs: {net_arch: {pi: [8]}}", ["net_arch", "pi and qf"]),
        ("policy_kwargs: {n_quantiles: 2}", ["top_quantiles_to_drop_per_net", "n_quantiles − 1"]),
        ("target_entropy: seeded", ["CQSAC"]),
        ("seed: 3", ["'seed'", "under 'run'"]),
        ("env_wraper: x", ["'env_wrapper'?"]),
        ("env_wrapper: .nan", ["env_wrapper", "finite"]),
        ("use_sde: maybe", ["use_sde", "true or false"]),
        ("noise_std: 0.1", ["tqc.noise_std", "no effect without noise_type"]),
        ("noise_type: normal", ["tqc.noise_type", "no effect without noise_std"]),
    ],
)
def test_refused_entries(write: Any, text: str, parts: list[str]) -> None:
    path = write(f"default:\n  {text}")
    with pytest.raises(ConfigError) as error:
        algorithm_arguments("tqc", files=[path], environ={})
    for part in ["my.yml:2: default", *parts]:
        assert part in one_line(error)
