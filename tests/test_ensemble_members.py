"""Which runs may act together, and what is said of a run that may not or is alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_fixtures import tiny_settings, write_prices
from typer.testing import CliRunner

import finflow_sb3
from finflow_sb3.cli.app import app
from finflow_sb3.config_files import read_config, write_config
from finflow_sb3.deployment.onnx_file import export_onnx
from finflow_sb3.ensembles import load_policies, write_members
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluate_run import evaluate
from finflow_sb3.pipeline import pretrain


def run_on(prices: Path, like: Path | None = None, **market: Any) -> Path:
    """A pretrained run on these prices; split where another run is, if one is given."""
    ends = {} if like is None else vars(read_config(like / "config.yml").market)
    dates = {name: ends[name] for name in ("train_end", "validation_end") if like is not None}
    kwargs = {"prices": str(prices), **dates, **market}
    return pretrain(tiny_settings(prices.parent, market=kwargs)).run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on(write_prices(tmp_path_factory.mktemp("members") / "prices.csv"))


def changed(run: Path, folder: Path, **changes: dict[str, Any]) -> Path:
    """A copy of a run with other settings."""
    copy = Path(shutil.copytree(run, folder))
    write_config(read_config(run / "config.yml").replace(**changes), copy / "config.yml")
    return copy


SHARPE = {"reward": "differential_sharpe"}


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (SHARPE, {}, "reward 'log_return', and .* 'differential_sharpe'"),
        ({}, SHARPE, "reward 'differential_sharpe', and .* 'log_return'"),
        (SHARPE, {**SHARPE, "reward_baseline": "none"}, "reward_baseline 'none', and .* 'equal"),
        (SHARPE, {**SHARPE, "sharpe_decay": 0.01}, r"sharpe_decay 0\.01, and .* 0\.004"),
    ],
)
def test_what_sets_observed_moments_is_the_same(
    run: Path, tmp_path: Path, one: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    """Observations are made with the settings of the first: its order would matter else."""
    first = changed(run, tmp_path / "first", env_kwargs=one)
    second = changed(run, tmp_path / "second", env_kwargs=other)
    with pytest.raises(ArtefactError, match=f"second: has env_kwargs.{message}.*; give runs"):
        load_policies([first, second])


def test_what_concerns_the_reward_alone_may_differ(run: Path, tmp_path: Path) -> None:
    env = {"reward_baseline": "none", "sharpe_decay": 0.01, "lambda_dd": 1.0}
    second = changed(run, tmp_path / "second", env_kwargs=env)
    assert len(load_policies([run, second]).members) == 2


def test_dictionaries_may_be_written_in_any_order(run: Path, tmp_path: Path) -> None:
    fees = {"A": 0.01, "B": 0.02}
    first = changed(run, tmp_path / "first", env_kwargs={"fees": fees})
    second = changed(
        run, tmp_path / "second", env_kwargs={"fees": dict(sorted(fees.items())[::-1])}
    )
    assert len(load_policies([first, second]).members) == 2


def spellings(prices: Path) -> dict[str, str]:
    return {
        "with a dot": f"{prices.parent}/./{prices.name}",
        "relative": os.path.relpath(prices),
        "of another machine": "/home/elsewhere/prices.csv",
    }


@pytest.mark.parametrize("name", list(spellings(Path())))
def test_a_path_may_be_spelt_otherwise(run: Path, tmp_path: Path, name: str) -> None:
    prices = spellings(Path(read_config(run / "config.yml").market.prices))[name]
    second = changed(run, tmp_path / "second", market={"prices": prices})
    assert len(load_policies([run, second]).members) == 2


def lines_of(prices: Path) -> list[str]:
    return prices.read_text().splitlines(keepends=True)


def test_prices_of_the_test_split_are_compared_too(run: Path, tmp_path: Path) -> None:
    """Scalers know of the training split alone."""
    *most, last = lines_of(write_prices(tmp_path / "prices.csv"))
    date, _, *rest = last.split(",")
    (tmp_path / "prices.csv").write_text("".join([*most, ",".join([date, "1.0", *rest])]))
    other = run_on(tmp_path / "prices.csv", run)
    scalers = [load_policies(each).scaler for each in (run, other)]
    assert scalers[0] == scalers[1]
    with pytest.raises(ArtefactError, match="was trained on other prices than"):
        load_policies([run, other])


@pytest.mark.parametrize("partial", [False, True])
def test_one_history_may_go_on_for_longer(tmp_path: Path, partial: bool) -> None:
    prices = write_prices(tmp_path / "prices.csv")
    if partial:
        rows = [line.split(",") for line in lines_of(prices)]
        late = [
            [date, "", *rest] if 0 < i < 40 else [date, _, *rest]
            for i, (date, _, *rest) in enumerate(rows)
        ]
        prices.write_text("".join(",".join(row) for row in late))
    longer = run_on(prices, partial=partial)
    (tmp_path / "shorter.csv").write_text("".join(lines_of(prices)[:-10]))
    shorter = run_on(tmp_path / "shorter.csv", longer, partial=partial)
    for runs in ([longer, shorter], [shorter, longer]):
        assert len(load_policies(runs).members) == 2


@pytest.mark.parametrize(
    ("how", "flag"), [({"combination": "median"}, "--combine"), ({"shrinkage": 0.0}, "--shrink")]
)
def test_one_run_is_combined_with_nothing(
    run: Path, tmp_path: Path, how: dict[str, Any], flag: str
) -> None:
    message = f"{flag}: concerns several runs, and .* is one; leave it out"
    verbs: list[Any] = [load_policies, evaluate]
    verbs.append(lambda runs, **how: export_onnx(runs, tmp_path / "policy.onnx", **how))
    verbs.append(lambda runs, **how: finflow_sb3.explain(runs, "2001-01-01", **how))
    for verb in verbs:
        for runs in (run, [run]):
            with pytest.raises(ConfigError, match=message):
                verb(runs, **how)


def test_a_folder_of_one_may_say_how(run: Path, tmp_path: Path) -> None:
    write_members(tmp_path, [run], "median", shrinkage=0.5)
    policies = load_policies(tmp_path)
    assert (policies.combination, policies.shrinkage) == ("median", 0.5)
    observations = np.zeros((1, policies.layout.size), np.float32)
    (alone,) = policies.ensemble.actions(observations)
    np.testing.assert_array_equal(alone, load_policies(run).members[0].act(observations))
    with pytest.raises(ConfigError, match="--combine: concerns several runs"):
        load_policies(tmp_path, "mean")


@pytest.mark.parametrize("flags", [("--combine", "median"), ("--shrink", "1")])
def test_the_command_says_so_in_one_line(run: Path, flags: tuple[str, str]) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    done = runner.invoke(app, ["evaluate", str(run), *flags])
    assert done.exit_code == 1
    assert f"{flags[0]}: concerns several runs" in " ".join(done.stderr.split())
