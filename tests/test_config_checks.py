"""Contradictions between settings come to light where they are resolved, with their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_helpers import one_line, settled, writer

from finflow_sb3.config import BEHAVIOURS, EnvSettings, MarketSettings, Settings
from finflow_sb3.config_checks import ENVIRONMENTS, Contradiction, notes
from finflow_sb3.config_files import resolve_with_origins
from finflow_sb3.config_validate import validate
from finflow_sb3.envs.registration import register_envs
from finflow_sb3.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> Any:
    return writer(tmp_path)


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        (["train_end:2020-01-01", "validation_end:2019-01-01"], ["train_end", "must lie before"]),
        (["train_end:2020-01-01", "validation_end:2020-01-01"], ["validation_end 2020-01-01"]),
        (["train_start:2020-01-01", "test_end:2019-01-01"], ["train_start", "before test_end"]),
        (["train_fraction:0.9"], ["market.train_fraction", "under 1"]),
        (["anchor_window:126"], ["anchor_min_window: 252", "anchor_window 126"]),
        (["batch_size:60000"], ["cqsac.batch_size: 60000", "buffer_size 50000"]),
        (["cqsac.n_envs:60000"], ["cqsac.n_envs: 60000", "buffer_size 50000"]),
        (["ent_coef:0.1", "alpha_init:0.2"], ["cqsac.alpha_init: 0.2", "one of the two"]),
        (["offline_fraction:0.001"], ["offline_fraction: 0.001", "no transition at all"]),
        (["cql_target_action_gap:1", "cql_alpha:0"], ["cql_target_action_gap", "over 0"]),
        (["cql_target_action_gap:1", "cql_alpha_final:1"], ["no cql_alpha_final"]),
        (["top_quantiles_to_drop_per_net:32"], ["n_quantiles − 1 (31)"]),
        (
            ["cqsac.policy_kwargs:dict(n_quantiles=2)"],
            ["top_quantiles_to_drop_per_net: 2", "n_quantiles − 1 (1)"],
        ),
        (
            ["cqsac.policy_kwargs:{}", "policy:MlpPolicy", "top_quantiles_to_drop_per_net:25"],
            ["n_quantiles − 1 (24)"],
        ),
        (["cqsac.policy_kwargs:dict(expert_hiden=4)"], ["'expert_hidden'?", "MultiExpertPolicy"]),
        (["cqsac.policy_kwargs:dict(critic_hidden=[0])"], ["critic_hidden", "1 to 65536"]),
        (["cqsac.policy_kwargs:dict(dropout=1.0)"], ["dropout: 1.0", "[0, 1)"]),
        (["cqsac.policy_kwargs:dict(mixture='ful')"], ["'full'?"]),
        (["cqsac.policy_kwargs:dict(net_arch=[8])"], ["'net_arch'", "MultiExpertPolicy"]),
        (
            ["policy:MlpPolicy", "cqsac.policy_kwargs:dict(expert_hidden=4)"],
            ["'expert_hidden'", "MlpPolicy"],
        ),
        (["iql.policy_kwargs:dict(gate_hidden='wide')"], ["iql.policy_kwargs", "gate_hidden"]),
        (["policy:CnnPolicy"], ["CnnPolicy", "use MultiExpertPolicy or MlpPolicy"]),
        (["normalize:true"], ["cqsac.normalize", "the market's own scaler"]),
        (["normalize:dict(norm_obs=False)"], ["cqsac.normalize", "set it to false"]),
    ],
)
def test_contradictions_are_refused(params: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settled(params=params)
    for part in [params[0].split(":")[0], *parts]:
        assert part in one_line(error)


@pytest.mark.parametrize(
    ("param", "parts"),
    [
        ("train_end:soon", ["'soon' is not a date", "YYYY-MM-DD"]),
        ("train_end:2020-02-30", ["'2020-02-30' is not a date"]),
        ("train_end:20200101", ["not a date"]),
        ("behaviours:[anchor, momentun_tilt]", ["'momentum_tilt'?"]),
        ("behaviours:[]", ["collect.behaviours", "at least one"]),
        ("policy:MultiExpertPolcy", ["'MultiExpertPolicy'?"]),
        ("reward:log_retrun", ["'log_return'?"]),
        ("action_base:anker", ["env_kwargs.action_base", "'anker'", "'anchors'?"]),
        ("device:gpu", ["'gpu' is not auto, cpu, cuda or cuda:N"]),
        ("device:cuda:x", ["device"]),
        ("risk_measure:cvar:2", ["risk_measure", "cvar:<level in (0, 1]>"]),
        ("ent_coef:auto_0", ["ent_coef", "start over 0"]),
        ("target_entropy:low", ["target_entropy", "seeded"]),
        ("learning_rate:200", ["learning_rate", "from 0 to 100"]),
        ("threads:fast", ["threads", "a whole number or auto"]),
        ("run.seed:1.5", ["run.seed", "1.5 is not a whole number"]),
        ("fee:.nan", ["env_kwargs.fee", "not a number"]),
        ("log_dir:", ["run.log_dir", "empty"]),
    ],
)
def test_forms_are_checked(param: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settled(params=[param])
    for part in [f"--param {param}", *parts]:
        assert part in one_line(error)


def test_both_places_of_a_contradiction_are_named(write: Any) -> None:
    path = write("default:\n  cqsac:\n    buffer_size: 100")
    with pytest.raises(ConfigError) as error:
        settled(files=[path], params=["batch_size:200"])
    for part in (f"{path}:3: default", "--param batch_size:200"):
        assert part in one_line(error)
    with pytest.raises(ConfigError) as error:  # what is packaged needs no mending
        settled(params=["batch_size:60000"])
    assert one_line(error).startswith("--param batch_size:60000: cqsac.batch_size")


@pytest.mark.parametrize(
    "params",
    [
        ["train_fraction:0.9", "train_end:2010-01-01", "validation_end:2015-01-01"],
        ["anchor_window:126", "anchor_min_window:126"],
        ["cql_target_action_gap:1"],
        ["policy:MlpPolicy", "cqsac.policy_kwargs:dict(net_arch=[8], activation_fn=nn.Tanh)"],
        ["cqsac.policy_kwargs:dict(optimizer_kwargs=dict(weight_decay=0.1))"],
        ["top_quantiles_to_drop_per_net:40", "cqsac.policy_kwargs:{}", "iql.n_quantiles:64"],
        ["offline_fraction:0", "batch_size:2"],
        ["behaviours:anchor"],
        ["ent_coef:auto_0.5"],
    ],
)
def test_what_does_not_contradict_is_taken(params: list[str]) -> None:
    assert settled(params=params) != settled()


def test_a_contradiction_within_a_section_has_its_place(write: Any) -> None:
    text = "default:\n  monitor:\n    normal_limits: {q_value: 5}\n    warning_limits: {q_value: 3}"
    path = write(text)
    with pytest.raises(ConfigError) as error:
        settled(files=[path])
    assert one_line(error).startswith(f"{path}:4: default: monitor.warning_limits.q_value: 3")


def test_settings_that_are_made_in_python_are_checked_too() -> None:
    with pytest.raises(Contradiction) as error:
        Settings(market=MarketSettings(train_fraction=0.9))
    assert error.value.names == ("market.train_fraction", "market.validation_fraction")
    with pytest.raises(Contradiction, match="buffer_size"):
        Settings().replace(cqsac={"batch_size": 10**6})
    with pytest.raises(ConfigError, match="unknown environment 'finflow/US20'"):
        Settings(env="finflow/US20")


@pytest.mark.parametrize(
    ("env", "near"),
    [
        ("finflow/US2-v0", "finflow/US20-v0"),
        ("finflow/Portfolio-v1", "finflow/Portfolio-v0"),
        ("US20-v0", "finflow/US20-v0"),
        ("finflow-US20-v0", "finflow/US20-v0"),
    ],
)
def test_misspelt_environments(write: Any, env: str, near: str) -> None:
    for changes in ({"env": env}, {"files": [write(f"{env}: {{}}")]}):
        with pytest.raises(ConfigError) as error:
            settled(**changes)
        assert f"unknown environment {env!r}; did you mean {near!r}?" in one_line(error)


def test_an_entry_that_is_nearly_the_asked_one(write: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'Pendulum-v1'"):
        settled(env="Pendulm-v1", files=[write("Pendulum-v1: {}\nHopper-v4: {}")])


def test_known_environments_and_rules_are_those_there_are() -> None:
    from gymnasium.envs.registration import registry

    register_envs()
    assert {name for name in registry if name.startswith("finflow/")} == set(ENVIRONMENTS)
    assert settled().collect.behaviours == BEHAVIOURS


def test_notes_name_what_may_surprise(write: Any) -> None:
    assert notes(settled()) == []
    text = """
    default:
      cqsac: {n_timesteps: 1000, cql_alpha: 0.0}
      env_kwargs: {reward: differential_sharpe, lambda_turn: 1.0}
    """
    warmup, rising, penalties = validate(write(text)).notes
    assert "cqsac.warmup_steps: 4032 of 1000" in warmup
    assert "rises from 0.0 to 1.0" in rising
    assert "lambda_turn" in penalties
    assert Settings(env_kwargs=EnvSettings(reward="differential_sharpe"))


# Where values come from


def test_origins(write: Any) -> None:
    base = write("default:\n  market:\n    max_gap: 7\n", "base.yml")
    text = """extends: base.yml
my-defaults: &mine
  anchor_cap: 0.3
finflow/US20-v0:
  market:
    <<: *mine
    anchor_refit: 42
  iql:
    "gamma": 0.9
"""
    path = write(text)
    resolved = resolve_with_origins(
        algo="cqsac",
        files=[path],
        preset="volatile",
        params=["fee:0.002"],
        environ={"FINFLOW_RUN__THREADS": "2", "FINFLOW_SEED": "1"},
        flags={"run": {"seed": 4, "log_dir": "x"}},
    )
    expected = {
        "env": str(path),
        "market.max_gap": f"{base}:3: default",
        "market.anchor_cap": f"{path}:3: finflow/US20-v0",
        "market.anchor_refit": f"{path}:7: finflow/US20-v0",
        "iql.gamma": f"{path}:9: finflow/US20-v0",
        "env_kwargs.fee": "--param fee:0.002",
        "env_kwargs.lambda_cvar": "zoo_configs/presets.yml:7: volatile",
        "cqsac.gamma": "zoo_configs/cqsac.yml:12: default",
        "cqsac.ent_coef": "default",
        "run.threads": "FINFLOW_RUN__THREADS",
        "run.seed": "--seed",
        "run.log_dir": "--log-dir",
        "run.device": "default",
    }
    assert {name: resolved.origins[name] for name in expected} == expected
    flat = {f"{s}.{n}" for s, v in resolved.settings.as_dict().items() if s != "env" for n in v}
    assert set(resolved.origins) == {"env", *flat}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"env": "finflow/Portfolio-v0"}, "--env"),
        ({"env": "A-v0", "environ": {"FINFLOW_ENV": "A-v0"}}, "FINFLOW_ENV"),
        ({}, "default"),
    ],
)
def test_origin_of_the_environment(changes: dict[str, Any], expected: str) -> None:
    found = resolve_with_origins(algo=None, **{"environ": {}, **changes})
    assert found.origins["env"] == expected


def test_settings_of_a_run_stand_in_the_place_of_the_packaged_ones() -> None:
    run = settled(params=["fee:0.005", "alpha_init:0.7", "lambda_turn:3", "seed:9"])
    found = settled(base=run, preset="stable", params=["seed:1"])
    assert (found.env_kwargs.fee, found.run.seed) == (0.005, 1)
    assert (found.cqsac.alpha_init, found.env_kwargs.lambda_turn) == (0.5, 0.1)
    fixed = settled(base=run, params=["ent_coef:0.1"]).cqsac
    assert (fixed.ent_coef, fixed.alpha_init) == (0.1, None)
    origins = resolve_with_origins(algo=None, base=run, environ={}).origins
    assert set(origins.values()) == {"the run", "the run that this one goes on from"}
