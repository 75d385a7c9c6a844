"""Walk-forward: its folds by hand, a real one end to end, and a second run of it."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from markets import small_market
from pipeline_fixtures import tiny_settings
from typer.testing import CliRunner

import finflow_sb3 as ff
from finflow_sb3.benchmark.tasks import Event
from finflow_sb3.cli.app import app
from finflow_sb3.config import Settings
from finflow_sb3.envs.observations import observe
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.market.splits import make_splits
from finflow_sb3.walkforward import WalkForward, folds_of


@pytest.mark.parametrize("expanding", [True, False])
def test_folds_follow_each_other_and_see_no_test_day(expanding: bool) -> None:
    """600 rows, 348 usable: 250 to train, 45 to test, of which two folds fit."""
    market = small_market()
    dates, first = market.prices.dates, market.splits.train.start
    folds, left_out = folds_of(market, 45, 250, expanding)
    assert [fold.number for fold in folds] == [1, 2]
    assert left_out == 600 - 1 - (first + 250 + 2 * 45)
    spans = [make_splits(dates, first, fold.of(Settings()).market, purge=1) for fold in folds]
    for number, split in enumerate(spans):
        start = first if expanding else first + 45 * number
        test = first + 250 + 45 * number
        assert split.train.start == start
        assert split.validation.stop == test - 1
        assert split.test.start == test
        assert len(split.test) == 46
        # A fifth of 75 % is validation: 0.15 of 0.6 + 0.15.
        assert split.validation.start == test - round(0.2 * (test - start))
    for one, after in pairwise(spans):
        assert one.test.stop - 1 == after.test.start


def test_too_few_days_are_refused() -> None:
    with pytest.raises(DataError, match="make no fold"):
        folds_of(small_market(), 200, 300)
    with pytest.raises(DataError, match="validation split has"):
        folds_of(small_market(), 60, 200)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, WalkForward]:
    folder = tmp_path_factory.mktemp("walkforward")
    settings = tiny_settings(folder)
    out = folder / "out"
    return settings, out, ff.walkforward(settings, ["iql"], 1, 100, 240, out=out)


def test_pieces_are_the_folds_own_policies(done: tuple[Settings, Path, WalkForward]) -> None:
    """The first fold's part of the curve is what its policy earns alone from equal weights."""
    settings, _, found = done
    assert not found.failed
    curve = next(c for c in found.curves if c.name == "iql" and c.execution_lag == 0)
    assert len(found.folds) == 2 and len(curve) == 200
    first = found.folds[0].of(settings)
    pretrained = ff.pretrain(first)
    from finflow_sb3.training.trained import load_policy

    policy = load_policy(pretrained.run)
    prices = ff.load_prices(settings.market.prices)
    market = observe(prices, first.market, first.env_kwargs, policy.scaler)
    alone = backtest(market, market.splits.test, first.env_kwargs, policy.act, "iql", 0)
    np.testing.assert_array_equal(curve.returns[:100], alone.returns)
    np.testing.assert_array_equal(curve.weights[:100], alone.weights)


def test_all_curves_have_the_same_days(done: tuple[Settings, Path, WalkForward]) -> None:
    _, out, found = done
    days = {tuple(c.dates.astype(str)) for c in found.curves}
    assert len(days) == 1
    with (out / "walkforward.csv").open(encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head[:2] == ["date", "iql"] and "equal_weight" in head
    assert [row[0] for row in rows] == list(days.pop())
    figures = json.loads((out / "walkforward.json").read_text("utf-8"))
    assert figures["measures"]["iql"].keys() == {"lag_0", "lag_1"}
    assert "| IQL | 0 |" in (out / "walkforward.md").read_text("utf-8")


def test_a_second_run_runs_nothing_again(done: tuple[Settings, Path, WalkForward]) -> None:
    settings, out, found = done
    events: list[Event] = []
    again = ff.walkforward(settings, ["iql"], 1, 100, 240, out=out, listen=events.append)
    assert events == []
    assert again.measures == found.measures


def test_rules_have_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="equal_weight does not learn"):
        ff.walkforward(tiny_settings(tmp_path), ["equal_weight"])


def test_overrides_of_sb3s_algorithms_reach_them(tmp_path: Path) -> None:
    """And one of an algorithm that is not asked for is refused, as in the benchmark."""
    settings = tiny_settings(tmp_path)
    for param, why in (("sac.gama:0.9", "did you mean 'gamma'"), ("tqc.tau:0.1", "not among")):
        with pytest.raises(ConfigError, match=why):
            ff.walkforward(settings, ["sac"], 1, 100, 240, params=[param])
    asked = ["walkforward", "--algos", "sac", "--test-days", "100", "--train-days", "240"]
    prices = ["--prices", settings.market.prices, "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*asked, *prices, "-p", "sac.gama:0.9"])
    assert done.exit_code == 1
    assert "did you mean 'gamma'" in done.stderr
