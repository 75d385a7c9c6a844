"""The whole analysis of a curve: its verdict, its parts, its JSON, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from curves import curve_of
from numpy.typing import NDArray

from finflow_sb3.config_evaluation import EvaluationSettings
from finflow_sb3.errors import ConfigError, DataError
from finflow_sb3.evaluation.analysis import Analysis, analyse
from finflow_sb3.evaluation.bootstrap import optimal_block, sharpe_gap, sharpe_interval
from finflow_sb3.evaluation.curve import Curve

Float = NDArray[np.float64]
QUICK = EvaluationSettings(draws=200)


def series(name: str, edge: float = 0.0, days: int = 900) -> Curve:
    market = np.random.default_rng(0).normal(0.0004, 0.01, days)
    own = np.random.default_rng(sum(name.encode())).normal(edge, 0.002, days)
    return curve_of(market + own, name)


def found(edge: float = 0.0, settings: EvaluationSettings = QUICK, **changes: Any) -> Analysis:
    others = [series(name) for name in ("buy_and_hold", "equal_weight", "anchors' average")]
    given = {"policy": series("cqsac", edge), "others": others, "cash_rate": 1e-4, **changes}
    return analyse(settings=settings, **given)


@pytest.mark.parametrize(
    ("edge", "outcome", "headline"),
    [
        (0.002, "better", "Better than equal weight"),
        (-0.002, "worse", "Worse than equal weight"),
        (0.0, "cannot be told", "Cannot be told from equal weight"),
    ],
)
def test_verdict(edge: float, outcome: str, headline: str) -> None:
    verdict = found(edge).verdict
    assert (verdict.outcome, verdict.headline) == (outcome, headline)
    told = "more than chance explains" if edge else "cannot be told from these days"
    assert told in verdict.sentence and "95 % interval" in verdict.sentence
    assert verdict.sentence.startswith("Net of costs, 2015-01-01 to ")
    assert "-0." not in verdict.sentence  # a true minus


@pytest.mark.parametrize(("days", "headline"), [(1, "Cannot be compared"), (40, "Too few days")])
def test_verdict_of_few_days(days: int, headline: str) -> None:
    result = found(policy=series("cqsac", days=days), others=[series("equal_weight", days=days)])
    assert result.verdict.outcome == "cannot be told"
    assert result.verdict.headline.startswith(headline)
    assert json.dumps(result.as_dict(), allow_nan=False)


def test_parts_are_those_of_their_functions() -> None:
    result = found(0.001)
    policy, equal = series("cqsac", 0.001), series("equal_weight")
    assert [i.name for i in result.intervals] == [
        "cqsac",
        "buy_and_hold",
        "equal_weight",
        "anchors' average",
    ]
    excess, other = policy.returns - 1e-4, equal.returns - 1e-4
    assert result.intervals[0].sharpe == sharpe_interval(excess, draws=200)
    assert result.intervals[0].difference == sharpe_gap(excess, other, draws=200)
    assert result.intervals[2].difference is None
    assert [r.reference for r in result.relative] == ["equal_weight", "anchors' average"]
    assert result.factors is None and result.phases.reference == "equal_weight"
    assert (result.first, result.days, result.block) == ("2015-01-01", 900, 21)
    assert sum(m.days for m in result.months) == sum(y.days for y in result.years) == 900


def test_index_and_factors() -> None:
    others = [series(name) for name in ("equal_weight", "index")]
    result = found(others=others, settings=dataclasses.replace(QUICK, factors="skfolio"))
    assert [r.reference for r in result.relative] == ["equal_weight", "index"]
    assert result.phases.reference == "index"
    assert result.factors is not None and len(result.factors.loadings) == 6


def test_level_and_trials_come_from_the_settings() -> None:
    wide = found(settings=dataclasses.replace(QUICK, level=99, trials=50))
    assert {i.sharpe.level for i in wide.intervals} == {99} == {wide.significance.level}
    assert "99 % interval" in wide.verdict.sentence
    assert wide.significance.trials == 50 and wide.significance.expected_best > 0.0
    known = found(sharpes=[0.2, 0.6, 1.4])
    assert known.significance.trials == 3 and not known.significance.assumed


def test_block_of_the_data() -> None:
    result = found(settings=dataclasses.replace(QUICK, block="auto"))
    assert result.block == optimal_block(series("cqsac").returns - series("equal_weight").returns)
    with pytest.raises(ConfigError, match="block"):
        EvaluationSettings(block="often")


def test_same_record_twice_and_as_json() -> None:
    assert found() == found()
    assert found(seed=1) != found()
    text = json.dumps(found().as_dict(), allow_nan=False)
    content = json.loads(text)
    assert content["intervals"][2]["difference"] is None
    assert set(content) == {field.name for field in dataclasses.fields(Analysis)}


def test_undefined_becomes_null() -> None:
    flat = dataclasses.replace(series("cqsac"), returns=np.full(900, 1e-4))
    result = found(policy=flat)
    assert math.isnan(result.significance.deflated)
    assert result.as_dict()["significance"]["deflated"] is None
    assert "a ratio is undefined" in result.verdict.sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others": [series("index")]}, "no equal_weight"),
        ({"others": [series("equal_weight", days=500)]}, "other days"),
        (
            {"others": [dataclasses.replace(series("equal_weight"), execution_lag=1)]},
            "each lag by itself",
        ),
        ({"cash_rate": np.zeros(3)}, "one rate for each day"),
        ({"policy": dataclasses.replace(series("x"), returns=np.full(900, np.nan))}, "no number"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        found(**changes)
