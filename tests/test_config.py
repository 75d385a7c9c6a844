from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finflow_sb3.config import (
    CollectSettings,
    CQSACSettings,
    EnvSettings,
    IQLSettings,
    MarketSettings,
    RunSettings,
    Settings,
)
from finflow_sb3.config_arguments import algorithm_arguments
from finflow_sb3.config_files import (
    DEFAULT_ENV,
    diff,
    only_environment,
    plain_yaml,
    read_config,
    resolve,
    write_config,
)
from finflow_sb3.config_keys import SECTIONS
from finflow_sb3.errors import ConfigError, StorageError
from finflow_sb3.zoo_values import clean, parse_call, parse_yaml

TQC_NAMES = (
    "learning_rate",
    "buffer_size",
    "learning_starts",
    "batch_size",
    "gamma",
    "tau",
    "gradient_steps",
    "policy_kwargs",
    "top_quantiles_to_drop_per_net",
    "train_freq",
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def _write(text: str, name: str = "my.yml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def settled(algo: str | None = "cqsac", **changes: Any) -> Settings:
    return resolve(algo=algo, **{"environ": {}, **changes})


def one_line(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Precedence


def test_packaged_files_feed_both_sections() -> None:
    settings = settled(None)
    assert settings.env == "finflow/US20-v0"
    assert settings.cqsac.policy_kwargs["n_quantiles"] == 32
    assert settings.cqsac.backup_entropy is False  # the dataclass says True
    assert settings.iql.batch_size == 512


def test_each_source_overrides_the_next(write: Any) -> None:
    sources: dict[str, dict[str, Any]] = {
        "preset": {"preset": "volatile"},
        "files": {"files": [write("default: {cql_alpha: 7}", "a_cqsac.yml")]},
        "environ": {"environ": {"FINFLOW_CQL_ALPHA": "8"}},
        "params": {"params": ["cql_alpha:9"]},
        "flags": {"flags": {"cqsac": {"cql_alpha": 11}}},
    }
    changes: dict[str, Any] = {}
    for expected, source in zip((10.0, 7.0, 8.0, 9.0, 11.0), sources.values(), strict=True):
        changes |= source
        assert settled(**changes).cqsac.cql_alpha == expected
    assert settled(**changes).env_kwargs.lambda_cvar == 10.0  # the preset's other values stay


@pytest.mark.parametrize(
    ("preset", "expected"), [("volatile", (1.0, 10.0, 10.0, 0.5)), ("stable", (0.5, 5.0, 5.0, 0.1))]
)
def test_presets(preset: str, expected: tuple[float, ...]) -> None:
    s = settled(preset=preset)
    found = (s.cqsac.alpha_init, s.cqsac.cql_alpha, s.env_kwargs.lambda_cvar)
    assert (*found, s.env_kwargs.lambda_turn) == expected


def test_environment_overrides_default_and_later_file_the_earlier(write: Any) -> None:
    first = write("finflow/US20-v0: {run: {seed: 1}}\ndefault: {run: {seed: 2, threads: 3}}")
    second = write("default: {run: {threads: 4}}", "second.yml")
    run = settled(files=[first, second]).run
    assert (run.seed, run.threads) == (1, 4)
    assert settled(env="finflow/Portfolio-v0", files=[first]).run.seed == 2


def test_extends(write: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("default: {run: {seed: 1, threads: 2}, iql: {gamma: 0.5}}", "base.yml")
    write("extends: ../base.yml\nfinflow/US20-v0: {run: {threads: 3}}", "sub/middle.yml")
    top = write("extends: middle.yml\ndefault: {run: {log_dir: here}}", "sub/top.yml")
    s = settled(files=[top])
    assert (s.run.seed, s.run.threads, s.run.log_dir, s.iql.gamma) == (1, 3, "here", 0.5)


def test_extends_in_a_ring_is_refused(write: Any) -> None:
    write("extends: b.yml", "a.yml")
    path = write("extends: a.yml", "b.yml")
    with pytest.raises(ConfigError, match=r"b\.yml -> a\.yml -> b\.yml"):
        settled(files=[path])


# Keys


@pytest.mark.parametrize(
    ("name", "text", "section"),
    [
        ("iql.yml", "default: {gamma: 0.5}", "iql"),
        ("cqsac.yml", "default: {gamma: 0.5}", "cqsac"),
        ("any.yml", "algo: iql\ndefault: {gamma: 0.5}", "iql"),
        ("any.yml", "default: {gamma: 0.5}", "cqsac"),
        ("any.yml", "default: {iql: {gamma: 0.5}}", "iql"),
    ],
)
def test_flat_keys_belong_to_the_algorithm_of_the_file(
    write: Any, name: str, text: str, section: str
) -> None:
    changed = diff(settled(), settled(files=[write(text, name)]))
    assert changed == [(f"{section}.gamma", 0.99, 0.5)]


@pytest.mark.parametrize(
    ("algo", "param", "section", "name", "value"),
    [
        ("cqsac", "batch_size:64", "cqsac", "batch_size", 64),
        ("iql", "batch_size:64", "iql", "batch_size", 64),
        ("iql", "cql_alpha:1e1", "cqsac", "cql_alpha", 10.0),
        (None, "iql.expectile: 0.8", "iql", "expectile", 0.8),
        ("sac", "seed:4", "run", "seed", 4),
        ("cqsac", "prices:yahoo:AAPL,MSFT", "market", "prices", "yahoo:AAPL,MSFT"),
        ("cqsac", "log_dir:2024", "run", "log_dir", "2024"),
        ("cqsac", "train_end:2015-12-31", "market", "train_end", "2015-12-31"),
        ("cqsac", "behaviours:[anchor, mixture]", "collect", "behaviours", ("anchor", "mixture")),
        ("cqsac", "n_timesteps:1e6", "cqsac", "n_timesteps", 1_000_000),
        ("cqsac", "cqsac.policy_kwargs:dict(net_arch=[8])", "cqsac", "policy_kwargs", None),
    ],
)
def test_params(algo: str | None, param: str, section: str, name: str, value: Any) -> None:
    changed = settled(algo, params=[param])
    expected = {"net_arch": [8]} if value is None else value
    assert getattr(getattr(changed, section), name) == expected
    assert [key for key, _, _ in diff(settled(algo), changed)] == [f"{section}.{name}"]


def test_variables() -> None:
    environ = {
        "FINFLOW_CQL_ALPHA": "10",
        "FINFLOW_IQL__EXPECTILE": "0.8",
        "FINFLOW_ENV_KWARGS__FEE": "1e-3",
        "FINFLOW_SEED": "",  # as good as not set
        "FINFLOW_CACHE_DIR": "/somewhere",
        "FINFLOW_DEBUG": "1",
        "HOME": "/somewhere",
    }
    s = settled(environ=environ)
    assert (s.cqsac.cql_alpha, s.iql.expectile, s.env_kwargs.fee) == (10.0, 0.8, 0.001)
    assert s.run.seed == 0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"params": ["cql_alpa:1"]}, ["--param cql_alpa:1", "'cql_alpha'"]),
        ({"params": ["iql.expectil:1"]}, ["'expectile'"]),
        ({"params": ["iqll.expectile:1"]}, ["'iqll'", "'iql'"]),
        ({"params": ["zzzzzz:1"]}, ["'zzzzzz'", "finflow config show"]),
        ({"params": ["cql_alpha"]}, ["key:value"]),
        ({"params": ["cql_alpha:[1"]}, ["--param cql_alpha:[1"]),
        ({"params": ["n_envs:4"], "algo": "iql"}, ["collect.n_envs", "cqsac.n_envs"]),
        ({"environ": {"FINFLOW_CQL_ALPA": "1"}}, ["FINFLOW_CQL_ALPA", "'cql_alpha'"]),
        ({"environ": {"FINFLOW_SEED": "one"}}, ["FINFLOW_SEED", "run.seed", "'one'"]),
        ({"algo": "cqsca"}, ["'cqsca'", "'cqsac'"]),
        ({"preset": "volatil"}, ["'volatil'", "'volatile'"]),
        ({"flags": {"run": {"seed": -1}}}, ["--seed", "out of range"]),
        ({"params": ["learning_rate:cos_1e-3"]}, ["cos_1e-3", "lin_3e-4"]),
        ({"params": [f"fee:{'9' * 400}"]}, ["fee", "too large"]),
    ],
)
def test_refused_overrides(changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settled(**changes)
    for part in parts:
        assert part in one_line(error)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("default: {cql_alpa: 1}", ["default", "'cql_alpa'", "'cql_alpha'"]),
        ("default: {seed: 1}", ["'seed'", "under 'run'"]),
        ("default: {run: {sed: 1}}", ["'sed'", "'seed'"]),
        ("default: {run: 3}", ["run", "not a mapping"]),
        ("default: {gamma: 2}", ["default", "cqsac.gamma", "out of range"]),
        ("default: {gamma: [1]}", ["cqsac.gamma"]),
        ("default: {gamma: 0.5, cqsac: {gamma: 0.6}}", ["'gamma'", "both"]),
        ("defualt: {gamma: 0.5}", ["'defualt'", "'default'"]),
        ("gamma: 0.5", ["'gamma'", "under 'default:'"]),
        ("default: {gamma: 0.5}\ndefault: {gamma: 0.6}", ["line 2", "'default' stands twice"]),
        ("default:\n  gamma: 0.5\n  gamma: 0.6", ["line 3", "'gamma' stands twice"]),
        ("default: {3: 1}", ["key 3"]),
        ("finflow/Other-v0: {gamma: 0.5}", ["finflow/US20-v0", "finflow/Other-v0", "--env"]),
        ("algo: iq\ndefault: {}", ["'iq'", "'iql'"]),
        ("algo: sac\ndefault: {}", ["is for sac", "cqsac"]),
        ("default: [", ["line 1"]),
        ("- 1", ["not a mapping"]),
        ("extends: nowhere.yml", ["nowhere.yml", "no such file"]),
        ("extends: [a.yml]", ["extends"]),
        ("default: !!python/object/apply:os.system ['exit 1']", ["python/object"]),
        ("default: {policy_kwargs: \"dict(a=print('x'))\"}", ["policy_kwargs", "print('x')"]),
        ("default: &a {policy_kwargs: *a}", ["my.yml"]),
    ],
)
def test_refused_files(write: Any, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settled(files=[write(text)])
    for part in ["my.yml", *parts]:
        assert part in one_line(error)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00"])
def test_refused_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "my.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"my\.yml"):
        settled(files=[path])


def test_merge_keys_and_templates_of_the_zoo(write: Any) -> None:
    text = """
    deep-defaults: &deep {gamma: 0.5, tau: 0.1}
    more-defaults: &more {<<: *deep, tau: 0.2}
    finflow/US20-v0: {<<: *more, gamma: 0.6}
    """
    cqsac = settled(files=[write(text)]).cqsac
    assert (cqsac.gamma, cqsac.tau) == (0.6, 0.2)


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
    path = write("default: {policy_kwargs: {net_arch: [8]}}")
    assert settled(files=[path]).cqsac.policy_kwargs == {"net_arch": [8]}


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

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=12) | st.sampled_from(
    [
        *("1e-3", "null", "yes", "2015-12-31", "0x1", "1_000", "lin_3e-4", "~", "", "#", "a: b"),
        *("- a", " a ", "a\n", "\x85", "a\u2028b", "한국 " * 60),
    ]
)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | finite | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts.filter(lambda key: key != "activation_fn"), inner, max_size=3)
    ),
    max_leaves=6,
)
settings_ = st.builds(
    Settings,
    env=st.sampled_from(["finflow/US20-v0", "finflow/Portfolio-v0", "Pendulum-v1"]),
    market=st.builds(MarketSettings, prices=texts, train_end=st.none() | texts),
    env_kwargs=st.builds(
        EnvSettings,
        fee=st.floats(0, 0.2),
        max_turnover=st.none() | st.floats(0, 2),
        reward_baseline=st.sampled_from(["equal_weight", "none"]),
    ),
    collect=st.builds(CollectSettings, behaviours=st.lists(texts, max_size=3).map(tuple)),
    iql=st.builds(IQLSettings, policy_kwargs=st.dictionaries(st.just("a"), trees)),
    cqsac=st.builds(
        CQSACSettings,
        learning_rate=st.sampled_from([1e-5, 0.001, "lin_3e-4"]),
        ent_coef=st.sampled_from(["auto", "auto_0.1", "0.1", 0.1]),
        policy_kwargs=st.dictionaries(st.just("a"), trees),
    ),
    run=st.builds(RunSettings, log_dir=texts, seed=st.integers(0, 2**31 - 1)),
)


@given(settings_)
def test_resolved_configuration_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> None:
    path = tmp_path_factory.mktemp("config") / "config.yml"
    write_config(settings, path)
    assert read_config(path) == settings
    assert resolve(settings.env, algo="iql", files=[path], environ={}) == settings
    assert list(path.parent.iterdir()) == [path]
    # Any other reader of YAML sees the same values.
    assert yaml.safe_load(path.read_text("utf-8"))[settings.env]["run"]["log_dir"] == (
        settings.run.log_dir
    )


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
    found = algorithm_arguments("tqc", known=TQC_NAMES, **sources)
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
        algorithm_arguments("tqc", known=TQC_NAMES, **{"environ": {}, **changes})
    assert part in one_line(error)


@pytest.mark.parametrize("algo", ["sac", "tqc"])
def test_packaged_arguments_are_those_of_the_class(algo: str) -> None:
    code = (
        "import inspect\n"
        "from finflow_sb3.quiet import silence_gym_notice\n"
        "silence_gym_notice()\n"
        "import sys, d3rlpy, sb3_contrib, stable_baselines3\n"
        "from finflow_sb3.config_arguments import algorithm_arguments\n"
        "cls = {'sac': stable_baselines3.SAC, 'tqc': sb3_contrib.TQC}[sys.argv[1]]\n"
        "known = list(inspect.signature(cls).parameters)\n"
        "algorithm_arguments(sys.argv[1], known=known, environ={})\n"
        "print('seen', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, algo], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Gym has been unmaintained" not in done.stderr
    assert "seen" in done.stderr  # stderr itself is left alone


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (["ent_coef:auto_0.05"], {"ent_coef": "auto_0.05", "alpha_init": None}),
        (["alpha_init:0.3"], {"alpha_init": 0.3}),
        (["learning_rate:1e-5"], {"learning_rate": 1e-5, "actor_lr": None}),
        (["learning_rate:1e-5", "actor_lr:1e-6"], {"learning_rate": 1e-5, "actor_lr": 1e-6}),
    ],
)
def test_what_is_written_later_counts_among_rivals(
    params: list[str], expected: dict[str, Any]
) -> None:
    """The packaged file and the preset say the same thing in other words."""
    found = resolve(algo="cqsac", preset="volatile", params=params, environ={}).cqsac
    assert {name: getattr(found, name) for name in expected} == expected
