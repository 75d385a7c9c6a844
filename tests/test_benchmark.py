"""The benchmark: what its cells are, how runs come together, its files, and the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markets import batch_of, random_actions, small_market
from pipeline_fixtures import tiny_settings, write_prices, write_tiny
from typer.testing import CliRunner

import finflow_sb3 as ff
from finflow_sb3.benchmark import run
from finflow_sb3.benchmark.cells import Cell
from finflow_sb3.benchmark.matrix import Executor
from finflow_sb3.benchmark.plan import make_cells, market_names, own_params
from finflow_sb3.benchmark.results import CellResult, pack
from finflow_sb3.benchmark.scores import Group, median_run, profiles, row_of
from finflow_sb3.benchmark.store import Store
from finflow_sb3.benchmark.table import interval, verdict
from finflow_sb3.benchmark.tasks import Event, Failed, Listener
from finflow_sb3.benchmark.work import episode_rewards
from finflow_sb3.cli.app import app
from finflow_sb3.cli.cells import names_in
from finflow_sb3.config import EnvSettings, EvaluationSettings, Settings
from finflow_sb3.errors import ArtefactError, ConfigError
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.evaluation.bootstrap import Interval, sharpe_gap
from finflow_sb3.evaluation.curve import Curve
from finflow_sb3.evaluation.metrics import measures, sharpe
from finflow_sb3.market.splits import Span


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(tmp_path_factory.mktemp("market"))


# ---------------------------------------------------------------- cells


def test_a_rule_has_one_cell_and_equal_weight_is_always_there(settings: Settings) -> None:
    cells = make_cells(settings, ["cqsac", "hrp"], 3, None, [settings.market.prices])
    found = [(cell.algo, cell.seed) for cell in cells]
    assert found == [("cqsac", 0), ("cqsac", 1), ("cqsac", 2), ("hrp", 0), ("equal_weight", 0)]


def test_steps_are_those_of_all_that_learn_online(settings: Settings) -> None:
    algos = ["cqsac", "cqsac_scratch", "sac", "ppo", "iql"]
    cells = make_cells(settings, algos, 1, 4321, [settings.market.prices])
    by_name = {cell.algo: cell for cell in cells}
    assert by_name["cqsac"].settings.cqsac.n_timesteps == 4321
    assert by_name["cqsac_scratch"].settings.cqsac.n_timesteps == 4321
    assert by_name["sac"].arguments["n_timesteps"] == 4321
    assert by_name["ppo"].arguments["n_timesteps"] == 4321
    assert by_name["iql"].settings.iql == settings.iql


def test_from_scratch_nothing_of_the_offline_phase_is_used(settings: Settings) -> None:
    mixing = settings.replace(cqsac={"offline_fraction": 0.25})
    cells = make_cells(mixing, ["cqsac", "cqsac_scratch"], 1, None, [settings.market.prices])
    assert [c.settings.cqsac.offline_fraction for c in cells[:2]] == [0.25, 0.0]


def test_overrides_reach_their_algorithm_alone(settings: Settings) -> None:
    params = ["sac.gamma:0.5", "tqc.gamma:0.6"]
    cells = make_cells(settings, ["sac", "tqc"], 1, None, [settings.market.prices], params)
    assert [c.arguments["gamma"] for c in cells[:2]] == [0.5, 0.6]
    assert own_params(["fee:0.002", *params]) == (["fee:0.002"], params)


@pytest.mark.parametrize(
    ("algos", "changes", "message"),
    [
        (["cqsca"], {}, "did you mean 'cqsac'"),
        (["sac"], {"params": ["tqc.gamma:0.5"]}, "tqc is not among --algos"),
        (["sac"], {"params": ["sac.gama:0.5"]}, "did you mean 'gamma'"),
        (["sac"], {"params": ["sac.callback:x"]}, "nothing acts on callback"),
        (["index"], {}, "evaluation.index"),
        (["sac"], {"seeds": 0}, "--seeds: 0"),
    ],
)
def test_what_is_not_there_is_refused(
    settings: Settings, algos: list[str], changes: dict[str, Any], message: str
) -> None:
    rest = {"seeds": 1, "steps": None, "markets": [settings.market.prices], **changes}
    with pytest.raises(ConfigError, match=message):
        make_cells(settings, algos, **rest)


def test_markets_have_names_of_their_own() -> None:
    found = market_names(["us20", "a/etf.csv.gz", "yahoo:AAPL,MSFT"])
    assert found == {
        "us20": "us20",
        "etf": "a/etf.csv.gz",
        "yahoo:AAPL,MSFT": "yahoo:AAPL,MSFT",
    }
    with pytest.raises(ConfigError, match="two are called 'etf'"):
        market_names(["a/etf.csv", "b/etf.csv"])


def test_symbols_of_yahoo_stay_together() -> None:
    assert names_in("us20, yahoo:AAPL,BRK-B,x.csv,") == ["us20", "yahoo:AAPL,BRK-B", "x.csv"]


# ---------------------------------------------------------------- rewards


REWARDS = [
    EnvSettings(),
    EnvSettings(reward_baseline="none", execution_lag=1),
    EnvSettings(lambda_turn=0.5, lambda_cvar=2.0, cvar_target=-0.005, lambda_dd=3.0),
    EnvSettings(reward="differential_sharpe"),
    EnvSettings(reward="differential_sharpe", reward_baseline="none"),
]


@pytest.mark.parametrize("env", REWARDS)
def test_rewards_of_a_curve_are_the_environments(env: EnvSettings) -> None:
    market = small_market(env)
    span, rng = market.splits.test, np.random.default_rng(0)
    actions = [random_actions(market, 1, rng) for _ in range(len(span))]
    batch = batch_of(market, env, span=span)
    played = [float(batch.step(a).rewards[0]) for a in actions[: len(span) - 1]]
    wanted = iter(actions)
    curve = backtest(market, span, env, lambda seen: next(wanted), "random")
    np.testing.assert_array_equal(curve.rewards, played)
    sums = [sum(played[30 * i : 30 * (i + 1)]) for i in range(len(played) // 30)]
    assert episode_rewards(curve, 30) == pytest.approx(sums, abs=1e-9)
    assert episode_rewards(curve, 10_000) == pytest.approx([sum(played)], abs=1e-9)
    assert episode_rewards(replace(curve, rewards=None), 30) == []


# ---------------------------------------------------------------- runs together


DAYS = 750
FEW = EvaluationSettings(draws=400, block=10)


def result_of(algo: str, returns: Any, seed: int = 0, market: str = "one") -> CellResult:
    """A result with these daily returns, at both lags."""
    days = np.arange(len(returns)).astype("datetime64[D]")
    curves = tuple(
        Curve(
            name=algo,
            dates=days + 1,
            decisions=days,
            returns=np.asarray(returns),
            weights=np.tile([0.5, 0.5, 0.0], (len(returns), 1)),
            turnover=np.full(len(returns), 0.01),
            cost=np.zeros(len(returns)),
            assets=("A", "B"),
            execution_lag=lag,
        )
        for lag in (0, 1)
    )
    facts = {"env_steps": 100 * (algo == "cqsac"), "gradient_steps": 7, "offline_transitions": 11}
    episodes = {"lag_0": [1.0 + seed, 2.0 + seed], "lag_1": [0.0, 0.0]}
    return CellResult(
        key=f"{algo}{seed}{market}",
        algo=algo,
        market=market,
        fold="",
        seed=seed,
        facts={**facts, "seconds": 3.0, "episodes": episodes},
        measures={f"lag_{c.execution_lag}": measures(c) for c in curves},
        curves=curves,
    )


def group_of(algo: str, *runs: CellResult) -> Group:
    by_market: dict[str, list[CellResult]] = {}
    for result in runs:
        by_market.setdefault(result.market, []).append(result)
    kept = {market: tuple(found) for market, found in by_market.items()}
    return Group(algo, kept, {market: np.zeros(DAYS) for market in kept})


def noise(seed: int, mean: float = 0.0004) -> Any:
    return np.random.default_rng(seed).normal(mean, 0.01, DAYS)


def test_a_row_by_hand() -> None:
    base = noise(0)
    runs = [result_of("cqsac", base + shift, i) for i, shift in enumerate((0.0, 1e-4, 2e-4))]
    equal = group_of("equal_weight", result_of("equal_weight", base))
    row = row_of(group_of("cqsac", *runs), equal, None, "one", True, 50, FEW)
    ratios = [sharpe(base + shift) for shift in (0.0, 1e-4, 2e-4)]
    assert row.sharpe.value == pytest.approx(np.mean(ratios))
    assert row.excess.value == pytest.approx(np.mean(ratios) - ratios[0])
    assert row.sharpe.low <= row.sharpe.value <= row.sharpe.high
    # The first seed is equal weight's equal, the others are better: (½ + 1 + 1)/3.
    assert row.over_equal_weight is not None
    assert row.over_equal_weight.value == pytest.approx(2.5 / 3)
    assert row.over_cqsac is None
    assert (row.mean_reward, row.eval_episodes, row.eval_timesteps) == (2.5, 6, 300)
    assert (row.n_timesteps, row.gradient_steps, row.seeds) == (100, 7, 3)


def test_equal_runs_have_the_interval_of_one() -> None:
    """Of runs that are the same the joint interval is the studentised one of their days."""
    ours, base = noise(1), noise(2)
    equal = group_of("equal_weight", result_of("equal_weight", base))
    same = group_of("cqsac", *(result_of("cqsac", ours, seed) for seed in range(3)))
    found = row_of(same, equal, None, "one", True, 50, FEW).excess
    alone = sharpe_gap(ours, base, FEW.level, 10, FEW.draws, 0)
    assert (found.value, found.low, found.high) == pytest.approx(
        (alone.value, alone.low, alone.high)
    )


def test_seeds_that_differ_widen_the_interval() -> None:
    base = noise(2)
    equal = group_of("equal_weight", result_of("equal_weight", base))

    def width(spread: float) -> float:
        runs = [result_of("cqsac", base + shift, i) for i, shift in enumerate((-spread, spread))]
        found = row_of(group_of("cqsac", *runs), equal, None, "one", True, 50, FEW).excess
        return found.high - found.low

    assert width(1e-3) > 3 * width(1e-5)


def test_two_markets_are_averaged() -> None:
    base, other = noise(0), noise(5)
    equal = group_of(
        "equal_weight",
        result_of("equal_weight", base),
        result_of("equal_weight", other, market="two"),
    )
    ours = group_of(
        "hrp", result_of("hrp", base + 1e-4), result_of("hrp", other + 2e-4, market="two")
    )
    found = row_of(ours, equal, None, "all", False, 50, FEW).excess
    gaps = [sharpe(base + 1e-4) - sharpe(base), sharpe(other + 2e-4) - sharpe(other)]
    assert found.value == pytest.approx(np.mean(gaps))
    assert found.low > 0.0


def test_the_median_seed_is_a_run() -> None:
    runs = [result_of("cqsac", noise(i), i) for i in range(4)]
    ordered = sorted(runs, key=lambda r: r.measures["lag_0"]["sharpe"])
    assert median_run(group_of("cqsac", *runs), "one") is ordered[1]


def test_profiles_share_their_thresholds() -> None:
    groups = [group_of(a, *(result_of(a, noise(i), i) for i in range(2))) for a in ("cqsac", "sac")]
    found = profiles(groups, FEW)
    marks = found["cqsac"].thresholds
    np.testing.assert_array_equal(marks, found["sac"].thresholds)
    assert found["cqsac"].share[0] == 1.0 and found["cqsac"].share[-1] == 0.0


def row_with(low: float, value: float, high: float, algo: str = "cqsac") -> Any:
    base = noise(0)
    equal = group_of("equal_weight", result_of("equal_weight", base))
    row = row_of(group_of(algo, result_of(algo, base)), equal, None, "one", True, 50, FEW)
    return replace(row, excess=Interval(value, low, high, 95))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0.1, 0.2, 0.3)], "CQSAC beats equal weight: CQSAC has an excess Sharpe ratio of 0.200"),
        ([(-0.1, 0.2, 0.5)], "CQSAC does not beat equal weight beyond doubt: it has an excess"),
        ([(-0.5, -0.2, -0.1)], "whose interval lies below 0"),
        ([(np.nan, 0.2, np.nan)], "whose days are too few to tell"),
    ],
)
def test_the_first_sentence_says_whether_equal_weight_is_beaten(
    rows: list[tuple[float, float, float]], said: str
) -> None:
    assert said in verdict([row_with(*row) for row in rows])


def test_the_first_sentence_of_several() -> None:
    rows = [row_with(-0.3, 0.1, 0.2), row_with(-0.4, -0.1, 0.2, "sac")]
    assert verdict(rows).startswith("None of the 2 learned algorithms beats equal weight")
    assert "the best, CQSAC, has" in verdict(rows)
    better = [row_with(0.1, 0.2, 0.3), row_with(0.2, 0.3, 0.4, "sac")]
    assert verdict(better).startswith("CQSAC, SAC beat equal weight: SAC has")
    assert "Nothing here has learned" in verdict([replace(rows[0], learns=False)])


def test_intervals_are_written() -> None:
    assert interval(Interval(0.5, 0.25, 0.75, 95)) == "0.500 (0.250 to 0.750)"
    assert interval(Interval(0.5, np.nan, np.nan, 95)) == "0.500"


# ---------------------------------------------------------------- the whole of it


def fill(cells: list[Cell], store: Store, listen: Listener, lost: str = "") -> list[Failed]:
    """In the place of processes: results of made-up curves on the market's own test days."""
    failed = []
    for cell in cells:
        if cell.algo == lost:
            failed.append(Failed(cell, "RuntimeError: no"))
            continue
        span = Span(500, 700)
        table = ff.load_prices(cell.settings.market.prices)
        own = np.random.default_rng([cell.seed, *cell.algo.encode()]).normal(4e-4, 0.01, 199)
        made = result_of(cell.algo, own, cell.seed, cell.market)
        days = table.dates[span.start : span.stop]
        curves = tuple(replace(c, dates=days[1:], decisions=days[:-1]) for c in made.curves)
        store.put(cell, pack(replace(made, key=cell.key, curves=curves)))
        listen(Event(cell, "done"))
    return failed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(run, "run_cells", lambda c, s, e, listen: fill(c, s, listen))
    return monkeypatch


def test_files_of_a_benchmark(
    settings: Settings, tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    other = write_prices(tmp_path / "other.csv")
    markets = [settings.market.prices, str(other)]
    out = tmp_path / "out"
    found = ff.benchmark(settings, ["cqsac", "sac", "hrp"], 2, 640, markets, out)
    assert found.failed == {}
    assert [r.market for r in found.rows].count("prices") == 4
    assert {r.market for r in found.overall} == {"all markets"}
    page = (out / "benchmark.md").read_text("utf-8")
    assert page.splitlines()[2] == found.verdict
    columns = ("algo", "env_id", "mean_reward", "std_reward", "n_timesteps", "eval_timesteps")
    assert f"| {' | '.join(columns)} | eval_episodes |" in page
    assert "| cqsac | finflow/Portfolio-v0 (other) |" in page
    with (out / "benchmark.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Two seeds of two algorithms and two rules, on two markets, at two lags.
    assert len(rows) == (2 * 2 + 2) * 2 * 2
    cqsac = next(r for r in rows if (r["algo"], r["seed"], r["lag"]) == ("cqsac", "1", "0"))
    assert float(cqsac["mean_reward"]) == 2.5
    pictures = {"sharpe.png", "profile.png", "growth_prices.png", "growth_other.png"}
    assert {path.name for path in out.glob("*.png")} == pictures
    assert all(f"({name})" in page for name in pictures)


def test_a_failed_cell_is_named_and_the_rest_compared(
    settings: Settings, tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(run, "run_cells", lambda c, s, e, listen: fill(c, s, listen, "sac"))
    found = ff.benchmark(settings, ["cqsac", "sac"], 2, out=tmp_path)
    assert found.failed == {f"sac prices seed {i}": "RuntimeError: no" for i in (0, 1)}
    assert {row.algo for row in found.rows} == {"cqsac", "equal_weight"}
    assert "**sac prices seed 1** failed and is left out" in (tmp_path / "benchmark.md").read_text()


def test_without_equal_weight_nothing_is_compared(
    settings: Settings, tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(run, "run_cells", lambda c, s, e, listen: fill(c, s, listen, "equal_weight"))
    with pytest.raises(ArtefactError, match="equal_weight has no result"):
        ff.benchmark(settings, ["cqsac"], 1, out=tmp_path)


@pytest.fixture
def command(settings: Settings, tmp_path: Path) -> list[str]:
    file = write_tiny(tmp_path / "tiny.yml", Path(settings.market.prices), tmp_path / "logs")
    return ["benchmark", "-c", str(file), "--out", str(tmp_path / "out")]


def test_the_command_prints_its_result(
    command: list[str], tmp_path: Path, quick: pytest.MonkeyPatch
) -> None:
    asked = [*command, "--algos", "cqsac,anchors", "--seeds", "2", "-p", "fee:0.002"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {row["algo"] for row in found["rows"]} == {"cqsac", "anchors", "equal_weight"}
    shown = CliRunner().invoke(app, [*asked, "--quiet"])
    assert shown.exit_code == 0
    assert "equal weight" in shown.stdout.splitlines()[0]
    assert "Anchors' average" in shown.stdout
    # Nothing is cut off at 80 columns.
    assert "…" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[:-1])) <= 80


def test_the_command_exits_with_1_where_a_cell_failed(
    command: list[str], quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(run, "run_cells", lambda c, s, e, listen: fill(c, s, listen, "iql"))
    done = CliRunner().invoke(app, [*command, "--algos", "iql", "--seeds", "1"])
    assert done.exit_code == 1
    assert "iql prices seed 0 failed: RuntimeError: no" in done.stdout


def test_the_command_says_how_to_go_on(command: list[str], quick: pytest.MonkeyPatch) -> None:
    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    quick.setattr(run, "run_cells", stop)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 130
    assert "the same command goes on" in done.stderr


def test_prices_are_named_once(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--markets", "us20", "--prices", "us20"])
    assert done.exit_code == 1
    assert "--markets" in done.stderr


def test_executors_reach_the_matrix(
    command: list[str], settings: Settings, quick: pytest.MonkeyPatch
) -> None:
    seen: list[Executor] = []

    def note(cells: list[Cell], store: Store, executor: Executor, listen: Listener) -> list[Failed]:
        seen.append(executor)
        return fill(cells, store, listen)

    quick.setattr(run, "run_cells", note)
    options = ["--executor", "ray", "--address", "head:6379", "--workers", "3", "--retries", "0"]
    done = CliRunner().invoke(app, [*command, "--algos", "hrp", *options])
    assert done.exit_code == 0, done.output
    assert seen == [Executor("ray", 3, 0, "head:6379")]
