"""`finflow config show`, `diff`, `validate` and `export`, and what the zoo makes of the latter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from config_helpers import settled, writer
from config_strategies import valid_settings
from hypothesis import HealthCheck, given, settings
from torch import nn
from typer.testing import CliRunner

from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.config_arguments import plain_arguments
from finflow_sb3.config_export import own_yaml, zoo_yaml
from finflow_sb3.config_files import diff, resolve
from finflow_sb3.cqsac.cqsac import CQSAC
from finflow_sb3.zoo_values import call_text, parse_call, parse_yaml

SLOWER = settings(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
ZOO_TQC = """
Pendulum-v1:
  n_timesteps: !!float 2e4
  policy: 'MlpPolicy'
  learning_rate: lin_7.3e-4
  train_freq: [1, "episode"]
  normalize: "{'norm_obs': True, 'norm_reward': False}"
  env_wrapper:
    - some.wrappers.Skip:
        skip: 2
  policy_kwargs: "dict(net_arch=dict(pi=[64], qf=[64, 64]), activation_fn=nn.ReLU)"
  env_kwargs: {g: 9.81}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


def run(*args: object) -> Any:
    environ = {"COLUMNS": "200", "NO_COLOR": "1"}
    return CliRunner(env=environ).invoke(app, ["config", *(str(arg) for arg in args)])


# show


def test_show_says_where_each_value_was_written(write: Any) -> None:
    path = write("default:\n  run:\n    threads: 3\n")
    result = run("show", "-c", path, "-p", "fee:0.002", "--seed", 4, "--origin")
    lines = {line.split(":")[0].strip(): line for line in result.stdout.splitlines()}
    assert lines["threads"].endswith(f"# {path}:3: default")
    assert lines["fee"].endswith("# --param fee:0.002")
    assert lines["seed"].endswith("# --seed")
    plain = run("show", "-c", path, "-p", "fee:0.002", "--seed", 4).stdout
    assert parse_yaml(result.stdout, "x") == parse_yaml(plain, "x")
    assert "#" not in plain


def test_show_as_json(write: Any) -> None:
    path = write("default:\n  run:\n    threads: 3\n")
    plain = json.loads(run("show", "-c", path, "--json").stdout)
    assert (plain["run"]["threads"], plain["env"]) == (3, "finflow/US20-v0")
    both = json.loads(run("show", "-c", path, "--json", "--origin").stdout)
    assert both["settings"] == plain
    assert both["origins"]["run.threads"] == f"{path}:3: default"
    assert both["origins"]["iql.epochs"] == "zoo_configs/iql.yml:3: default"


def test_show_of_a_plain_algorithm_has_its_arguments(write: Any) -> None:
    path = write(ZOO_TQC, "tqc.yml")
    result = run("show", "--algo", "tqc", "-c", path, "--origin", "-p", "gamma:0.9")
    content = yaml.safe_load(result.stdout)
    assert content["algo"] == "tqc"
    entry = content["Pendulum-v1"]
    assert (entry["gamma"], entry["env_kwargs"]) == (0.9, {"g": 9.81})
    assert entry["env_wrapper"] == [{"some.wrappers.Skip": {"skip": 2}}]
    assert not {"iql", "cqsac", "collect"} & set(entry)
    assert f"# {path}:5: Pendulum-v1" in result.stdout


# export


@SLOWER
@given(valid_settings())
def test_zoo_export_reads_back_but_for_what_it_names(
    tmp_path_factory: pytest.TempPathFactory, drawn: Settings
) -> None:
    exported = zoo_yaml(drawn, "cqsac")
    path = tmp_path_factory.mktemp("zoo") / "cqsac.yml"
    path.write_text(exported.text, encoding="utf-8")
    (env,) = yaml.safe_load(exported.text)
    assert env == drawn.env
    back = resolve(algo="cqsac", files=[path], environ={})
    differing = {name for name, _, _ in diff(drawn, back)}
    if not drawn.env.startswith("finflow/"):
        differing = {name for name in differing if not name.startswith("env_kwargs.")}
    if drawn.cqsac.alpha_init is not None:
        assert back.cqsac.ent_coef == f"auto_{drawn.cqsac.alpha_init}"
        differing -= {"cqsac.ent_coef", "cqsac.alpha_init"}
    assert differing <= set(exported.left_out)


def as_the_zoo_reads(text: str) -> dict[str, Any]:
    """Arguments of the constructor as rl-baselines3-zoo makes them of its YAML, `eval` included."""
    (entry,) = yaml.safe_load(text).values()
    for name in ("n_timesteps", "n_envs", "env_kwargs", "normalize", "callback"):
        entry.pop(name, None)
    if isinstance(entry.get("policy_kwargs"), str):
        entry["policy_kwargs"] = eval(entry["policy_kwargs"], {"nn": nn})  # noqa: S307
    return entry


@pytest.mark.parametrize(
    "params",
    [
        [],
        ["policy:MlpPolicy", "cqsac.policy_kwargs:dict(net_arch=[8], activation_fn=nn.Tanh)"],
        ["cql_target_action_gap:1", "ent_coef:0.1", "cqsac.policy_kwargs:dict(dropout=0.1)"],
    ],
)
def test_cqsac_takes_what_the_zoo_would_pass(params: list[str]) -> None:
    params = [*params, "target_entropy:auto", "buffer_size:500"]
    arguments = as_the_zoo_reads(zoo_yaml(settled(params=params), "cqsac").text)
    model = CQSAC(env="Pendulum-v1", device="cpu", seed=0, **arguments)
    assert model.buffer_size == 500
    assert model.policy_kwargs == arguments["policy_kwargs"]


def test_the_command_names_what_the_zoo_cannot_carry(tmp_path: Path) -> None:
    target = tmp_path / "out" / "cqsac.yml"
    words = ["-p", "prices:mine.csv", "--seed", 3, "-p", "callback:[EvalCallback]"]
    result = run("export", "--zoo", "--output", target, *words)
    assert (result.exit_code, result.stdout) == (0, "")
    for part in (
        "market.prices = mine.csv",
        "run.seed = 3",
        "cqsac.target_entropy = seeded",
        "cqsac.cal_ql = True",
        "cqsac.offline_fraction = 0.25",
        "cqsac.callback = EvalCallback",
        f"wrote {target}",
    ):
        assert part in result.stderr
    assert run("validate", target).exit_code == 0
    assert [item.name for item in target.parent.iterdir()] == ["cqsac.yml"]
    assert run("export", "--zoo", "--quiet", *words).stdout == target.read_text()
    told = json.loads(run("export", "--zoo", "--json", *words).stdout)
    assert (told["yaml"], told["left_out"]["run.seed"]) == (target.read_text(), 3)


def test_zoo_export_of_callbacks_has_sb3s_paths() -> None:
    callback = {"StopTrainingOnMaxEpisodes": {"max_episodes": 3}}
    text = zoo_yaml(settled(flags={"cqsac": {"callback": (callback,)}}), "cqsac").text
    (entry,) = yaml.safe_load(text).values()
    path = "stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes"
    assert entry["callback"] == [{path: {"max_episodes": 3}}]


@pytest.mark.parametrize("zoo", [True, False])
def test_exports_of_plain_algorithms_read_back(write: Any, zoo: bool) -> None:
    path = write(ZOO_TQC, "tqc.yml")
    plain = plain_arguments("tqc", "Pendulum-v1", files=[path], environ={})
    found = resolve(algo="tqc", files=[path], environ={})
    text = zoo_yaml(found, "tqc", plain).text if zoo else own_yaml(found, "tqc", plain)
    again = write(text, "tqc.yml" if zoo else "any.yml")
    back = plain_arguments("tqc", "Pendulum-v1", files=[again], environ={})
    assert (back.arguments, back.unused) == (plain.arguments, plain.unused)
    assert resolve(algo="tqc", files=[again], environ={}) == found
    assert run("validate", again).exit_code == 0


def test_there_is_no_iql_in_the_zoo() -> None:
    result = run("export", "--zoo", "--algo", "iql")
    assert result.exit_code == 1
    assert "iql is no algorithm of Stable-Baselines3" in result.stderr
    assert run("export", "--algo", "iql").stdout == run("show", "--algo", "iql").stdout


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "dict()"),
        ({"net_arch": [8, 8], "a": None}, "dict(net_arch=[8, 8], a=None)"),
        ({"activation_fn": "ReLU", "x": {"y": 0.5}}, "dict(activation_fn=nn.ReLU, x=dict(y=0.5))"),
        ({"no word": True, "b": "it's"}, "{'no word': True, 'b': \"it's\"}"),
        ({"class": 1}, "{'class': 1}"),
    ],
)
def test_call_text(value: dict[str, Any], text: str) -> None:
    assert call_text(value) == text
    assert parse_call(text, "x") == value


# diff


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("packaged", "volatile", {"cqsac.cql_alpha": {"a": 5.0, "b": 10.0}}),
        ("stable", "volatile", {"env_kwargs.lambda_turn": {"a": 0.1, "b": 0.5}}),
        ("packaged", "my.yml", {"run.seed": {"a": 0, "b": 3}}),
    ],
)
def test_diff_takes_names(
    write: Any, monkeypatch: Any, tmp_path: Path, a: str, b: str, expected: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    write("default: {run: {seed: 3}}")
    found = json.loads(run("diff", a, b, "--json").stdout)
    assert expected.items() <= found.items()
    assert json.loads(run("diff", a, a, "--json").stdout) == {}


@pytest.mark.parametrize(("name", "part"), [("volatil", "'volatile'?"), ("x/y", "no such file")])
def test_diff_of_nothing(name: str, part: str) -> None:
    result = run("diff", name, "packaged")
    assert result.exit_code == 1
    assert part in result.stderr


# validate


def test_validate_as_json(write: Any) -> None:
    path = write("A-v0: {}\nB-v0: {cqsac: {n_timesteps: 10}}")
    found = json.loads(run("validate", path, "--json").stdout)
    assert found["environments"] == ["A-v0", "B-v0"]
    assert found["notes"][0].startswith("B-v0: cqsac.learning_starts: 100 of 10 steps")


def test_validate_says_what_nothing_acts_on(write: Any) -> None:
    result = run("validate", write(ZOO_TQC, "tqc.yml"))
    assert result.exit_code == 0
    assert "note: Pendulum-v1: nothing here acts on env_wrapper" in result.stderr
    assert "fine" in result.stderr


def test_validate_takes_the_owner_of_bare_keys(write: Any) -> None:
    path = write("default: {gamma: 0.5}")
    assert run("validate", path).exit_code == 1
    assert run("validate", path, "--algo", "iql").exit_code == 0
    assert json.loads(run("diff", path, "packaged", "--algo", "iql", "--json").stdout) == {
        "iql.gamma": {"a": 0.5, "b": 0.99}
    }
