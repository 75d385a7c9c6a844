"""The benchmark: its matrix, a real one end to end, its table by hand, and its refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pipeline_fixtures import tiny_settings

import finflow_sb3 as ff
from finflow_sb3.benchmark.results import CellResult
from finflow_sb3.benchmark.run import Benchmark, Tables, cells_of
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.summary import median_seed, summarise
from finflow_sb3.benchmark.tables import sentence
from finflow_sb3.benchmark.tasks import Event
from finflow_sb3.config import EvaluationSettings, Settings
from finflow_sb3.errors import ConfigError
from finflow_sb3.evaluation.metrics import sharpe

ALGOS = ("iql", "anchors")


def tables_of(settings: Settings) -> Tables:
    source = settings.market.prices
    return {"prices": (source, ff.load_prices(source))}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Benchmark]:
    folder = tmp_path_factory.mktemp("benchmark")
    settings = tiny_settings(folder)
    return settings, ff.benchmark(settings, ALGOS, seeds=2, out=folder / "out")


def results(done: tuple[Settings, Benchmark]) -> list[CellResult]:
    settings, found = done
    store = Store(found.out)
    return [store.get(cell) for cell in cells_of(settings, tables_of(settings), ALGOS, 2)]


def test_a_rule_has_one_cell_and_equal_weight_is_always_there(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    cells = cells_of(settings, tables_of(settings), ["cqsac", "hrp"], 3, steps=1280)
    assert [c.title for c in cells] == [
        "cqsac prices seed 0",
        "hrp prices",
        "equal_weight prices",
        "cqsac prices seed 1",
        "cqsac prices seed 2",
    ]
    assert {c.settings.cqsac.n_timesteps for c in cells} == {1280}
    assert len({c.key for c in cells}) == 5


def test_summaries_by_hand(done: tuple[Settings, Benchmark]) -> None:
    settings, found = done
    every = results(done)
    iql = [r for r in every if r.algo == "iql"]
    equal = next(r for r in every if r.algo == "equal_weight")
    cash = 0.0
    sharpes = [sharpe(r.curve().returns - cash) for r in iql]
    assert [r.measures["lag_0"]["sharpe"] for r in iql] == pytest.approx(sharpes, abs=1e-12)
    summary = next(s for s in found.summaries if s.algo == "iql")
    assert summary.seeds == 2
    assert summary.sharpe.value == pytest.approx(np.mean(sharpes), abs=1e-12)
    lower = min(sharpes)
    assert summary.gap is not None
    assert summary.gap.value == pytest.approx(lower - sharpe(equal.curve().returns), abs=1e-9)
    assert summary.gap.low < summary.gap.value < summary.gap.high
    assert summary.better is not None and summary.better.value in (0.0, 0.5, 1.0)
    offline = settings.offline("iql")
    assert summary.gradient_steps == offline.epochs * offline.steps_per_epoch
    assert summary.env_steps == 0
    values = [s.sharpe.value for s in found.summaries]
    assert values == sorted(values, reverse=True)


def test_the_reward_is_the_log_return_over_equal_weight_in_sigmas(
    done: tuple[Settings, Benchmark],
) -> None:
    from finflow_sb3.opening import open_market

    settings, _ = done
    market = open_market(settings)
    result = next(r for r in results(done) if r.algo == "anchors")
    returns = market.prices.returns()[-len(result.curve()) :]
    even = np.log1p(returns.mean(axis=1))
    expected = np.sum(np.log1p(result.curve().returns) - even) / market.sigma
    assert result.facts["reward"] == pytest.approx(expected, abs=1e-9)


def test_files_say_what_was_found(done: tuple[Settings, Benchmark]) -> None:
    _settings, found = done
    text = (found.out / "benchmark.md").read_text("utf-8")
    assert text.startswith(f"# Benchmark\n\n{sentence(found.summaries)}")
    assert "| algo | env_id | mean_reward | std_reward | n_timesteps |" in text
    with (found.out / "benchmark.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4
    for picture in ("equity", "sharpe", "profile"):
        content = (found.out / f"{picture}-prices.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert f"({picture}-prices.png)" in text


def test_a_second_run_runs_nothing_again(done: tuple[Settings, Benchmark]) -> None:
    settings, found = done
    events: list[Event] = []
    again = ff.benchmark(settings, ALGOS, 2, out=found.out, listen=events.append)
    assert events == []
    assert again.summaries == found.summaries


def test_nothing_better_is_said_first(done: tuple[Settings, Benchmark]) -> None:
    _, found = done
    told = [s for s in found.summaries if s.verdict == "better"]
    beginning = "Better than equal weight" if told else "Nothing here is better"
    assert sentence(found.summaries).startswith(beginning)


def test_the_median_of_two_is_the_lower(done: tuple[Settings, Benchmark]) -> None:
    iql = [r for r in results(done) if r.algo == "iql"]
    chosen = median_seed(iql)
    assert chosen.measures["lag_0"]["sharpe"] == min(r.measures["lag_0"]["sharpe"] for r in iql)
    tables = {"prices": ff.load_prices(done[0].market.prices)}
    equal = [r for r in results(done) if r.algo == "equal_weight"]
    (first, *_) = summarise([*equal], tables, EvaluationSettings())
    assert first.gap is None and first.verdict == ""


@pytest.mark.parametrize(
    ("algos", "markets", "message"),
    [
        (["cqsca"], [], "'cqsca' is not known"),
        (["iql", "iql"], [], "'iql' stands twice"),
        (["iql"], ["us20", "us20"], "'us20' stands twice"),
    ],
)
def test_refusals(algos: list[str], markets: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        ff.benchmark(tiny_settings(tmp_path), algos, markets=markets, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
