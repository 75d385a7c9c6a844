"""How values are read, without running them, and that they are written so that they read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from config_helpers import one_line, settled, writer
from config_strategies import valid_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finflow_sb3.config import Settings
from finflow_sb3.config_files import (
    DEFAULT_ENV,
    only_environment,
    plain_yaml,
    read_config,
    resolve,
    write_config,
)
from finflow_sb3.config_keys import SECTIONS
from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.zoo_values import clean, parse_call, parse_yaml


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


# Values


@pytest.mark.parametrize("text", ["1e-3", "!!float 1e-3", "'1e-3'", "0.001", "1.0E-3", "+1e-3"])
def test_numbers(write: Any, text: str) -> None:
    s = settled(files=[write(f"default: {{learning_rate: {text}, env_kwargs: {{fee: {text}}}}}")])
    assert s.cqsac.learning_rate == 0.001
    assert s.env_kwargs.fee == 0.001


@pytest.mark.parametrize("text", ["lin_3e-4", "lin_0.001", "lin_1"])
def test_schedules_stay_text(text: str) -> None:
    assert clean("learning_rate", text, "x") == text


@pytest.mark.parametrize("value", ["lin_", "lin_-1", "exp_1e-3", -1.0, True, None, "nan", "inf"])
def test_refused_schedules(value: Any) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        clean("learning_rate", value, "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "dict(net_arch=[256, 256], activation_fn=nn.ReLU)",
            {"net_arch": [256, 256], "activation_fn": "ReLU"},
        ),
        ("dict(net_arch=dict(pi=(8, 8), qf=[16]))", {"net_arch": {"pi": [8, 8], "qf": [16]}}),
        ("{'log_std_init': -3, 'x': 1e-3}", {"log_std_init": -3, "x": 0.001}),
        ("dict(a=None, b=True, c='t', d=[])", {"a": None, "b": True, "c": "t", "d": []}),
        ("dict(activation_fn=th.nn.Tanh)", {"activation_fn": "Tanh"}),
        ("dict(activation_fn=torch.nn.GELU)", {"activation_fn": "GELU"}),
        ("dict()", {}),
    ],
)
def test_parse_call(text: str, expected: Any) -> None:
    assert parse_call(text, "x") == expected
    assert clean("policy_kwargs", text, "x") == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dict(a=__import__('os').getcwd())", "getcwd"),
        ("dict(a=open('f'))", "open('f')"),
        ("dict(activation_fn=nn.Softplus)", "nn.Softplus"),
        ("dict(activation_fn=os.ReLU)", "os.ReLU"),
        ("dict(activation_fn=nn.ReLU())", "nn.ReLU()"),
        ("dict(a=x)", "'x'"),
        ("dict(a=1 + 1)", "1 + 1"),
        ("dict(a=-True)", "-True"),
        ("dict(a=b'x')", "b'x'"),
        ("dict(**{'a': 1})", "**"),
        ("{**{'a': 1}}", "**"),
        ("{1: 2}", "key '1'"),
        ("{'a': 1, 'a': 2}", "'a' stands twice"),
        ("dict([('a', 1)])", "dict"),
        ("[x for x in (1,)]", "for x"),
        ("dict(", "not a mapping"),
        ("(" * 5000, "not a mapping"),
    ],
)
def test_parse_call_evaluates_nothing(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_call(text, "x")
    assert part in one_line(error)


@pytest.mark.parametrize("name", ["ReLU", "nn.ReLU", "th.nn.ReLU"])
def test_activations_in_mappings(name: str) -> None:
    assert clean("policy_kwargs", {"activation_fn": name}, "x") == {"activation_fn": "ReLU"}


def test_policy_kwargs_are_replaced_whole(write: Any) -> None:
    path = write("default: {policy_kwargs: {critic_hidden: [8]}}")
    assert settled(files=[path]).cqsac.policy_kwargs == {"critic_hidden": [8]}


def refusal(parse: Any, text: str) -> str:
    try:
        parse(text, "x")
    except ConfigError as error:
        return str(error)
    return ""


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    for parse in (parse_yaml, parse_call):
        assert "\n" not in refusal(parse, text)


# Round trips


@settings(
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    deadline=None,
)
@given(valid_settings())
def test_resolved_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, drawn: Settings
) -> None:
    """As `-c config.yml` of a run reads it, whatever command it is given to."""
    path = tmp_path_factory.mktemp("config") / "config.yml"
    write_config(drawn, path)
    assert read_config(path) == drawn
    for algo in ("iql", "td3bc", "cqsac"):
        assert resolve(algo=algo, files=[path], environ={}) == drawn
    assert list(path.parent.iterdir()) == [path]
    # Any other reader of YAML sees the same values.
    assert yaml.safe_load(path.read_text("utf-8"))[drawn.env]["run"]["log_dir"] == drawn.run.log_dir


def test_plain_yaml_is_whole() -> None:
    content = yaml.safe_load(plain_yaml(settled()))
    assert list(content) == [DEFAULT_ENV]
    assert list(content[DEFAULT_ENV]) == list(SECTIONS)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "config.yml"
    write_config(settled(), path)
    before = path.read_text()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("finflow_sb3.config_files.os.replace", fail)
    with pytest.raises(StorageError, match="disk full"):
        write_config(settled(params=["seed:1"]), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_read_config_ignores_variables_and_wants_one_environment(
    write: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FINFLOW_SEED", "5")
    assert read_config(write("A-v0: {run: {threads: 2}}")) == settled(
        None, env="A-v0", flags={"run": {"threads": 2}}
    )
    with pytest.raises(ConfigError, match="A-v0, B-v0"):
        read_config(write("A-v0: {}\nB-v0: {}"))


def test_only_environment(write: Any) -> None:
    one, two = write("A-v0: {}\ndefault: {}"), write("B-v0: {}", "b.yml")
    assert only_environment([one]) == "A-v0"
    assert only_environment([one, two]) is None
    assert only_environment([]) is None
