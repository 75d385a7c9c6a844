"""The verbs and the command `explain`, on runs that were trained."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explain_fixtures import Runs, market_of, random_policies, state_of, trained_runs
from typer.testing import CliRunner

import finflow_sb3
from finflow_sb3.cli.app import app
from finflow_sb3.ensembles import load_policies, write_members
from finflow_sb3.envs.observations import ObservedMarket
from finflow_sb3.errors import ConfigError, DataError, FinflowError
from finflow_sb3.evaluation.backtest import backtest
from finflow_sb3.explain.decision import explain_decision
from finflow_sb3.explain.document import as_document, json_bytes
from finflow_sb3.explain.page import card_page
from finflow_sb3.explain.returns import critic_of, outlook
from finflow_sb3.explain.state import ask, replay, row_of, state_with, weights_of
from finflow_sb3.explain.what_if import WhatIf
from finflow_sb3.explain.words import two_lines
from finflow_sb3.opening import open_market


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return trained_runs(tmp_path_factory.mktemp("explain"))


@pytest.fixture(scope="module")
def market(runs: Runs) -> ObservedMarket:
    policies = load_policies(runs.cqsac)
    return open_market(policies.settings, policies.scaler)


def day_of(market: ObservedMarket, after: int = 30) -> str:
    """A day of the test split."""
    return str(market.prices.dates[market.splits.test.start + after])


def both(runs: Runs) -> list[Path]:
    return [runs.iql, runs.cqsac]


def test_the_state_is_the_backtest_s(runs: Runs, market: ObservedMarket) -> None:
    policies = load_policies(both(runs), shrinkage=0.3)
    env, span = policies.settings.env_kwargs, market.splits.test
    curve = backtest(market, span, env, policies.policy, "policy")
    batch = replay(policies, market, span, span.start + 25, env)
    np.testing.assert_array_equal(batch.weights[0], curve.weights[24])
    assert batch.value[0] == pytest.approx(curve.value[24], rel=1e-14)


def test_a_card_says_what_the_backtest_does(runs: Runs, market: ObservedMarket) -> None:
    done = finflow_sb3.explain(runs.cqsac, day_of(market), days=20)
    explained = done.explained
    policies = load_policies(runs.cqsac)
    curve = backtest(
        market, market.splits.test, policies.settings.env_kwargs, policies.policy, "policy"
    )
    assert explained.traded is not None
    np.testing.assert_allclose(explained.traded, curve.weights[30], atol=1e-12)
    gates = explained.gates
    assert gates is not None
    np.testing.assert_allclose(gates, curve.gates[30], atol=1e-12)
    assert explained.attribution is not None
    realised = np.prod(1.0 + curve.returns[10:30]) - 1.0
    assert explained.attribution.total == pytest.approx(realised, abs=1e-12)
    assert done.page == runs.cqsac / "report" / "explain" / f"{explained.date}.html"
    content = json.loads(done.document.read_text())
    assert content["summary"] == list(two_lines(explained))
    assert content["attribution"]["net_return"] == pytest.approx(realised)
    assert content["weights"]["traded"]["S01"] == pytest.approx(explained.traded[1])
    for part in content["features"]["weights"].values():
        change = part["target"] - part["average_day"]
        assert sum(part["by_block"].values()) == pytest.approx(change, abs=1e-4)
        listed = sum(each["attribution"] for each in part["largest"]) + part["others"]
        assert listed == pytest.approx(change, abs=1e-4)


def test_experts_take_the_tilts_apart(runs: Runs, market: ObservedMarket) -> None:
    policies = load_policies(runs.cqsac)
    batch = replay(
        policies,
        market,
        market.splits.test,
        market.splits.test.start + 5,
        policies.settings.env_kwargs,
    )
    voice = explain_decision(policies, market, batch).voices[0]
    assert voice.experts is not None
    assert voice.anchors is not None
    action = ask(policies, batch).actions[0]
    tilts = np.tanh(voice.experts.tilts.sum(axis=0))
    np.testing.assert_allclose(tilts, action[len(voice.anchors.names) :], atol=1e-5)
    # A network of layout experts is heard as its anchors are.
    np.testing.assert_allclose(voice.experts.gates, voice.anchors.gates, atol=1e-6)
    mixture = voice.anchors.gates @ voice.anchors.weights
    expected = mixture * np.exp(policies.settings.env_kwargs.tilt_scale * tilts)
    np.testing.assert_allclose(voice.target, expected / expected.sum(), atol=1e-6)


def test_the_critic_is_the_one_of_the_chosen_policy(runs: Runs, market: ObservedMarket) -> None:
    import torch

    policies = load_policies(both(runs))
    env, span = policies.settings.env_kwargs, market.splits.test
    batch = replay(policies, market, span, span.start + 3, env)
    asked = ask(policies, batch)
    for run, action in zip(policies.runs, asked.actions, strict=True):
        critic = critic_of(run)
        assert not isinstance(critic, str)
        found = outlook(critic, batch, action)
        with torch.no_grad():
            quantiles = critic(
                torch.from_numpy(batch.observations()), torch.from_numpy(action[None])
            )
        assert found.means[0] == pytest.approx(float(quantiles.mean()), abs=1e-6)
        assert found.quantiles[0, 2] == pytest.approx(float(np.median(quantiles)), abs=1e-6)
        assert found.names[:3] == ("chosen", "hold", "equal weight")
        assert found.missed[3:].max() < 0.01  # anchors are gates at their corners
    assert found.means.std() > 0.0


def test_a_checkpoint_that_is_gone_is_named(runs: Runs, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(runs.cqsac, tmp_path / "run"))
    step = json.loads((copied / "best" / "policy.json").read_text())["facts"]["step"]
    shutil.rmtree(copied / "checkpoints" / f"step_{step:012d}")
    reason = critic_of(copied)
    assert isinstance(reason, str)
    assert f"the checkpoint of step {step}" in reason


def test_any_state_is_explained(runs: Runs, market: ObservedMarket) -> None:
    """The last day too, on which nothing can be earned yet."""
    policies = load_policies(runs.iql)
    held = np.array([0.2, 0.3, 0.0, 0.1, 0.1, 0.3])
    env = policies.settings.env_kwargs
    batch = state_with(market, env, len(market.returns) - 1, held, drawdown=0.1)
    before = {name: np.copy(value) for name, value in batch.state()[0].items() if name != "gates"}
    explained = explain_decision(policies, market, batch)
    after = batch.state()[0]
    assert all(np.array_equal(value, after[name]) for name, value in before.items())
    np.testing.assert_array_equal(explained.held, held)
    assert explained.attribution is None
    assert any("no backtest led to these holdings" in line for line in explained.left_out)
    assert "drawdown" in explained.features.by_block()
    first, second = two_lines(explained)
    assert explained.date in first
    assert "of the risk" in second


@pytest.mark.parametrize("combination", ["mean", "median"])
def test_an_ensemble_has_the_voices_of_all(
    runs: Runs, market: ObservedMarket, combination: Any, tmp_path: Path
) -> None:
    done = finflow_sb3.explain(
        both(runs), day_of(market), combination=combination, shrinkage=0.2, out=tmp_path
    )
    explained = done.explained
    assert [voice.name for voice in explained.voices] == ["iql", "cqsac"]
    assert any("Shrinkage" in line for line in explained.left_out)
    assert 0.0 < explained.trust < 1.0
    page = done.page.read_text()
    assert "Member 1: IQL" in page
    assert "Member 2: CQSAC" in page


def test_an_ensemble_is_explained_as_it_decides(
    runs: Runs, market: ObservedMarket, tmp_path: Path
) -> None:
    """What its folder says of how members are combined holds here as well."""
    write_members(tmp_path, both(runs), "median", shrinkage=1e6)
    asked = ["explain", str(tmp_path), "--date", day_of(market), "--json"]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    given = finflow_sb3.explain(
        both(runs), day_of(market), combination="median", shrinkage=1e6, out=tmp_path / "given"
    )
    assert told["combination"] == "median"
    assert told["trust"] == given.explained.trust < 0.99


def test_plain_policies_are_explained_as_far_as_they_go(runs: Runs, tmp_path: Path) -> None:
    settings = load_policies(runs.cqsac).settings
    for algo in ("sac", "ppo"):
        plain = settings.replace(run={"log_dir": str(tmp_path / "logs")})
        arguments = {"n_timesteps": 64, "n_envs": 2, "policy_kwargs": {"net_arch": [8]}}
        extra = {"n_steps": 16, "batch_size": 16} if algo == "ppo" else {"learning_starts": 40}
        trained = finflow_sb3.train_plain(plain, algo, {**arguments, **extra})
        policies = load_policies(trained.run)
        market = open_market(policies.settings, policies.scaler)
        explained = finflow_sb3.explain(trained.run, day_of(market)).explained
        assert explained.voices[0].experts is None
        assert explained.gates is not None
        assert explained.features.gap <= 1e-4
        assert explained.outlooks == (None,)
        told = " ".join(explained.left_out)
        assert f"the network of {algo} has none" in told
        assert f"runs of {algo} keep no critic" in told


def test_a_page_stands_alone_and_escapes(runs: Runs, market: ObservedMarket) -> None:
    policies = load_policies(runs.cqsac)
    span = market.splits.test
    batch = replay(policies, market, span, span.start + 2, policies.settings.env_kwargs)
    explained = explain_decision(policies, market, batch, WhatIf("S00", below=0.9))
    hostile = dataclasses.replace(
        explained, assets=("<script>alert(1)</script>", *explained.assets[1:])
    )
    page = card_page(hostile, "run & <b>", "prices")
    assert "<script" not in page
    assert "run &amp; &lt;b&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert page == card_page(hostile, "run & <b>", "prices")
    assert "is met as it is" in page


def test_holdings_take_the_place_of_the_backtest(
    runs: Runs, market: ObservedMarket, tmp_path: Path
) -> None:
    file = tmp_path / "held.csv"
    row = row_of(market, day_of(market))
    closes = market.prices.close[row]
    file.write_text(f"symbol,shares\nS01,{500 / closes[1]}\nS03,{250 / closes[3]}\nCASH,250\n")
    explained = finflow_sb3.explain(
        runs.cqsac, day_of(market), holdings=file, out=tmp_path
    ).explained
    np.testing.assert_allclose(explained.held, [0.0, 0.5, 0.0, 0.25, 0.0, 0.25], atol=1e-4)
    assert explained.attribution is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("symbol,weight\nS01,1\n", "symbol,shares"),
        ("symbol,shares\nS0l,1\nCASH,0\n", "'S0l' is none of the 5 assets"),
        ("symbol,shares\nS01,1\n", "says nothing of cash"),
        ("symbol,shares\nCASH,0\n", "is worth nothing"),
    ],
)
def test_holdings_that_cannot_be_used_are_refused(
    market: ObservedMarket, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "held.csv"
    file.write_text(content)
    with pytest.raises(FinflowError, match=re.escape(message)):
        weights_of(file, market.prices)


@pytest.mark.parametrize(
    ("date", "message"),
    [
        ("1999-01-04", "lies outside the usable days"),
        ("tomorrow", "is no date"),
        ("2030-01-01", "lies outside the usable days"),
        ("2002", "'2002' is no date"),
        ("", "'' is no date"),
    ],
)
def test_days_that_are_none_are_refused(market: ObservedMarket, date: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        row_of(market, date)


def test_a_weekend_names_the_days_beside_it(market: ObservedMarket) -> None:
    dates = market.prices.dates
    row = next(r for r in range(400, 420) if (dates[r + 1] - dates[r]).astype(int) == 3)
    with pytest.raises(DataError, match=f"beside it are {dates[row]} and {dates[row + 1]}"):
        row_of(market, str(dates[row] + 1))


def test_a_period_sums_up_its_days(runs: Runs, market: ObservedMarket, tmp_path: Path) -> None:
    first, last = day_of(market, 5), day_of(market, 25)
    overview = finflow_sb3.explain_period(runs.cqsac, first, last, samples=4, out=tmp_path)
    days = [5, 11, 18, 24]
    cards = [finflow_sb3.explain(runs.cqsac, day_of(market, d), out=tmp_path) for d in days]
    moved = [card.explained.features.by_block()["momentum"] for card in cards]
    expected = np.mean([0.5 * np.abs(part).sum() for part in moved])
    found = overview.importance
    assert found.days == 4
    assert found.blocks["momentum"] == pytest.approx(expected, rel=1e-3)
    gates = np.mean([card.explained.gates for card in cards], axis=0)
    np.testing.assert_allclose([h.gate for h in found.anchors.values()], gates, atol=1e-6)
    made = overview.attribution
    assert (made.first, made.last, made.days) == (first, last, 20)
    assert abs(made.gap) < 1e-12
    for path in (overview.page, overview.document, overview.picture):
        assert path.stat().st_size > 1000
    with pytest.raises(DataError, match=f"{last} is not before {first}"):
        finflow_sb3.explain_period(runs.cqsac, last, first, out=tmp_path)
    with pytest.raises(DataError, match="do not lie in the validation split"):
        finflow_sb3.explain_period(runs.cqsac, first, last, split="validation", out=tmp_path)
    with pytest.raises(DataError, match="--to: 1990-01-01 lies outside"):
        finflow_sb3.explain_period(runs.cqsac, first, "1990-01-01", out=tmp_path)


@pytest.mark.parametrize("base", ["anchors", "drift", "none"])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("lag", [0, 1])
def test_all_kinds_of_environments_have_cards(base: str, partial: bool, lag: int) -> None:
    market = market_of(base, partial, execution_lag=lag)
    policies, batch = random_policies(market, 2), state_of(market)
    explained = explain_decision(policies, market, batch, WhatIf("S02", below=0.95))
    assert (explained.traded is None) == (lag == 1)
    assert (explained.gates is None) == (base != "anchors")
    answered = explained.counterfactual
    assert answered is not None
    assert answered.change.found
    assert answered.weight == pytest.approx(explained.target[2], abs=1e-6)
    told = card_page(explained, "run", "prices")
    assert ("The order waits for the next close" in told) == (lag == 1)
    document = json.loads(json_bytes(as_document(explained)))
    assert sum(document["weights"]["target"].values()) == pytest.approx(1.0)
    first, _ = two_lines(explained)
    assert ("orders a trade" in first) == (lag == 1)
    for voice in explained.voices:
        assert voice.experts is not None
        assert np.all(voice.experts.loudness >= 0.0)


def command(*words: Any) -> Any:
    return CliRunner().invoke(app, ["explain", *map(str, words)])


def test_the_command_prints_two_lines_or_json(
    runs: Runs, market: ObservedMarket, tmp_path: Path
) -> None:
    day = day_of(market)
    question = ("--asset", "S01", "--above", "0.0001")
    plain = command(runs.cqsac, "--date", day, "--out", tmp_path, *question)
    assert plain.exit_code == 0, plain.output
    assert f"{day}:" in plain.stdout
    assert "is met as it is" in plain.stdout
    assert f"Card: {tmp_path / day}.html" in plain.stdout.replace("\n", "")
    done = command(runs.cqsac, "--date", day, "--out", tmp_path, "--json", "--quiet")
    content = json.loads(done.stdout)
    expected = as_document(finflow_sb3.explain(runs.cqsac, day, out=tmp_path).explained)
    assert content["weights"] == expected["weights"]
    assert content["page"] == str(tmp_path / f"{day}.html")
    period = command(
        runs.cqsac, "--global", "--split", "validation", "--samples", 2, "--out", tmp_path, "--json"
    )
    assert json.loads(period.stdout)["importance"]["days"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--date: is missing"),
        (("--global", "--date", "2001-01-02"), "leave out --date"),
        (("--date", "2001-01-02", "--samples", "3"), "add --global"),
        (("--date", "2001-01-02", "--above", "0.1"), "belongs to an asset"),
        (("--date", "2001-01-02", "--asset", "S01"), "give --above or --below"),
        (("--date", "2001-01-02", "--seed", "1"), "leave out --seed"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(
    runs: Runs, words: tuple[str, ...], message: str
) -> None:
    done = command(runs.cqsac, *words)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stdout == ""


def test_no_sample_is_refused(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="explain nothing"):
        finflow_sb3.explain_period(runs.cqsac, samples=0)
