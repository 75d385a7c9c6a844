"""`finflow backtest`: every rule on a price file, without a trained policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_fixtures import tiny_settings
from test_cli_pipeline import fine, run

from finflow_sb3 import backtest_baselines
from finflow_sb3.evaluation.allocators import ALLOCATORS
from finflow_sb3.results import Watch

FEW = ["-p", "evaluation.baselines:[hrp, sixty_forty, index]", "-p", "evaluation.lookback:126"]
FUNDS = [*FEW, "-p", "evaluation.bonds:[A, B]", "-p", "evaluation.index:C"]


@pytest.fixture
def config(tmp_path: Path) -> list[str]:
    tiny_settings(tmp_path)
    return ["-c", str(tmp_path / "tiny.yml")]


@pytest.mark.parametrize("width", [80, 130])
def test_a_table_and_what_to_know_of_it(config: list[str], width: int) -> None:
    lines = fine("backtest", *config, *FUNDS, width=width).stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Test split, 200")
    for name in ("Equal weight", "HRP", "60/40", "Index, cost-free"):
        found = [line for line in lines if line.strip().startswith(f"{name}  ")]
        assert len(found) == (2 if width == 80 else 1)
    assert lines[-2:] == [
        "60/40: 60 % in 4 equities, 40 % in 2 bonds, equal within each.",
        "Index, cost-free: C, without any costs.",
    ]


def test_json_is_what_python_gives(config: list[str], tmp_path: Path) -> None:
    found = json.loads(fine("backtest", *config, *FEW, "--split", "all", "--json").stdout)
    seen: list[tuple[str, int, int]] = []

    class Seen(Watch):
        def progress(self, stage: str, done: int, total: int) -> None:
            seen.append((stage, done, total))

    settings = tiny_settings(tmp_path).replace(
        evaluation={"baselines": ("hrp", "sixty_forty"), "lookback": 126}
    )
    same = backtest_baselines(settings, "all", Seen())
    assert found["measures"] == same.measures
    assert found["dates"] == list(same.dates)
    assert set(found["measures"]["hrp"]) == {"lag_0", "lag_1"}
    assert "60/40 is left out" in found["notes"][0]
    assert [stage for stage, _, _ in seen if stage != "anchors"] == []  # from the cache


def test_settings_reach_the_rules(config: list[str]) -> None:
    def figures(*args: Any) -> Any:
        return json.loads(fine("backtest", *config, *FEW, *args, "--json").stdout)["measures"]

    plain, dear, daily = (
        figures(*args) for args in ((), ("-p", "fee:0.02"), ("-p", "rebalance:1"))
    )
    assert dear["hrp"]["lag_0"]["cost"] > 10 * plain["hrp"]["lag_0"]["cost"] > 0
    assert daily["hrp"]["lag_0"]["turnover"] > plain["hrp"]["lag_0"]["turnover"]
    assert set(plain) == {"equal_weight", "hrp"}


def test_every_rule_is_there_unless_it_is_left_out(config: list[str]) -> None:
    found = json.loads(fine("backtest", *config, "--split", "validation", "--json").stdout)
    assert {*ALLOCATORS, "equal_weight", "buy_and_hold", "anchors' average"} < set(
        found["measures"]
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", "evaluation.baselines:[hpr]"], "did you mean 'hrp'"),
        (["-p", "evaluation.index:SPX"], "no asset of"),
        (["-p", "evaluation.bonds:[AGG]"], "evaluation.bonds: 'AGG' is no asset"),
        (["--prices", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_does_not_fit_is_refused(config: list[str], args: list[str], message: str) -> None:
    result = run("backtest", *config, *args)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
