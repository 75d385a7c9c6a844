"""SB3's own algorithms on the market: determinism, what is kept, what is refused, the command."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from market_checkers import check_plain_training, tiny_arguments
from markets import small_market
from pipeline_fixtures import runs_in, tiny_settings
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.cli.console import set_quiet
from finflow_sb3.config import EnvSettings, RunSettings, Settings
from finflow_sb3.config_arguments import PlainArguments, checked_arguments, plain_arguments
from finflow_sb3.config_export import zoo_yaml
from finflow_sb3.config_files import resolve
from finflow_sb3.cqsac.replay import PortfolioReplayBuffer
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.plain_training import train_plain
from finflow_sb3.results import Watch
from finflow_sb3.resuming import continue_training, resume
from finflow_sb3.training.plain_model import CLASSES, build_plain, plain_policy
from finflow_sb3.training.trained import load_policy


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return tiny_settings(tmp_path)


class Remarks(Watch):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def remark(self, text: str) -> None:
        self.heard.append(text)

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "training":
            self.steps.append((done, total))


@pytest.mark.parametrize("algo", CLASSES)
def test_every_algorithm_on_the_market(algo: str, settings: Settings) -> None:
    check_plain_training(algo, settings)


def test_another_seed_gives_other_numbers(settings: Settings) -> None:
    one, other = (
        train_plain(settings.replace(run={"seed": seed}), "td3", tiny_arguments("td3"))
        for seed in (0, 1)
    )
    assert one.validation != other.validation


# Arguments


@pytest.mark.parametrize("algo", CLASSES)
def test_the_packaged_arguments_make_a_model_and_survive_the_zoo(algo: str, tmp_path: Path) -> None:
    given = plain_arguments(algo, environ={})
    full = checked_arguments(algo, given.arguments)
    market = small_market()
    model: Any = build_plain(algo, full, market, EnvSettings(), RunSettings(device="cpu"))
    assert type(model) is CLASSES[algo]
    assert model.n_envs == 16
    path = tmp_path / f"{algo}.yml"
    path.write_text(zoo_yaml(resolve(algo=algo, environ={}), algo, given).text, "utf-8")
    assert plain_arguments(algo, files=[path], environ={}).arguments == given.arguments


def model_of(algo: str, **changes: Any) -> Any:
    full = checked_arguments(algo, {**tiny_arguments(algo), "n_envs": 2, **changes})
    return build_plain(algo, full, small_market(), EnvSettings(), RunSettings(device="cpu"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("normal", NormalActionNoise), ("ornstein-uhlenbeck", OrnsteinUhlenbeckActionNoise)],
)
@pytest.mark.parametrize("algo", ["td3", "ddpg"])
def test_noise_of_the_zoo_is_added_to_actions(algo: str, name: str, kind: type) -> None:
    model = model_of(algo, noise_type=name, noise_std=0.3)
    assert type(model.action_noise) is kind
    np.testing.assert_array_equal(model.action_noise._sigma, np.full(model.action_space.shape, 0.3))
    assert model_of(algo).action_noise is None


@pytest.mark.parametrize("n_steps", [1, 3])
def test_returns_of_several_steps_are_the_buffers(n_steps: int) -> None:
    model = model_of("sac", n_steps=n_steps, gamma=0.9)
    assert isinstance(model.replay_buffer, PortfolioReplayBuffer)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (n_steps, 0.9)
    model.learn(400)
    discounts = model.replay_buffer.sample(256).discounts
    if n_steps == 1:
        assert discounts is None
    else:
        rounded = np.unique(np.round(discounts.numpy().astype(float), 4))
        assert rounded.tolist() == [0.729, 0.81, 0.9]


def test_schedules_reach_the_constructor() -> None:
    model = model_of("ppo", batch_size=20, learning_rate="lin_1e-3", clip_range="lin_0.2")
    assert model.lr_schedule(0.5) == pytest.approx(5e-4)
    assert model.clip_range(0.5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("algo", "arguments", "parts"),
    [
        ("sac", {"learning_start": 3}, ["unknown setting of sac", "'learning_starts'?"]),
        ("sac", {"gamma": 3}, ["sac.gamma", "out of range"]),
        ("sac", {"normalize": True}, ["sac.normalize", "set it to false"]),
        ("ppo", {"policy": "CnnPolicy"}, ["ppo.policy", "use MlpPolicy"]),
        ("td3", {"noise_std": 0.2, "noise_type": None}, ["td3.noise_std", "noise_type"]),
        ("ppo", {"noise_std": 0.2}, ["unknown setting of ppo"]),
        ("a2c", {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [8]}}}, ["net_arch", "pi and vf"]),
        ("tqc", {"top_quantiles_to_drop_per_net": 25}, ["top_quantiles_to_drop_per_net"]),
        ("sac", {"optimize_memory_usage": True}, ["optimize_memory_usage"]),
        ("sac", {"train_freq": [1, "episode"]}, ["sac.train_freq", "n_envs:1"]),
        ("sac", {"policy_kwargs": {"n_critics": 3, "share_features_extractor": 1}}, ["true"]),
        ("sac", {"env_kwargs": {"fee": 0.0}}, ["sac", "env_kwargs"]),
        ("dqn", {}, ["algo", "'dqn'", "sac"]),
        (
            "sac",
            PlainArguments({}, {"frame_stack": 4}, {"frame_stack": "my.yml:3"}),
            ["my.yml:3: nothing acts on frame_stack"],
        ),
    ],
)
def test_refused_arguments(
    settings: Settings, tmp_path: Path, algo: str, arguments: Any, parts: list[str]
) -> None:
    if isinstance(arguments, dict) and algo in CLASSES:
        arguments = {**tiny_arguments(algo), **arguments}
    with pytest.raises(ConfigError) as error:
        train_plain(settings, algo, arguments)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
    assert runs_in(tmp_path / "logs") == []


# Length, and ends that come before it


@pytest.mark.parametrize(
    ("algo", "asked", "done"), [("ppo", 700, 640), ("ppo", 10, 160), ("a2c", 730, 800)]
)
def test_on_policy_algorithms_do_the_nearest_whole_rollouts(
    settings: Settings, algo: str, asked: int, done: int
) -> None:
    watch = Remarks()
    arguments = {**tiny_arguments(algo), "n_timesteps": asked}
    trained = train_plain(settings, algo, arguments, watch=watch)
    assert (trained.steps, trained.finished) == (done, True)
    assert watch.steps[-1] == (done, done)
    assert watch.heard == [
        f"{algo.upper()} learns from whole rollouts of 160 steps: {done} steps are done in the "
        f"place of {asked}."
    ]


@pytest.mark.parametrize(("algo", "at"), [("sac", 208), ("ppo", 320)])
@pytest.mark.parametrize("how", ["stop_at", "signal"])
def test_a_stop_keeps_the_best_so_far(settings: Settings, algo: str, at: int, how: str) -> None:
    class Stopping(Remarks):
        def progress(self, stage: str, done: int, total: int) -> None:
            if how == "signal" and stage == "training" and done == at:
                signal.raise_signal(signal.SIGINT)

    stop_at = at - 7 if how == "stop_at" else None
    trained = train_plain(settings, algo, tiny_arguments(algo), stop_at, Stopping())
    assert (trained.steps, trained.finished, trained.stopped) == (at, False, None)
    assert load_policy(trained.run).facts["validation"]["sharpe"] == trained.best
    status = json.loads((trained.run / "status.json").read_text())
    assert (status["state"], status["stage"]) == ("stopped", "training")


@pytest.mark.parametrize("algo", ["td3", "ppo"])
def test_weights_that_are_not_finite_end_the_run(
    settings: Settings, algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: Any, *_: Any, **__: Any) -> None:
        for parameter in self.policy.parameters():
            parameter.data.fill_(float("nan"))

    monkeypatch.setattr(CLASSES[algo], "train", spoil)
    trained = train_plain(settings, algo, tiny_arguments(algo))
    assert trained.stopped == "weights of the networks are not finite"
    assert not trained.finished
    assert load_policy(trained.run).facts["step"] == 0


def test_without_a_best_the_last_policy_is_kept(settings: Settings) -> None:
    settings = settings.replace(run={"save_best": False})
    trained = train_plain(settings, "td3", tiny_arguments("td3"))
    assert not (trained.run / "best").exists()
    policy = load_policy(trained.run)
    assert (policy.facts["step"], policy.facts["validation"]) == (640, trained.validation)


# Reading back


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_state_dependent_exploration_is_read_back(settings: Settings, algo: str) -> None:
    trained = train_plain(settings, algo, {**tiny_arguments(algo), "use_sde": True})
    actions = load_policy(trained.run).act(np.zeros((3, _observed(trained.run)), np.float32))
    assert np.isfinite(actions).all()
    assert np.abs(actions).max() <= 1.0


def _observed(run: Path) -> int:
    return load_policy(run).layout.size


@pytest.mark.parametrize(
    "kwargs", [{"optimizer_class": "os.system"}, {"net_arch": [-1]}, {"activation_fn": "eval"}]
)
def test_a_description_that_no_policy_has_is_refused(kwargs: dict[str, Any]) -> None:
    head = {"algo": "sac", "policy": "MlpPolicy", "policy_kwargs": kwargs, "use_sde": False}
    model = model_of("sac")
    with pytest.raises(ConfigError):
        plain_policy(head, model.observation_space, model.action_space)


# The command


@pytest.fixture
def loud() -> Any:
    yield
    set_quiet(False)


def command(*words: Any) -> Any:
    return CliRunner(env={"NO_COLOR": "1"}).invoke(app, [str(word) for word in words])


def test_train_by_command_evaluates_and_cannot_be_resumed(tmp_path: Path, loud: Any) -> None:
    tiny_settings(tmp_path)
    words = ["-c", tmp_path / "tiny.yml", "-p", "n_timesteps:320", "-p", "learning_starts:100"]
    result = command("train", "--algo", "crossq", *words, "--batch-size", 16, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["pretrained"], found["finetuned"]["steps"]) == (None, 320)
    assert found["evaluated"]["policy"] == "crossq"
    assert {"crossq", "equal_weight"} <= set(found["evaluated"]["measures"])
    run = Path(found["finetuned"]["run"])
    for go_on in (resume, continue_training):
        with pytest.raises(ArtefactError, match="CrossQ, which keeps no checkpoints"):
            go_on(run)
    for verb in ("finetune", "train"):
        refused = command(verb, "--resume", run)
        assert refused.exit_code == 1
        assert f"finflow train --algo crossq --config {run}/config.yml" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "online"],
        ["--iql-epochs", "3"],
        ["--sac-episodes", "3"],
        ["--offline-algo", "iql"],
        ["--dataset", "d.h5"],
        ["--behaviour", "a:b"],
        ["--resume", "run"],
        ["--mixed-precision"],
        ["--no-gradient-checkpointing"],
    ],
)
def test_flags_without_effect_are_refused(words: list[str], tmp_path: Path, loud: Any) -> None:
    result = command("train", "--algo", "ppo", *words, "--log-dir", tmp_path)
    assert result.exit_code == 1
    flag = words[0].replace("--no-", "--")
    assert flag in result.stderr
    assert "leave it out" in result.stderr or "leave out" in result.stderr
    assert runs_in(tmp_path) == []
