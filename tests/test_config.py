"""Where settings come from, and which keys there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_helpers import one_line, settled, writer

from finflow_sb3.config_files import diff, resolve
from finflow_sb3.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


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
        ("td3bc", "batch_size:64", "td3bc", "batch_size", 64),
        ("td3bc", "epochs:7", "td3bc", "epochs", 7),
        (None, "iql.expectile: 0.8", "iql", "expectile", 0.8),
        (None, "alpha: 1.5", "td3bc", "alpha", 1.5),
        ("sac", "seed:4", "run", "seed", 4),
        ("cqsac", "prices:yahoo:AAPL,MSFT", "market", "prices", "yahoo:AAPL,MSFT"),
        ("cqsac", "log_dir:2024", "run", "log_dir", "2024"),
        ("cqsac", "train_end:2015-12-31", "market", "train_end", "2015-12-31"),
        ("cqsac", "behaviours:[anchor, mixture]", "collect", "behaviours", ("anchor", "mixture")),
        ("cqsac", "n_timesteps:1e6", "cqsac", "n_timesteps", 1_000_000),
        ("cqsac", "cqsac.policy_kwargs:dict(gate_hidden=8)", "cqsac", "policy_kwargs", None),
    ],
)
def test_params(algo: str | None, param: str, section: str, name: str, value: Any) -> None:
    changed = settled(algo, params=[param])
    expected = {"gate_hidden": 8} if value is None else value
    assert getattr(getattr(changed, section), name) == expected
    assert [key for key, _, _ in diff(settled(algo), changed)] == [f"{section}.{name}"]


@pytest.mark.parametrize("algo", [None, "cqsac"])
@pytest.mark.parametrize("source", ["param", "variable", "file"])
def test_a_bare_key_of_the_offline_phase_alone_is_each_algorithms(
    write: Any, algo: str | None, source: str
) -> None:
    """Which of them pretrains is not known where they are resolved."""
    sources: dict[str, dict[str, Any]] = {
        "param": {"params": ["epochs:7"]},
        "variable": {"environ": {"FINFLOW_EPOCHS": "7"}},
        "file": {"files": [write("default: {epochs: 7}")]},
    }
    if (algo, source) == ("cqsac", "file"):  # flat keys of a file for it are its own
        with pytest.raises(ConfigError, match=r"'epochs' of cqsac; it belongs under 'iql'"):
            settled(algo, **sources[source])
        return
    changed = diff(settled(algo), settled(algo, **sources[source]))
    assert changed == [("iql.epochs", 50, 7), ("td3bc.epochs", 50, 7)]


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
        ("default: {gamma: 0.5}\ndefault: {gamma: 0.6}", ["my.yml:2", "'default' stands twice"]),
        ("default:\n  gamma: 0.5\n  gamma: 0.6", ["my.yml:3", "'gamma' stands twice"]),
        ("default: {3: 1}", ["key 3"]),
        ("finflow/US2-v0: {gamma: 0.5}", ["my.yml:1", "'finflow/US20-v0'?"]),
        ("algo: iq\ndefault: {}", ["'iq'", "'iql'"]),
        ("algo: sac\ndefault: {}", ["is for sac", "cqsac"]),
        ("\ndefault: [", ["my.yml:2"]),
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
